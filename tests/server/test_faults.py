"""What goes wrong with clients. Each test fails without the line of code that is against it."""

import asyncio
import json
import re
import socket
import sys
import time
from typing import Any
from unittest.mock import Mock

import pytest

import server
import utils
from tests.helpers import TIMEOUT, Join, Member, StartServer, eventually
from tests.helpers import left, said, succeeded
from tests.server.helpers import Chat, frame, longest_run, see_visit

FLOODS = {"pongs": frame(9, b"x" * 125), "echo": frame(1, b'"' + b"x" * 1_000 + b'"')}
FLOODS["responses"] = frame(1, json.dumps(said("me", "x" * 1_000)).encode())
FLOODS["refusals"] = frame(1, json.dumps({"action": "x" * 1_000}).encode())


async def is_dropped(member: Member, data: bytes) -> None:
    """Send without a pause until the connection breaks."""
    async with asyncio.timeout(TIMEOUT):
        while not member.transport.is_closing():
            if not member.transport.get_write_buffer_size():
                member.transport.write(data)
            await asyncio.sleep(0)


@pytest.mark.parametrize("what", FLOODS)
async def test_client_that_sends_and_never_reads(
    chat: Chat, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All that it is sent counts, and little more than allowed is kept for it."""
    client = await chat.join(path="echo" if what == "echo" else "chat")
    client.transport.pause_reading()
    await is_dropped(client, FLOODS[what] * 10)
    (size,) = re.findall(r"Dropped a client as too slow: (\d+) bytes unsent", caplog.text)
    assert utils.MAX_BACKLOG < int(size) < 2 * utils.MAX_BACKLOG


async def test_member_that_stops_reading(chat: Chat) -> None:
    """Nobody waits for it, and the others receive all messages, and that it has left."""
    speaker, listener, lazy = [await chat.join() for _ in range(3)]
    lazy.transport.pause_reading()
    await listener.catch_up()
    sent, received = 0, list[Any]()
    while left("default", lazy.user, shame=True) not in received:
        await speaker.say("x" * 60_000)
        sent += 1
        received += await listener.catch_up()
    received.remove(left("default", lazy.user, shame=True))
    assert received == [said(speaker.user, "x" * 60_000)] * sent


@pytest.mark.parametrize("last_frame", [frame(8, b""), frame(3, b"broken")])
async def test_end_of_a_client_that_does_not_read(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, last_frame: bytes
) -> None:
    """Its connection ends all the same, during a shutdown, too; clients that connect get 1001."""
    monkeypatch.setattr(utils, "CLOSE_TIMEOUT", 0.2)
    lazy = await chat.join()
    lazy.transport.pause_reading()
    transport = chat.app["websockets"]["default"][lazy.user].transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for _ in range(50):
        await lazy.send(action="chat_message", message="x" * 10_000)
    lazy.transport.write(last_frame)
    await eventually(lambda: not chat.who())
    slow = await chat.join()  # it does not respond to its close frame at once
    chat.app["websockets"]["default"][slow.user].outbox.append(utils.encode("before"))
    ending = asyncio.create_task(chat.app.shutdown())
    late = await chat.join(path="echo")
    assert await slow.receive() == "before"
    assert await late.close_code() == await slow.close_code() == 1001
    await asyncio.wait_for(ending, TIMEOUT)
    await is_dropped(lazy, b"x")


# A limit, a rate, and a request that costs 2, 100, 4 and 30 seconds then, after a burst of one.
COSTS = [("DELIVERY_RATE", utils.MIN_COST / 2, said("Bob", "x"))]  # in bytes, a quarter of a second
COSTS += [("DELIVERY_RATE", utils.MIN_COST / 100, {"action": "user_list", "room": "math"})]
COSTS += [("MAX_RATE", utils.MIN_COST / 4, {"action": "user_list", "room": "x"})]  # fewer bytes
COSTS += [("MAX_RATE", utils.MIN_COST * 4, said("Bob", "x" * 60_000))]


@pytest.mark.parametrize(("limit", "rate", "body"), COSTS)
async def test_client_pays(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, limit: str, rate: float, body: dict[str, str]
) -> None:
    """Bob waits before his next requests, because of what he sends and of what that causes."""
    bob, amy = await chat.join("Bob", "math"), await chat.join("Amy", "math")
    await bob.catch_up()
    burst = time.monotonic() - chat.app["websockets"]["math"]["Bob"].paid_until
    assert burst > 0.9
    for module in {utils, server, sys.modules.get("examples.server_redis", utils)}:
        monkeypatch.setattr(module, limit, rate, raising=False)
    for _ in range(3):
        await bob.send(**body)
    waiting = asyncio.create_task(bob.catch_up())
    for _ in range(20):
        await chat.join(path="echo")
    await amy.catch_up()
    assert not waiting.done()
    waiting.cancel()


@pytest.mark.parametrize("app", ["server"], indirect=True)
async def test_flood(chat: Chat) -> None:
    assert await longest_run(chat) < 20


@pytest.mark.parametrize("app", ["server"], indirect=True)
async def test_many_fragments(chat: Chat) -> None:
    """Others are served while a client's fragments arrive, which are read bit by bit."""
    amy, bob = await chat.join(), await chat.join()
    amy.transport.write(frame(1, b'{"action": "chat_message", ', first_bits=0))
    amy.transport.write(frame(0, b"", first_bits=0) * 200_000)
    amy.transport.write(frame(0, b'"message": "the end"}'))
    for _ in range(10):
        assert await bob.catch_up() == []
    assert await bob.receive() == said(amy.user, "the end")


@pytest.mark.parametrize("app", ["server"], indirect=True)
async def test_write_that_fails(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others receive this message and the next one, each in one write."""
    *_, eve = [await chat.join(nick, "math") for nick in ("Amy", "Bad", "Eve")]
    sockets = chat.app["websockets"]["math"]
    write = Mock(wraps=sockets["Amy"].transport.write)
    monkeypatch.setattr(sockets["Amy"].transport, "write", write)
    monkeypatch.setattr(sockets["Bad"].transport, "write", Mock(side_effect=ZeroDivisionError))
    monkeypatch.setattr(utils, "MAX_WRITES", 2)
    for number in range(3):
        utils.send(utils.encode(number), sockets.values())
    assert [await eve.receive() for _ in range(4)] == [0, 1, 2, left("math", "Bad", shame=True)]
    assert write.call_count == 2
    assert caplog.text.count("Traceback") == caplog.text.count("ZeroDivisionError") == 1
    caplog.clear()  # there is nothing else in it


async def test_early_end(aiohttp_client: Any, join: Join, monkeypatch: Any, caplog: Any) -> None:
    """aiohttp's own test server cancels a view when its client hangs up; a bug ends one, too."""
    url = (await aiohttp_client(await server.init_app())).make_url("/")
    witness, killed = await join(url), await join(url)
    killed.vanish()
    await see_visit(witness, killed.user, shame=True)
    unlucky = await join(url)
    monkeypatch.setattr(utils.User, "change_nick", None)
    await unlucky.send(action="set_nick", nick="Bob")
    assert await unlucky.close_code() == 1001
    await see_visit(witness, unlucky.user, shame=False)
    server.LogFilter().filter(caplog.records[0])
    assert caplog.records[0].exc_info  # its traceback is logged


async def test_no_more_files(start_server: StartServer, join: Join) -> None:
    """Members notice nothing, the log says so once, and later others can connect again."""
    server = start_server(files=60)
    bob = await join(server.url, "Bob", "math")
    crowd = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    await eventually(lambda: "Too many open files" in server.log)
    assert await bob.ask(action="chat_message", message="x") == succeeded("chat_message", "x")
    for plain in crowd:
        plain.close()
    await join(server.url, "Amy", "math")
    assert server.log.count("Too many open files") == 1
