"""The fixtures of the client scripts' tests."""

import asyncio
import contextlib
import runpy
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer
from yarl import URL

from server import init_app
from tests.helpers import ROOT, TIMEOUT, Member, joined

Talk = Callable[[web.WebSocketResponse], Awaitable[object]]
Serve = Callable[[Talk], Awaitable[str]]
RunScript = Callable[[str], Awaitable[str]]
StartBot = Callable[[Any, str, Member], Awaitable[None]]


@pytest.fixture
def run_script(script: str, monkeypatch: pytest.MonkeyPatch) -> RunScript:
    """Run the script with `await run_script(url)`; return the reason that it exits with."""

    def run(url: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, "--url", url])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        sentence = str(end.value.code)
        assert sentence.isascii()
        assert sentence.isprintable()
        assert sentence.startswith(f"{url}: ")
        return sentence.removeprefix(f"{url}: ")

    return lambda url: asyncio.wait_for(asyncio.to_thread(run, url), TIMEOUT)


@pytest.fixture
def serve_websocket(aiohttp_server: AiohttpServer) -> Serve:
    """Start a server with `url = await serve_websocket(talk)`.

    It waits for the first message of a client, and leaves everything else to `talk`.
    """

    async def serve_websocket(talk: Talk) -> str:
        async def view(request: web.Request) -> web.WebSocketResponse:
            websocket = web.WebSocketResponse(autoclose=False)
            await websocket.prepare(request)
            await websocket.receive()
            with contextlib.suppress(ConnectionResetError):
                await talk(websocket)
            return websocket

        app = web.Application()
        app.router.add_get("/", view)
        return str((await aiohttp_server(app)).make_url("/"))

    return serve_websocket


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients ping 100 times as often, and wait less for a close frame."""
    connect = aiohttp.ClientSession.ws_connect

    def ws_connect(session: Any, url: str, heartbeat: float, **options: Any) -> Any:
        assert heartbeat == 20
        if timeout := options.get("timeout"):  # client.py has one of its own
            assert timeout.ws_close == 2
            options["timeout"] = aiohttp.ClientWSTimeout(ws_close=0.02)
        return connect(session, url, heartbeat=heartbeat / 100, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", ws_connect)


@pytest.fixture
async def url(serve: Callable[[web.Application], Awaitable[URL]]) -> URL:
    """The address of a chat in this process."""
    return await serve(await init_app()) / "chat"


@pytest.fixture
async def start_bot(url: URL) -> AsyncIterator[StartBot]:
    """Start bots with `await start_bot(math_client, "MathBot", alice)`; Alice sees them enter."""
    tasks = []

    async def start(module: Any, nick: str, witness: Member) -> None:
        tasks.append(asyncio.create_task(module.main(str(url))))
        body = await witness.receive()
        assert body == joined("math", body["user"])
        renamed = {"room": "math", "from_user": body["user"], "to_user": nick}
        assert await witness.receive() == {"action": "nick_changed"} | renamed

    yield start
    for task in tasks:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
