"""examples/simple_server.py: the requests that it serves, and what the README shows going wrong."""

import asyncio
import functools
import importlib
import itertools
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.helpers import (
    HANDSHAKE,
    TIMEOUT,
    ConnectRaw,
    Join,
    Member,
    eventually,
    joined,
    said,
    succeeded,
)
from tests.server.chat import Chat

simple_server: Any = importlib.import_module("examples.simple_server")

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")


@pytest.fixture
async def simple(
    serve: Any, join: Join, connect_raw: ConnectRaw, monkeypatch: pytest.MonkeyPatch
) -> Chat:
    """The simple server, served in this process, to bare clients that do not compress."""
    monkeypatch.delitem(HANDSHAKE, "Sec-WebSocket-Extensions")
    app = simple_server.init_app()
    url = await serve(app)
    return Chat(app, url, functools.partial(join, url), functools.partial(connect_raw, url))


@pytest.mark.parametrize(
    ("request_body", "response", "broadcast"),
    [
        (said("Bob", "hi"), succeeded("chat_message", "hi"), said("Bob", "hi")),
        (
            {"action": "set_nick", "nick": "Rob"},
            succeeded("set_nick"),
            {"action": "nick_changed", "room": "math", "from_user": "Bob", "to_user": "Rob"},
        ),
        ({"action": "set_nick", "nick": "Amy"}, "set_nick", None),
        (
            {"action": "join_room", "room": "art"},
            succeeded("join_room"),
            {"action": "left", "room": "math", "user": "Bob"},
        ),
        ({"action": "join_room", "room": "math"}, "join_room", None),
        (
            {"action": "user_list", "room": "math"},
            {"action": "user_list", "success": True, "room": "math", "users": ["Amy", "Bob"]},
            None,
        ),
        ({"action": "dance"}, "dance", None),
    ],
)
async def test_requests(simple: Chat, request_body: Any, response: Any, broadcast: Any) -> None:
    amy, bob = await simple.join("Amy", "math"), await simple.join("Bob", "math")
    assert await amy.catch_up() == [joined("math", "Bob")]
    if isinstance(response, str):  # the action of a refusal
        response = {"action": response, "success": False, "message": "This can't be done."}
    assert await bob.ask(**request_body) == response
    assert await amy.catch_up() == ([broadcast] if broadcast else [])
    assert await bob.catch_up() == []


async def test_member_that_stops_reading(simple: Chat) -> None:
    """It holds up the room. (Mended by utils.send.)"""
    raw, user = await simple.connect(receive_buffer=4096)
    raw.stop_reading()
    transport = simple.app["websockets"]["default"][user]._req.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    amy, bob = await simple.join(), await simple.join()
    await amy.catch_up()

    async def talk() -> None:
        for _ in range(10):
            await amy.ask(action="chat_message", message="x" * 60_000)

    talking = asyncio.create_task(talk())
    await eventually(
        lambda: transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]
    )
    await bob.catch_up()
    for _ in range(100):
        assert await bob.catch_up() == []
    assert not talking.done()
    raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
    reading = asyncio.create_task(raw.reader.read())
    await asyncio.wait_for(talking, TIMEOUT)
    reading.cancel()


async def test_flood(simple: Chat) -> None:
    """Others wait until all that one client has sent is done. (Mended by utils.receive.)"""
    witness = await simple.join()
    flooder, other = await simple.connect_raw(), await simple.connect_raw()
    for raw in flooder, other:
        raw.writer.write(raw.text(action="chat_message", message="x") * 400)
    speakers: list[str] = []
    while len(speakers) < 800:
        if (body := await witness.receive())["action"] == "chat_message":
            speakers.append(body["user"])
    assert max(len(list(run)) for _, run in itertools.groupby(speakers)) > 100


async def test_vanished_clients(simple: Chat, caplog: pytest.LogCaptureFixture) -> None:
    """One fails because of another, so not all receive "left". (Mended by utils.flush.)"""
    first, second, witness = [await simple.join() for _ in range(3)]
    await witness.catch_up()
    for member in first, second:
        member.vanish()
    await eventually(lambda: simple.who() == {"default": [witness.user]})
    lefts = [body["user"] for body in await witness.catch_up()]
    assert lefts in ([first.user], [second.user])
    assert "Cannot write to closing transport" in caplog.text


async def test_bad_json(simple: Chat, caplog: pytest.LogCaptureFixture) -> None:
    """It ends the connection, with a traceback. (Mended by utils.read_json.)"""
    bob = await simple.join()
    await bob.websocket.send_str("nonsense")
    assert (await bob.websocket.receive(TIMEOUT)).type is aiohttp.WSMsgType.CLOSED
    assert bob.websocket.close_code == 1006  # no close frame came
    assert "JSONDecodeError" in caplog.text


async def test_shutdown() -> None:
    """The server waits for its members, and then breaks off. (Mended by server.shutdown.)"""
    runner = web.AppRunner(simple_server.init_app(), shutdown_timeout=0.01)  # by default, 60 s
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/chat"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as websocket:
        member = Member(websocket, await websocket.receive_json(timeout=TIMEOUT))
        assert await member.catch_up() == []
        await runner.cleanup()
        assert (await websocket.receive(TIMEOUT)).type is aiohttp.WSMsgType.CLOSED
        assert websocket.close_code == 1006  # no close frame came
