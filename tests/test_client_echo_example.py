"""The echo example, run as a process against a real server, and against servers that misbehave."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import ROOT, TIMEOUT, UNWANTED, Server

SENT = b"> {'message': 'Hello world!'}\n"
ECHOED = b"""< '{"echo": {"message": "Hello world!"}}'\n"""


class Run:
    """The example as a process, what it has printed, and how it ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> bytes:
        assert self.process.stdout
        return await asyncio.wait_for(self.process.stdout.readline(), TIMEOUT)

    async def end(self) -> tuple[int, bytes, str]:
        """Return its exit code, the rest of its output, and its errors, once it has ended by itself."""
        rest, errors = await asyncio.wait_for(self.process.communicate(), TIMEOUT)
        assert not UNWANTED.search(errors.decode()), errors.decode()
        assert self.process.returncode is not None
        return self.process.returncode, rest, errors.decode()


@asynccontextmanager
async def run_example(url: str, shell: str = "") -> AsyncIterator[Run]:
    """Run the example, in a directory where nothing of the project is near; a shell may prepare something before."""
    with tempfile.TemporaryDirectory() as directory:
        script = shutil.copy(ROOT / "client_echo_example.py", directory)
        command = ["sh", "-c", f'{shell} exec "$@"', "sh", sys.executable, "-W", "error", script, "--url", url]
        pipe = asyncio.subprocess.PIPE
        # No PYTHONUNBUFFERED, which would hide a print that lacks its flush.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        process = await asyncio.create_subprocess_exec(
            *command, cwd=directory, env=environment, stdout=pipe, stderr=pipe
        )
        try:
            yield Run(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


async def test_prints_what_it_sends_and_what_comes_back(server: Server) -> None:
    async with run_example(f"{server.url}/echo") as example:
        assert sorted([await example.line(), await example.line()]) == [ECHOED, SENT]


async def test_sends_again_at_every_interval(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import client_echo_example

    monkeypatch.setattr(client_echo_example, "INTERVAL", 0.01)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # those of this process stay
    ending = asyncio.create_task(client_echo_example.run(f"{server.url}/echo"))
    async with asyncio.timeout(TIMEOUT):
        output = ""
        while output.count("\n<") < 3:
            await asyncio.sleep(0.01)
            output += capsys.readouterr().out
    await asyncio.to_thread(server.stop)
    assert await ending == f"{server.url}/echo: the server closed the connection."


@pytest.mark.parametrize(
    ("signal_number", "shell"), [(signal.SIGINT, ""), (signal.SIGTERM, ""), (signal.SIGTERM, "trap '' INT;")]
)
async def test_says_goodbye(aiohttp_server: Any, signal_number: signal.Signals, shell: str) -> None:
    close_codes = []

    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for _ in websocket:
            pass
        close_codes.append(websocket.close_code)
        return websocket

    app = web.Application()
    app.router.add_get("/", view)
    server = await aiohttp_server(app)
    async with run_example(str(server.make_url("/")), shell) as example:
        assert await example.line() == SENT
        example.process.send_signal(signal_number)
        assert await example.end() == (0, b"", "")
    await asyncio.wait_for(server.close(), TIMEOUT)
    assert close_codes == [1000]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
async def test_server_goes_away(start_server: Callable[..., Server], signal_number: signal.Signals) -> None:
    server = start_server()
    async with run_example(f"{server.url}/echo") as example:
        assert {await example.line(), await example.line()} == {SENT, ECHOED}
        server.process.send_signal(signal_number)
        assert await example.end() == (1, b"", f"{server.url}/echo: the server closed the connection.\n")
    server.process.wait()


async def test_shows_frames_that_it_does_not_expect(aiohttp_server: Any) -> None:
    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.receive()
        await websocket.send_str("not JSON \x1b[2J")
        await websocket.send_bytes(b"\xff\x00")
        await websocket.send_str("[]")
        await websocket.close()
        return websocket

    app = web.Application()
    app.router.add_get("/", view)
    url = str((await aiohttp_server(app)).make_url("/"))
    async with run_example(url) as example:
        output = SENT + b"< 'not JSON \\x1b[2J'\n" + b"< b'\\xff\\x00'\n" + b"< '[]'\n"
        assert await example.end() == (1, output, f"{url}: the server closed the connection.\n")
