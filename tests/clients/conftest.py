"""The fixtures of the client scripts' tests."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import WSMsgType, web
from yarl import URL

from tests.helpers import Serve, eventually

ServeWebSocket = Callable[[Callable[[web.WebSocketResponse], Awaitable[object]]], Awaitable[URL]]


@pytest.fixture
def serve_websocket(serve: Serve) -> ServeWebSocket:
    """Start a server with `url = await serve_websocket(talk)`; after one message, `talk` begins."""

    async def serve_websocket(talk: Callable[[web.WebSocketResponse], Awaitable[object]]) -> URL:
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
async def busy_room(serve_websocket: ServeWebSocket) -> AsyncIterator[URL]:
    """The address of a server whose client must close the WebSocket, and read up to the end."""
    have_read: list[bool] = []  # each client up to the end

    async def talk(websocket: web.WebSocketResponse) -> None:
        have_read.append(False)
        body = {"action": "chat_message", "user": "Amy", "message": "Hello! \x9b2J"}
        received = None
        while received is not WSMsgType.CLOSE:
            await websocket.send_str(json.dumps(body, ensure_ascii=False))
            await websocket.ping()
            received = (await websocket.receive()).type  # a pong, when the message is read
        for _ in range(100):  # more than the system's buffers hold
            await websocket.send_json(body | {"message": "x" * 60_000})
        await websocket.close()
        have_read[-1] = True

    yield await serve_websocket(talk)
    await eventually(lambda: all(have_read))
