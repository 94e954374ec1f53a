"""How all client scripts end: by Ctrl+C, or with a sentence that says why."""

import asyncio
import os
import re
import runpy
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp import WSMsgType
from yarl import URL

from tests.clients.conftest import ServeWebSocket
from tests.helpers import ROOT, TIMEOUT, StartScript
from utils import frame

RunScript = Callable[[Any], Awaitable[str]]

SCRIPTS = "client_echo_example.py client.py examples/math_client.py examples/math_student.py"
pytestmark = pytest.mark.parametrize("script", SCRIPTS.split())
# What a server sends, and the reason that a script gives for its end.
CLOSED = "ConnectionError: The server closed the connection."
CLOSE = frame(b"\x03\xe9", WSMsgType.CLOSE)
ENDS = {
    b"": CLOSED,
    CLOSE: CLOSED,
    frame(b"\xff"): "ClientError: Invalid UTF-8 text message",
    frame(b"", WSMsgType.PONG): "ClientError: No PONG received after 0.1 seconds",
}
# No server should send this. It does no harm.
ODD = b"""[]; null; 1; {}; {"success": true}; {"success": true}; {"action": ["join_room"]}
{"action": "left"}; {"action": "user_list", "users": {}}; {"action": "joined", "user": []}
{"action": "chat_message", "user": "odd", "message": ["1 + 1"]}; {"action": "left", "user": "odd"}
{"action": "left", "room": "math", "user": "odd", "shame": 1}""".replace(b"\n", b";")
CHAT_ENDS = ENDS | {
    b"".join(frame(text) for text in ODD.split(b";")) + CLOSE: CLOSED,
    frame(b'{"echo": {}}') + CLOSE: "ConnectionError: This is /echo, not /chat.",
    frame(b"not JSON"): "JSONDecodeError: ",
    frame(b"[" * 100_000) + CLOSE: "RecursionError: ",
}


@pytest.fixture
def run_script(script: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunScript]:
    """Run the script with `await run_script(url)`; return the reason that it exits with."""
    connect = aiohttp.ClientSession.ws_connect

    def ws_connect(*arguments: Any, heartbeat: float, **options: Any) -> Any:
        return connect(*arguments, heartbeat=heartbeat / 100, **options)

    def run(url: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, "--url", url])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        sentence = str(end.value.code)
        assert sentence.isprintable()
        assert sentence.startswith(f"{url}: ")
        return sentence.removeprefix(f"{url}: ")

    reading, writing = os.pipe()
    with open(reading) as stdin, open(writing, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", ws_connect)
        # It runs in a thread, where Python has no signals.
        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_signal_handler", lambda *_: None)
        # It has to say how long it waits for a close frame.
        endless = aiohttp.ClientWSTimeout(ws_close=1000)
        monkeypatch.setattr(aiohttp.client, "DEFAULT_WS_CLIENT_TIMEOUT", endless)
        yield lambda url: asyncio.wait_for(asyncio.to_thread(run, str(url)), TIMEOUT)


async def test_ctrl_c(script: str, start_script: StartScript, busy_room: URL) -> None:
    client = await start_script(script, "--url", busy_room)
    await client.find(re.escape(r"Hello! \x9b2J"))
    client.process.send_signal(signal.SIGINT)
    code, _, errors = await client.end()
    assert (code, errors) == (0, "")


async def test_server_that_ends_the_connection(
    script: str, run_script: RunScript, serve_websocket: ServeWebSocket
) -> None:
    """If it falls silent, as a lost network does, a ping reveals it after 20 s."""

    async def talk(websocket: Any) -> None:
        transport = websocket._req.transport
        transport.write(data) if (data := next(frames)) else transport.close()
        await asyncio.Event().wait()  # it never answers a close frame

    ends = ENDS if "echo" in script else CHAT_ENDS
    frames = iter(ends)
    url = await serve_websocket(talk)
    for reason in ends.values():
        assert (await run_script(url)).startswith(reason)


async def test_server_without_a_websocket(
    script: str, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sends is escaped. It may not respond, or not be there, or have no valid address."""
    responses = {
        "HTTP/1.1 200 OK": "WSServerHandshakeError: 200, ",
        "HTTP/1.1 302 Found\r\nLocation: foo://\x1b[2J\xe9/": r"Error: foo://\x1b[2J\udce9/ - ",
        "HTTP/1.1 \x1b[2J": "ClientResponseError: 400, message=",
        "": "TimeoutError: ",
    }
    heads = iter(responses)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if head := next(heads):
            writer.write(f"{head}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))
        await reader.read()
        writer.close()

    timeouts = {10: aiohttp.ClientTimeout(total=0.2)}
    monkeypatch.setattr(aiohttp, "ClientTimeout", lambda total: timeouts[total])
    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        for reason in responses.values():
            assert reason in await run_script(f"ws://{host}:{port}/")
    reason = await run_script(f"ws://{host}:{port}/")
    assert f"Cannot connect to host {host}:{port} " in reason
    assert reason.endswith(" Is the server running?") == (script == "client.py")
    for address in ("localhost:8080", "//localhost", "http://[::1", "ws://a..b"):
        assert "Error: " in await run_script(address)
    if script == "client.py":  # it asks the system, which knows the names of the local network
        answer = Mock(side_effect=socket.gaierror(1, "The system was asked"))
        monkeypatch.setattr(socket, "getaddrinfo", answer)
        assert "[The system was asked]" in await run_script("ws://amys-laptop.local/")
