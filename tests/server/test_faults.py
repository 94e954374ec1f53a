"""What goes wrong with clients. Each test fails without the line of code that is against it."""

import asyncio
import itertools
import logging
import random
import re
import socket
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import utils
from server import init_app
from tests.helpers import (
    TIMEOUT,
    ConnectRaw,
    Join,
    Member,
    RawClient,
    Server,
    StartServer,
    eventually,
    left,
    said,
    succeeded,
)

MEBIBYTE = 1024 * 1024


def peak_memory(server: Server) -> int:
    """Return the most memory that the server has had so far, in bytes; 0 where it is unknown."""
    status = Path(f"/proc/{server.process.pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


# Members that do not read


async def test_member_that_stops_reading(
    start_server: StartServer, join: Join, connect_raw: ConnectRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it, the log says that it was dropped, and memory is bounded."""
    program = "import server, utils; utils.MAX_RATE = 2**30; server.main()"
    monkeypatch.setattr(Server, "script", ("-c", program))
    server = start_server()
    members = [await join(server.url) for _ in range(4)]
    raw = await connect_raw(server.url, receive_buffer=4096)
    user = (await raw.receive())["user"]
    raw.stop_reading()
    for member in members:
        await member.catch_up()
    before, message = peak_memory(server), "x" * 60_000
    speakers: list[Member] = []
    received: list[list[Any]] = [[] for _ in members]
    async with asyncio.timeout(TIMEOUT):  # if anybody waited for it, this would never end
        while not all(left("default", user, shame=True) in bodies for bodies in received):
            speakers.append(members[len(speakers) % 4])
            await speakers[-1].send(action="chat_message", message=message)
            for member, bodies in zip(members, received, strict=True):
                bodies += await member.catch_up()
    for member, bodies in zip(members, received, strict=True):
        bodies += await member.catch_up()  # the last message, if its end was read too late
        bodies.remove(left("default", user, shame=True))
        response = succeeded("chat_message", message)
        assert bodies == [
            response if speaker is member else said(speaker.user, message) for speaker in speakers
        ]
    (warning,) = re.findall(r"WARNING (.*)", server.log)
    found = re.fullmatch(r"Dropped \('127.0.0.1', \d+\) as too slow: (\d+) bytes unsent", warning)
    assert found, warning
    assert MEBIBYTE < int(found[1]) < 2 * MEBIBYTE
    assert peak_memory(server) - before < 16 * MEBIBYTE


FLOODS = {
    "messages": ("/chat", RawClient.text(action="chat_message", message="x" * 1_000)),
    "nonsense": ("/chat", RawClient.text(action="x" * 1_000)),
    "pings": ("/chat", RawClient.frame(9, b"x" * 125)),
    "echo": ("/echo", RawClient.frame(1, b'"' + b"x" * 1_000 + b'"')),
}


@pytest.mark.parametrize("what", FLOODS)
async def test_client_that_sends_and_never_reads(
    serve: Any,
    connect_raw: ConnectRaw,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Everything it is sent goes through the same bound: responses, refusals, pongs."""
    monkeypatch.setattr(utils, "MAX_RATE", 1024**4)
    monkeypatch.setattr(utils, "MAX_BACKLOG", 50_000)

    async def keep_little_in_the_system(request: web.Request, _: web.StreamResponse) -> None:
        assert request.transport
        request.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 4096
        )

    app = await init_app()
    app.on_response_prepare.append(keep_little_in_the_system)
    path, data = FLOODS[what]
    raw = await connect_raw(await serve(app), path, receive_buffer=4096)
    raw.stop_reading()
    async with asyncio.timeout(TIMEOUT):
        while not raw.writer.transport.is_closing():
            raw.writer.write(data * 10)
            await asyncio.sleep(0)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    found = re.fullmatch(r"Dropped \('127.0.0.1', \d+\) as too slow: (\d+) bytes unsent", warning)
    assert found, warning
    assert 50_000 < int(found[1]) < 200_000


# Members that send too much


async def test_flood(serve: Any, connect_raw: ConnectRaw, caplog: pytest.LogCaptureFixture) -> None:
    """While one member floods its room, a member of another room is served in between."""
    caplog.set_level(logging.DEBUG, "chat")
    url = await serve(await init_app())
    flooder, other = await connect_raw(url), await connect_raw(url)
    other.writer.write(other.text(action="join_room", room="quiet room"))
    await eventually(lambda: "to 'quiet room'" in caplog.text)
    for raw in (flooder, other):
        # All of it arrives at once.
        raw.writer.write(raw.text(action="chat_message", message="x") * 400)
    await eventually(lambda: caplog.text.count(" says 'x'") == 800)
    rooms = re.findall(r"in '(.*)' says 'x'", caplog.text)
    assert max(len(list(run)) for _, run in itertools.groupby(rooms)) < 20


# Members that leave


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
    assert server.log.count("\n") < 20
    assert server.log.count("Too many open files") == 1


async def test_members_come_and_go_at_random(server: Server, join: Join) -> None:
    """Many connect, rename, talk, move, leave and vanish; at the end, the user lists are right."""
    choose = random.Random(20260101)
    present: dict[str, list[str]] = defaultdict(list)

    async def live(number: int) -> None:
        member = await join(server.url)
        for _ in range(choose.randrange(5, 25)):
            requests = [
                {"action": "set_nick", "nick": f"nick {choose.randrange(100)}"},
                {"action": "join_room", "room": f"room {choose.randrange(6)}"},
                {"action": "chat_message", "message": "x" * choose.randrange(1, 2_000)},
                {"action": "user_list", "room": member.room},
            ]
            await member.send(**(request := choose.choice(requests)))
            while "success" not in (response := await member.receive()):
                pass
            if "users" in response:
                assert response["users"].count(member.user) == 1
            elif response["success"]:
                member.user = request.get("nick", member.user)
                member.room = request.get("room", member.room)
        if number % 3 == 0:
            member.vanish()
        elif number % 3 == 1:
            await member.leave()
        else:
            present[member.room].append(member.user)

    await asyncio.gather(*map(live, range(60)))
    await eventually(lambda: server.log.count(" disconnected") == 40)
    witness = await join(server.url, "witness", "a room apart")
    for room in ("default", *(f"room {number}" for number in range(6))):
        response = await witness.ask(action="user_list", room=room)
        assert sorted(response["users"]) == sorted(present[room])
    assert sum(map(len, present.values())) == 20
