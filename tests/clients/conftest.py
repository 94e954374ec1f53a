"""The fixtures of the client scripts' tests."""

import asyncio
import os
import runpy
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from server import init_app
from tests.helpers import ROOT, TIMEOUT

Talk = Callable[[web.WebSocketResponse], Awaitable[object]]
ServeApp = Callable[[web.Application], Awaitable[URL]]
Serve = Callable[[Talk], Awaitable[URL]]
RunScript = Callable[[Any], Awaitable[str]]


@pytest.fixture
async def url(serve: ServeApp) -> URL:
    """The address of a chat in this process."""
    return await serve(await init_app()) / "chat"


@pytest.fixture
def serve_websocket(serve: ServeApp) -> Serve:
    """Start a server with `url = await serve_websocket(talk)`.

    It waits for the first message of a client, and leaves everything else to `talk`.
    """

    async def serve_websocket(talk: Talk) -> URL:
        async def view(request: web.Request) -> web.WebSocketResponse:
            websocket = web.WebSocketResponse(autoclose=False, autoping=False)
            await websocket.prepare(request)
            await websocket.receive()
            await talk(websocket)
            return websocket

        app = web.Application()
        app.router.add_get("/", view)
        return await serve(app)

    return serve_websocket


@pytest.fixture
def run_script(script: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunScript]:
    """Run the script with `await run_script(url)`; return the reason that it exits with."""

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
        # It runs in a thread, where Python has no signals.
        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_signal_handler", lambda *_: None)
        # It has to say how long it waits for a close frame.
        endless = aiohttp.ClientWSTimeout(ws_close=1000)
        monkeypatch.setattr(aiohttp.client, "DEFAULT_WS_CLIENT_TIMEOUT", endless)
        yield lambda url: asyncio.wait_for(asyncio.to_thread(run, str(url)), TIMEOUT)
