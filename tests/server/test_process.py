"""The server in a process of its own, and clients that misbehave."""

import asyncio
import re
import signal
import socket
import struct
import sys

import aiohttp
import pytest

from server import main
from tests.helpers import (
    HANDSHAKE,
    TIMEOUT,
    ConnectRaw,
    Join,
    Member,
    Server,
    StartScript,
    StartServer,
    eventually,
    request,
)

# Strangers


def connect(port: int) -> socket.socket:
    """Return a socket with a small receive buffer. Closing it resets the connection."""
    plain = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return plain


async def test_clients_that_vanish_during_the_handshake(server: Server, join: Join) -> None:
    """Some are gone before the response, others right after it: no traceback is logged."""
    witness = await join(server.url)
    for number in range(100):
        with (
            socket.create_connection(("127.0.0.1", server.port))
            if number % 3
            else connect(server.port) as plain
        ):
            plain.sendall(request("chat", HANDSHAKE))
            if number % 3 == 2:
                plain.recv(1)
    last = await join(server.url)  # joins after all of them
    came, went = list[str](), list[str]()
    async with asyncio.timeout(TIMEOUT):
        while sorted(came) != sorted([*went, last.user]):
            for body in await witness.catch_up():
                assert body.get("shame", True)
                (came if body["action"] == "joined" else went).append(body["user"])
    assert len(went) >= 33


NONSENSE = [
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\r\n\r\n",
    request("", {"Content-Length": "x"}),
    request("", {"A": "x" * 9_000}),
    request("", {f"A{number}": "x" for number in range(200)}),
]
ODD = [
    b"CONNECT foo:80 HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 100_000,
    request("", {"Expect": "\xff"}),
    request("", {"If-Modified-Since": f"Mon, 01 Jan {'9' * 22} 00:00:00 GMT"}),
    request("", {"Content-Encoding": "gzip", "Content-Length": "4"}, "POST") + b"odd!",
]


def test_strangers_cannot_fill_the_log(server: Server) -> None:
    """A request that is not HTTP is one line at most; a page that nobody reads is none."""
    for nonsense in NONSENSE:
        with connect(server.port) as plain:
            plain.sendall(nonsense)
            assert b" 400 " in plain.recv(100)
    for odd in ODD:
        with connect(server.port) as plain:
            plain.sendall(odd)
            plain.recv(100)
    for _ in range(20):
        with connect(server.port) as plain:
            plain.sendall(request("", {}) * 50)
    with connect(server.port) as plain:
        plain.sendall(request("", {}))
        assert plain.recv(15) == b"HTTP/1.1 200 OK"
    assert server.log.count("\n") <= len(NONSENSE + ODD) + 1
    assert max(map(len, server.log.splitlines())) < 400


# The process


async def test_command_line_of_aiohttp(
    unused_tcp_port: int, join: Join, start_script: StartScript
) -> None:
    command = f"-m aiohttp.web -H 127.0.0.1 -P {unused_tcp_port} server:init_app"
    script = await start_script(*command.split(), "--allow-origin", "http://x.example")
    await eventually(lambda: listens(unused_tcp_port))
    bob = await join(f"http://127.0.0.1:{unused_tcp_port}", "Bob", "math")
    assert (await bob.ask(action="user_list", room="math"))["users"] == ["Bob"]
    script.process.send_signal(signal.SIGTERM)
    message = await bob.websocket.receive(TIMEOUT)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    code, _, _ = await script.end()
    assert code == 0


def listens(port: int) -> bool:
    with socket.socket() as plain:
        return plain.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    "options",
    [
        *("--port 99999", "--port {}", "--host 256.0.0.1", "--host a..b", "--port http"),
        *("--allow-origin example.org", "--allow-origin https://"),
    ],
)
def test_options_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, options: str, unused_tcp_port: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = f"server.py --host 127.0.0.1 --port {unused_tcp_port} {options.format(port)}"
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit) as caught:
            main()
    sentence = rf"Cannot listen on --host \S+ --port ({port}|{unused_tcp_port}|99999): .*[^.]\."
    is_usage = "http" in options or "origin" in options
    assert re.fullmatch("2" if is_usage else sentence, str(caught.value))


@pytest.mark.parametrize("is_verbose", [False, True])
async def test_log(
    server: Server, start_server: StartServer, join: Join, connect_raw: ConnectRaw, is_verbose: bool
) -> None:
    if is_verbose:
        server = start_server("--verbose")
    bob = await join(server.url, "Bob", "math")
    await bob.ask(action="chat_message", message="secret \x1b[2J \ud800")
    await bob.leave()
    raw = await connect_raw(server.url)
    user = (await raw.receive())["user"]
    raw.vanish()
    await eventually(lambda: "without" in server.log)
    lines = [line.split(maxsplit=2)[2] for line in server.log.splitlines()]
    first_name = lines[0].split("'")[1]
    assert lines == [
        f"INFO {first_name!r} in 'default' connected",
        f"INFO {first_name!r} in 'default' is now 'Bob'",
        "INFO 'Bob' in 'default' goes to 'math'",
        *([r"DEBUG 'Bob' in 'math' says 'secret \x1b[2J \ud800'"] if is_verbose else []),
        "INFO 'Bob' in 'math' disconnected",
        f"INFO {user!r} in 'default' connected",
        f"INFO {user!r} in 'default' disconnected without a close frame",
    ]


# A shutdown


async def test_shutdown(
    start_server: StartServer, join: Join, connect_raw: ConnectRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that read get 1001, and the server does not wait for long for the others."""
    program = (
        "import server, utils; utils.CLOSE_TIMEOUT = 0.5; utils.MAX_RATE = 2**30; server.main()"
    )
    monkeypatch.setattr(Server, "script", ("-c", program))
    server = start_server()
    lazy = connect(server.port)
    lazy.sendall(request("", {"Content-Length": "10"}))  # but none of these 10 bytes
    assert lazy.recv(15) == b"HTTP/1.1 200 OK"
    echo, stalled = (
        await connect_raw(server.url, "/echo"),
        await connect_raw(server.url, receive_buffer=4096),
    )
    stalled.stop_reading()
    # It does not read these responses, so it does not receive the close frame after them.
    message = stalled.text(action="chat_message", message="x" * 40_000)
    stalled.writer.write(stalled.text(action="join_room", room="art") + message * 20)
    members = [await join(server.url, f"member {number}", "math") for number in range(20)]
    for member in members:
        await member.catch_up()

    async def end(member: Member) -> int | None:
        assert [message async for message in member.websocket] == [], "nobody is sent who left"
        return member.websocket.close_code

    ending = asyncio.gather(*map(end, members))
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(ending, TIMEOUT) == [1001] * 20
    assert await echo.close_code() == 1001
    # The others get half a second; the rest is slack for a busy machine.
    assert await asyncio.to_thread(server.process.wait, 8) == 0
    lazy.close()
    assert "without" not in server.log
    server.stop()
