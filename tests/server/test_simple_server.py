"""examples/simple_server.py: the requests that it serves, and what the README shows going wrong."""

import asyncio
import socket

import aiohttp
import pytest
from aiohttp import web

from tests.helpers import TIMEOUT, Join, eventually
from tests.helpers import joined, listed, refused, said, succeeded
from tests.server.helpers import Chat, longest_run, renamed

pytestmark = [
    pytest.mark.parametrize("app", ["examples.simple_server"], indirect=True),
    pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning"),
]


async def test_requests(chat: Chat) -> None:
    amy, bob = await chat.join("Amy", "math"), await chat.join("Bob", "math")
    assert await bob.ask(action="chat_message", message="hi") == succeeded("chat_message", "hi")
    assert await bob.ask(action="set_nick", nick="Rob") == succeeded("set_nick")
    assert await bob.ask(action="user_list", room="math") == listed("math", "Amy", "Rob")
    for body in ({"action": "join_room", "room": "math"}, {"action": "set_nick", "nick": "Amy"}):
        assert await bob.ask(**body) == refused(body["action"], "This can't be done.")
    assert await bob.ask(action="dance") == refused("dance", "This can't be done.")
    assert await bob.ask(action="join_room", room="art") == succeeded("join_room")
    assert await bob.catch_up() == []
    changes = [joined("math", "Bob"), said("Bob", "hi"), renamed("math", "Bob", "Rob")]
    assert await amy.catch_up() == [*changes, {"action": "left", "room": "math", "user": "Rob"}]


async def test_member_that_stops_reading(chat: Chat) -> None:
    """It holds up the room. (Mended by utils.send.)"""
    lazy, amy, bob = [await chat.join() for _ in range(3)]
    lazy.transport.pause_reading()
    transport = chat.app["websockets"]["default"][lazy.user]._req.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await amy.catch_up()
    talking = asyncio.create_task(amy.say(*["x" * 60_000] * 10))
    await eventually(lambda: transport.get_write_buffer_size() > 64 * 1024)
    for _ in range(100):
        await bob.catch_up()
    assert not talking.done()
    lazy.transport.resume_reading()
    received = [await lazy.receive() for _ in range(12)]
    assert received[2:] == [said(amy.user, "x" * 60_000)] * 10
    await asyncio.wait_for(talking, TIMEOUT)


async def test_flood(chat: Chat) -> None:
    """Others wait until all that one client has sent is done. (Mended by utils.receive.)"""
    assert await longest_run(chat) > 100


async def test_vanished_clients(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    """One fails because of another, so not all receive "left". (Mended by utils.flush.)"""
    first, second, witness = [await chat.join() for _ in range(3)]
    await witness.catch_up()
    for member in first, second:
        member.vanish()
    await eventually(lambda: chat.who() == {"default": [witness.user]})
    assert [body["action"] for body in await witness.catch_up()] == ["left"]
    assert "Cannot write to closing transport" in caplog.text
    caplog.clear()


async def test_bad_json(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    """It ends the connection, with a traceback. (Mended by utils.read_json.)"""
    bob = await chat.join()
    await bob.websocket.send_str("nonsense")
    assert (await bob.websocket.receive(TIMEOUT)).type is aiohttp.WSMsgType.CLOSED
    assert bob.websocket.close_code == 1006  # no close frame came
    assert "JSONDecodeError" in caplog.text
    caplog.clear()


async def test_shutdown(app: web.Application, join: Join) -> None:
    """The server waits for its members, and then breaks off. (Mended by server.shutdown.)"""
    runner = web.AppRunner(app, shutdown_timeout=0.01)  # by default, 60 s
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    bob = await join(f"http://127.0.0.1:{runner.addresses[0][1]}")
    assert await bob.catch_up() == []
    await runner.cleanup()
    assert (await bob.websocket.receive(TIMEOUT)).type is aiohttp.WSMsgType.CLOSED
    assert bob.websocket.close_code == 1006  # no close frame came
