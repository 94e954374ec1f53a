"""The echo example: what it sends and prints. How it ends is in test_clients.py."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer
from yarl import URL

import client_echo_example
from server import init_app
from tests.conftest import TIMEOUT, Script

SENT = "> {'message': 'Hello world!'}\n"
ECHOED = """< '{"echo": {"message": "Hello world!"}}'\n"""


async def test_as_a_process(aiohttp_server: AiohttpServer, start_script: Callable[..., Awaitable[Script]]) -> None:
    url = (await aiohttp_server(await init_app())).make_url("/echo")
    script = await start_script("client_echo_example.py", "--url", url)
    assert [await script.line(), await script.line()] == [SENT, ECHOED]
    script.process.send_signal(signal.SIGINT)
    assert await script.end() == (0, "", "")


async def test_sends_again_at_every_interval(
    aiohttp_server: AiohttpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client_echo_example, "INTERVAL", 0.01)
    url = (await aiohttp_server(await init_app())).make_url("/echo")
    running, output = asyncio.create_task(client_echo_example.run(url)), ""
    async with asyncio.timeout(TIMEOUT):
        while output.count(ECHOED) < 3:
            await asyncio.sleep(0.01)
            output += capsys.readouterr().out
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert output.replace(SENT, "").replace(ECHOED, "") == ""


async def test_shows_what_it_does_not_expect(aiohttp_server: AiohttpServer, capsys: Any) -> None:
    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.receive()
        await websocket.send_str("not JSON \x1b[2J\u202e é")
        await websocket.send_bytes(b"\xff\x00")
        return websocket

    app = web.Application()
    app.router.add_get("/", view)
    await client_echo_example.run(URL((await aiohttp_server(app)).make_url("/")))
    assert capsys.readouterr().out == SENT + "< 'not JSON \\x1b[2J\\u202e \\xe9'\n< b'\\xff\\x00'\n"
