"""The handshake, which pages may connect, and how the page is served."""

import asyncio
import logging
import re
import socket

import aiohttp
import pytest

from server import OPTIONS, parse_arguments
from tests.helpers import HANDSHAKE, TIMEOUT, eventually, request
from tests.server.chat import Chat


async def fetch(chat: Chat, request: bytes) -> str:
    """Send a request and return the whole response: after a handshake, its headers."""
    reader, writer = await asyncio.open_connection(chat.url.host, chat.url.port)
    writer.write(request)
    async with asyncio.timeout(TIMEOUT):
        response = await reader.readuntil(b"\r\n\r\n")
        if size := re.search(rb"Content-Length: (\d+)", response):
            response += await reader.readexactly(int(size[1]))
    writer.close()
    return response.decode()


@pytest.mark.parametrize("path", ["echo", "chat"])
async def test_request_that_is_not_a_handshake(chat: Chat, path: str) -> None:
    """For example, somebody opens the address in a browser."""
    headers, text = (await fetch(chat, request(path, {}))).split("\r\n\r\n")
    assert headers.startswith("HTTP/1.1 426 Upgrade Required\r\n")
    expected = {"Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"}
    assert expected <= {*headers.split("\r\n")}
    assert len(text.split()) > 3
    for name, value in (("Key", "\xff" * 24), ("Key", ""), ("Key", "short"), ("Version", "99")):
        response = await fetch(chat, request(path, {**HANDSHAKE, f"Sec-WebSocket-{name}": value}))
        assert re.match(r"HTTP/1\.1 4(00|26) ", response)
    assert re.match(r"HTTP/1\.1 4(05|26) ", await fetch(chat, request(path, HANDSHAKE, "POST")))
    assert chat.who() == {}


def allow(chat: Chat, *sites: str) -> None:
    options = [option for site in sites for option in ("--allow-origin", site)]
    chat.app[OPTIONS].allow_origin = parse_arguments(options).allow_origin


# The Host of a browser's request, where this machine's name is amys-laptop.school.example.
TRUSTED = """\
127.0.0.1:8080 192.168.1.7 192.168.1.7:80 [::1]:80 [::1]:8080 [fe80::1] [::ffff:10.0.0.1]:8080
localhost localhost.:8080 LOCALHOST app.localhost:8080 amys-laptop amys-laptop:8080
amys-laptop.local amys-laptop.local.:8080 amys-laptop.lan chat host.docker.internal
nas.home.arpa chat.test amys-laptop.school.example
AMYS-LAPTOP.school.example.:8080 one.example two.example:8443""".split()
# These names could lead to this machine, too: DNS rebinding.
STRANGE = """\
evil.example evil.example:8080 evil.example. localhost.evil.example 127.0.0.1.evil.example
amys-laptop.evil.example school.example test.example 1.1.1.1.x evillocalhost.example
amy.tail1234.ts.net""".split()


async def test_names_of_hosts(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a name that a stranger could own, not even the page is served, and it is said why."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Amys-Laptop.school.example")
    allow(chat, "https://One.example", "https://two.example:8443/")
    for host in TRUSTED:
        assert (await fetch(chat, request("", {"Host": host}))).startswith("HTTP/1.1 200 "), host
        for origin in (f"https://{host}", f"http://{host.removesuffix(':80')}"):  # as browsers do
            headers = {**HANDSHAKE, "Host": host, "Origin": origin}
            assert (await fetch(chat, request("chat", headers))).startswith("HTTP/1.1 101 "), host
    for host in STRANGE:
        origin = f"http://{host}"
        for path, headers in (("", {}), ("chat", {**HANDSHAKE, "Origin": origin})):
            response = await fetch(chat, request(path, {**headers, "Host": host}))
            assert response.startswith("HTTP/1.1 403 "), host
            assert response.endswith(f"start the server with --allow-origin {origin}"), host
        response = await fetch(chat, request("chat", {**HANDSHAKE, "Host": host}))
        assert response.startswith("HTTP/1.1 101 "), (
            "a client that is not a browser may use any name"
        )


OWN_PAGES = [  # a proxy may add the port
    ("HTTP://LOCALHOST:8080", "localhost:8080"),
    ("http://192.168.1.7", "192.168.1.7:80"),
    ("https://[::1]", "[::1]:443"),
    ("https://one.example", "x.y"),
    ("https://two.example:8443", "localhost"),
]
OTHER_PAGES = (
    "http://evil.example null http://localhost:1 http:// ftp://localhost http://localhost/"
)
OTHER_PAGES += f" http://localhost.evil.example http://{'x' * 1000} http://\xff"


@pytest.mark.parametrize("path", ["echo", "chat"])
async def test_origin(chat: Chat, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A page may connect if it comes from here, or if its origin is allowed."""
    caplog.set_level(logging.INFO)
    allow(chat, "https://One.example", "https://two.example:8443/")
    for origin, host in OWN_PAGES:
        response = await fetch(chat, request(path, HANDSHAKE | {"Origin": origin, "Host": host}))
        assert response.startswith("HTTP/1.1 101 ")
        assert "Extensions" not in response
    await eventually(lambda: not chat.who())
    for origin in OTHER_PAGES.split(" "):
        response = await fetch(chat, request(path, {**HANDSHAKE, "Origin": origin}))
        shown = origin[:100].replace("\xff", "?")
        assert response.startswith("HTTP/1.1 403 ")
        assert response.endswith(f"start the server with --allow-origin {shown}")
        sentence = response.partition("\r\n\r\n")[2]
        assert caplog.messages[-1] == f"Refused a page. {sentence!r}"
    assert chat.who() == {}


async def test_headers_of_other_programs(chat: Chat) -> None:
    """Cookies of other programs on localhost, and what a CDN adds."""
    headers = {"Cookie": "; ".join(f"session{number}={'x' * 1_400}" for number in range(3))}
    headers |= {f"CloudFront-Header-{number}": "x" * 50 for number in range(34)}
    assert (await fetch(chat, request("", headers))).startswith("HTTP/1.1 200 ")
    assert (await fetch(chat, request("chat", HANDSHAKE | headers))).startswith("HTTP/1.1 101 ")


async def test_headers_of_the_page(chat: Chat) -> None:
    types = {"": "text/html", "chat.css": "text/css"}
    types |= dict.fromkeys(("chat.js", "connection.js", "log.js"), "javascript")
    async with aiohttp.ClientSession(chat.url) as session:
        for path, content_type in types.items():
            async with session.get(f"/{path}") as response:
                assert response.content_type.endswith(content_type)  # nosniff takes nothing else
                policy = response.headers["Content-Security-Policy"]
                pattern = "default-src 'none'(?!.*unsafe).*frame-ancestors 'none'.*trusted-types"
                assert re.match(pattern, policy)
                names = ("X-Content-Type-Options", "Cache-Control")
                assert [response.headers[name] for name in names] == ["nosniff", "no-cache"]
            tag = {"If-None-Match": response.headers["ETag"]}
            async with session.get(f"/{path}", headers=tag) as response:
                assert response.status == 304


async def test_health(chat: Chat) -> None:
    assert (await fetch(chat, request("health", {}))).startswith("HTTP/1.1 200 ")
