"""client.py without a terminal: it reads and prints plain lines."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from yarl import URL

from tests.clients.screen import busy
from tests.helpers import TIMEOUT, Join, StartScript, left, said

# Each starts a process or two, which takes a second. They run where the style is checked, too.
slow = pytest.mark.needs("lint")
# IDLE's streams say that they are a terminal, but are not files.
IDLE = """
import runpy, sys

class Stream:
    def __init__(self, stream):
        self.readline, self.write, self.flush = stream.readline, stream.write, stream.flush

    def isatty(self):
        return True

sys.stdin, sys.stdout = Stream(sys.stdin), Stream(sys.stdout)
runpy.run_path("client.py", run_name="__main__")
"""


async def test_pipe(url: URL, join: Join, start_script: StartScript) -> None:
    """Times and colours are for people; the last line needs no newline."""
    amy = await join(url.parent, "Amy", "lounge")
    script = await start_script("client.py", "--url", url, "--room", "lounge", "--nick", "Bob")
    lines = [f"line {number}" for number in range(300)]
    typed = "\r\n".join(["one", "", *lines, "z" * 200_000, "y" * 60_000]).encode() + b"\xff"
    code, output, errors = await script.end(typed)
    assert (code, errors) == (0, "")
    lines = ["one", *lines, "y" * 60_000 + "\N{REPLACEMENT CHARACTER}"]
    expected = [f"Bob: {line}" for line in lines]
    expected.insert(-1, "! Too long: 200041 bytes; the limit is 65536")
    start = ["* You are now in lounge", "* You are now known as Bob", "* In lounge: Amy, Bob"]
    assert output.splitlines() == [*start, *expected]
    bodies = (await amy.catch_up())[2:]
    assert bodies == [*(said("Bob", text) for text in lines), left("lounge", "Bob", shame=False)]


async def test_output_that_nobody_reads(serve: Any, start_script: StartScript) -> None:
    """The client goes on responding to pings, and prints everything when somebody reads."""
    message = json.dumps({"action": "chat_message", "user": "Amy", "message": "x" * 60_000})
    has_responded = asyncio.Event()

    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(autoping=False)
        await websocket.prepare(request)
        await websocket.send_json({"action": "connecting", "room": "default", "user": "u"})
        for _ in range(10):
            await websocket.send_str(message)
        await websocket.ping()
        while (await websocket.receive()).type is not WSMsgType.PONG:
            pass
        has_responded.set()
        return websocket

    app = web.Application()
    app.router.add_get("/", view)
    script = await start_script("client.py", "--url", await serve(app))
    await asyncio.wait_for(has_responded.wait(), TIMEOUT)
    code, output, errors = await script.end()
    assert code == 1
    assert output.splitlines() == ["Amy: " + "x" * 60_000] * 10
    assert "the server closed the connection" in errors


async def test_files(url: URL, start_script: StartScript, tmp_path: Path) -> None:
    """What is not in the encoding of a file is escaped."""
    (tmp_path / "in").write_bytes(b"one\ncaf\xe9\ntwo")
    script = await start_script(
        *("client.py", "--url", url, "--nick", "Zoë"),
        redirect=f"<{tmp_path}/in >{tmp_path}/out",
        PYTHONIOENCODING="ascii",
    )
    assert await script.end() == (0, "", "")
    shown = ["* You are now known as Zo\\xeb", "* In default: Zo\\xeb"]
    shown += ["Zo\\xeb: one", "Zo\\xeb: caf\\ufffd", "Zo\\xeb: two"]
    assert (tmp_path / "out").read_text().splitlines() == shown


@slow
async def test_idle(url: URL, start_script: StartScript) -> None:
    script = await start_script("-c", IDLE, "--url", url, "--nick", "Bob")
    code, output, errors = await script.end(b"hello\n")
    assert (code, errors) == (0, "")
    shown = [line[6:] for line in output.splitlines()]  # without the times
    assert shown == ["* You are now known as Bob", "* In default: Bob", "Bob: hello"]


@slow
@pytest.mark.parametrize("redirect", ["<&-", ">&-"])
async def test_closed_streams(start_script: StartScript, redirect: str) -> None:
    script = await start_script("client.py", redirect=redirect)
    sentence = "client.py needs standard input and output (/dev/null is enough).\n"
    assert await script.end() == (1, "", sentence)


@slow
async def test_unusual_address(start_script: StartScript) -> None:
    """What a server sends is escaped in the sentence with which the client ends, too."""

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://\x1b[2J/\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(redirect, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        code, output, errors = await (await start_script("client.py", "--url", url)).end()
    assert (code, output) == (1, "")
    assert errors.startswith(rf"{url}: redirected to http://\x1b[2J/ ")


async def test_output_that_closes(url: URL, join: Join, start_script: StartScript) -> None:
    """As by `| head`. How it ends by Ctrl+C is in test_ends.py."""
    amy = await join(url.parent, "Amy")
    script = await start_script("client.py", "--url", url, "--nick", "Bob")
    while "In default" not in await script.line():
        pass
    async with busy(amy):
        script.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    await script.end()
