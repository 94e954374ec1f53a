"""server.py from outside: the handshake, the page, strangers, the options, the log, the end."""

import ast
import asyncio
import functools
import logging
import re
import socket
import struct
import sys

import pytest
from aiohttp import web

from server import OPTIONS, main, parse_arguments
from tests.helpers import TIMEOUT, Join, StartServer, eventually, joined, left, said
from tests.server.helpers import Chat, renamed

# The headers of a handshake, as a browser sends them.
HANDSHAKE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "A" * 22 + "=="}
HANDSHAKE |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Extensions": "permessage-deflate"}


def request(path: str, headers: dict[str, str], method: str = "GET") -> bytes:
    """Return a request, byte for byte."""
    lines = [f"{name}: {value}" for name, value in ({"Host": "localhost"} | headers).items()]
    return "\r\n".join([f"{method} /{path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def connect(port: int) -> socket.socket:
    """Return a socket with a small receive buffer. Closing it resets the connection."""
    plain = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return plain


async def fetch(chat: Chat, path: str, headers: dict[str, str]) -> str:
    """Send a request and return the whole response: after a handshake, its headers."""
    reader, writer = await asyncio.open_connection(chat.url.host, chat.url.port)
    writer.write(request(path, headers))
    async with asyncio.timeout(TIMEOUT):
        response = await reader.readuntil(b"\r\n\r\n")
        if size := re.search(rb"Content-Length: (\d+)", response):
            response += await reader.readexactly(int(size[1]))
    writer.close()
    return response.decode()


@pytest.mark.parametrize("path", ["echo", "chat"])
async def test_request_that_is_not_a_handshake(chat: Chat, path: str) -> None:
    """For example, somebody opens the address in a browser."""
    headers, text = (await fetch(chat, path, {})).split("\r\n\r\n")
    assert headers.startswith("HTTP/1.1 426 Upgrade Required\r\n")
    expected = {"Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"}
    assert expected <= {*headers.split("\r\n")}
    assert len(text.split()) > 3
    for name, value in (("Key", "\xff" * 24), ("Key", ""), ("Key", "short"), ("Version", "99")):
        response = await fetch(chat, path, HANDSHAKE | {f"Sec-WebSocket-{name}": value})
        assert re.match(r"HTTP/1\.1 4(00|26) ", response)
    assert chat.who() == {}


# The Host of a browser's request, where this machine's name is amys-laptop.school.example.
TRUSTED = """\
127.0.0.1:8080 192.168.1.7:80 [::1]:80 [fe80::1] [::ffff:10.0.0.1]:8080 localhost LOCALHOST
app.localhost:8080 localhost.:8080 amys-laptop chat.local.:8080 chat.lan host.docker.internal
nas.home.arpa chat.test AMYS-LAPTOP.school.example.:8080 one.example two.example:8443""".split()
# These names could lead to this machine, too: DNS rebinding.
STRANGE = """\
evil.example evil.example:8080 evil.example. localhost.evil.example 127.0.0.1.evil.example
amys-laptop.evil.example school.example test.example 1.1.1.1.x one.example.evil.example""".split()
# Origins and hosts. A browser leaves out the usual port, and a proxy may add it.
OWN = [(f"http://{host.removesuffix(':80')}", host) for host in TRUSTED]
OWN += [(f"https://{host}", host) for host in TRUSTED]
OWN += [("HTTP://LOCALHOST:8080", "localhost:8080"), ("https://[::1]", "[::1]:443")]
ALLOWED = [("https://one.example", "x.y"), ("https://two.example:8443", "localhost")]
OTHER = "http://evil.example null http://localhost:1 http:// ftp://localhost http://localhost/"
OTHER += f" http://localhost.evil.example http://{'x' * 1000} http://\xff"
FOREIGN = [(f"http://{host}", host) for host in STRANGE]
FOREIGN += [(origin, "localhost") for origin in OTHER.split(" ")]


async def test_pages(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They may connect from here, if no stranger can own the name, or if they are allowed."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(socket, "gethostname", lambda: "Amys-Laptop.school.example")
    options = "--allow-origin https://One.example --allow-origin https://two.example:8443/"
    chat.app[OPTIONS].allow_origin = parse_arguments(options.split()).allow_origin
    for host in TRUSTED:
        assert (await fetch(chat, "", {"Host": host})).startswith("HTTP/1.1 200 "), host
    for origin, host in OWN + ALLOWED:
        for path in ("echo", "chat"):
            response = await fetch(chat, path, HANDSHAKE | {"Origin": origin, "Host": host})
            assert response.startswith("HTTP/1.1 101 "), (origin, host)
            assert "Extensions" not in response
    for origin, host in FOREIGN:
        for path in ("echo", "chat", *([""] if host in STRANGE else [])):
            headers = {"Host": host} if path == "" else HANDSHAKE | {"Host": host, "Origin": origin}
            response = await fetch(chat, path, headers)
            shown = origin[:100].replace("\xff", "?")
            assert response.startswith("HTTP/1.1 403 "), (origin, host)
            assert response.endswith(f"start the server with --allow-origin {shown}")
            sentence = response.partition("\r\n\r\n")[2]
            assert f"Refused a page. {sentence!r}" in caplog.messages
        # A client that is not a browser may use any name.
        assert " 101 " in await fetch(chat, "chat", HANDSHAKE | {"Host": host})


async def test_headers(chat: Chat) -> None:
    """Those of the page are strict; cookies of other programs, and what a CDN adds, are let in."""
    policy = "default-src 'none'(?!.*unsafe).*frame-ancestors 'none'.*trusted-types"
    page = await fetch(chat, "", {})
    assert re.search(f"\r\nContent-Security-Policy: {policy}", page)
    assert "\r\nX-Content-Type-Options: nosniff\r\n" in page
    assert "\r\nCache-Control: no-cache\r\n" in page
    many = {"Cookie": "; ".join(f"session{number}={'x' * 1_400}" for number in range(3))}
    many |= {f"CloudFront-Header-{number}": "x" * 50 for number in range(34)}
    assert "HTTP/1.1 200 " in await fetch(chat, "health", many)


async def test_clients_that_vanish_in_the_handshake(start_server: StartServer, join: Join) -> None:
    """Some are gone before the response, others right after it: no traceback is logged."""
    server = start_server()
    for number in range(100):
        with connect(server.port) as plain:
            plain.sendall(request("chat", HANDSHAKE))
            if number % 2:
                plain.recv(1)
    await join(server.url)  # after all of them


NONSENSE = [b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\r\n\r\n", request("", {"Expect": "\xff"})]
NONSENSE += [request("", {"Content-Length": "x"}), request("", {"A": "x" * 9_000})]
NONSENSE += [request("", {f"A{number}": "x" for number in range(200)})]
NONSENSE += [request("", {"If-Modified-Since": f"Mon, 01 Jan {'9' * 22} 00:00:00 GMT"})]
NONSENSE += [b"CONNECT foo:80 HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 100_000]
NONSENSE += [request("", {"Content-Encoding": "gzip", "Content-Length": "4"}, "POST") + b"odd!"]


def test_strangers_cannot_fill_the_log(start_server: StartServer) -> None:
    """A strange request is one line at most; a page that nobody reads is none."""
    server = start_server()
    for nonsense in NONSENSE:
        with connect(server.port) as plain:
            plain.sendall(nonsense)
            plain.recv(100)
    for _ in range(20):
        with connect(server.port) as plain:
            plain.sendall(request("", {}) * 50)
    assert server.log.count("\n") <= len(NONSENSE) + 1
    assert max(map(len, server.log.splitlines())) < 400


@pytest.mark.parametrize("options", ["99999", "{}", "0 --host 256.0.0.1", "0 --host a..b", "http"])
def test_options_that_are_wrong(monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    # What is printed when it serves all the same ends it.
    monkeypatch.setattr(web, "run_app", functools.partial(web.run_app, print=pytest.fail))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = f"server.py --host 127.0.0.1 --port {options.format(taken.getsockname()[1])}"
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit) as caught:
            main()
    sentence = r"Cannot listen on --host \S+ --port \d+: .*[^.]\."
    assert re.fullmatch("2" if "http" in options else sentence, str(caught.value))


@pytest.mark.parametrize("options", [(), ("--verbose",)])
async def test_log(start: StartServer, join: Join, options: tuple[str, ...]) -> None:
    server = start(*options)
    secret = "secret \x1b[2J \ud800"
    bob = await join(server.url, "Bob", "math")
    await bob.say(secret)
    await bob.leave()
    amy = await join(server.url)
    amy.vanish()
    await eventually(lambda: "True" in server.log)
    bodies = [ast.literal_eval(text) for text in re.findall("{.*}", server.log)]
    first_name = bodies[0]["user"]
    story = [joined("default", first_name), renamed("default", first_name, "Bob")]
    story += [left("default", "Bob", shame=False), joined("math", "Bob")]
    story += [said("Bob", secret)] if options else []
    story += [left("math", "Bob", shame=False), joined("default", amy.user)]
    assert bodies == [*story, left("default", amy.user, shame=True)]
    assert r"\x1b[2J \ud800" in server.log or not options


async def test_shutdown(start: StartServer, join: Join) -> None:
    """Clients that read get 1001, and the server does not wait for long for the others."""
    server = start()
    lazy = connect(server.port)
    lazy.sendall(request("", {"Content-Length": "10"}))  # but none of these 10 bytes
    assert lazy.recv(15) == b"HTTP/1.1 200 OK"
    silent = await join(server.url, path="echo")  # does not respond to its close frame
    members = [await join(server.url, f"member {number}", "math") for number in range(20)]
    for member in members:
        await member.catch_up()
    server.process.terminate()
    for member in members:  # nobody is sent who left
        assert await member.close_code() == 1001
    assert await asyncio.to_thread(server.process.wait, 8) == 0  # 2 seconds, and slack
    assert await silent.close_code() == 1001
    lazy.close()
    assert not re.search("True|Traceback", server.log)
