"""What goes wrong with clients, against a real server process: each test fails without the line that is against it."""

import asyncio
import itertools
import random
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TIMEOUT, Member, RawClient, Server, eventually

Join = Callable[..., Awaitable[Member]]
ConnectRaw = Callable[..., Awaitable[RawClient]]

MEBIBYTE = 1024 * 1024


@pytest.fixture
def fresh_server(start_server: Callable[..., Server]) -> Server:
    """A server of one's own, because its memory is measured."""
    return start_server()


def peak_memory(server: Server) -> int:
    """Return the most memory that the server has had so far, in bytes; 0 on a system that does not tell."""
    status = Path(f"/proc/{server.process.pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def drops(server: Server) -> list[str]:
    """Return the warnings in the log, without their times."""
    return [line.split(maxsplit=3)[3] for line in server.log.splitlines() if " WARNING " in line]


async def stall(connect_raw: ConnectRaw, server: Server) -> tuple[RawClient, str]:
    """Let a member in that reads nothing after its first message; return it and its name."""
    raw = await connect_raw(server.url, receive_buffer=4096)
    user = (await raw.hear())["user"]
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    return raw, user


def assert_dropped(server: Server, user: str) -> None:
    """See that one warning says who was dropped, where, and with how many bytes, not far beyond the bound."""
    (warning,) = drops(server)
    found = re.fullmatch(rf"Dropped '{user}' in 'default' as too slow: (\d+) bytes unsent", warning)
    assert found, warning
    assert MEBIBYTE < int(found[1]) < 2 * MEBIBYTE


async def test_member_that_stops_reading(fresh_server: Server, join: Join, connect_raw: ConnectRaw) -> None:
    amy, bob = await join(fresh_server.url), await join(fresh_server.url)
    assert await amy.hear() == {"action": "joined", "room": "default", "user": bob.user}
    _, user = await stall(connect_raw, fresh_server)
    before = peak_memory(fresh_server)
    message = "x" * 8_000
    shamed: list[str] = []

    async def next_message(member: Member) -> Any:
        """Return the next body, noting and passing over who came and left."""
        while (body := await member.hear())["action"] in ("joined", "left"):
            if body == {"action": "left", "room": "default", "user": user, "shame": True}:
                shamed.append(member.user)
        return body

    # If anybody waited for the stalled member, this would never end.
    for _ in range(1_500):
        for speaker, listener in ((amy, bob), (bob, amy)):
            await speaker.websocket.send_json({"action": "chat_message", "message": message})
            assert await next_message(listener) == {"action": "chat_message", "message": message, "user": speaker.user}
            assert await next_message(speaker) == {"action": "chat_message", "success": True, "message": message}

    assert sorted(shamed) == sorted([amy.user, bob.user])
    await eventually(lambda: drops(fresh_server))
    assert_dropped(fresh_server, user)
    assert peak_memory(fresh_server) - before < 16 * MEBIBYTE


@pytest.mark.parametrize("what", ["requests", "lists", "pings", "nonsense"])
async def test_member_that_sends_and_never_reads(
    fresh_server: Server, join: Join, connect_raw: ConnectRaw, what: str
) -> None:
    """Confirmations, refusals and pongs go through the same bound as broadcasts."""
    witness = await join(fresh_server.url)
    raw, user = await stall(connect_raw, fresh_server)
    assert await witness.hear() == {"action": "joined", "room": "default", "user": user}
    before = peak_memory(fresh_server)
    data = {
        "requests": raw.text(action="chat_message", message="x" * 1_000) * 10,
        "lists": raw.text(action="user_list", room="default") * 100,
        "pings": raw.frame(9, b"x" * 125) * 100,
        "nonsense": raw.text(action="x" * 1_000) * 10,
    }[what]
    dropping = asyncio.create_task(eventually(lambda: drops(fresh_server)))
    with_its_end = asyncio.create_task(until_it_left(witness, user))
    while not dropping.done():
        raw.writer.write(data)
        # Stay ahead of the server, but not by more than it can take.
        await asyncio.sleep(0)
        if raw.writer.transport.get_write_buffer_size() > MEBIBYTE:
            await asyncio.sleep(0.01)
    await dropping
    assert await with_its_end == {"action": "left", "room": "default", "user": user, "shame": True}
    assert_dropped(fresh_server, user)
    assert peak_memory(fresh_server) - before < 16 * MEBIBYTE
    assert await witness.catch_up() == []


async def until_it_left(witness: Member, user: str) -> Any:
    """Return what the witness hears when a user has left, after all that it said."""
    while (body := await witness.hear())["action"] == "chat_message":
        assert body["user"] == user
    return body


async def test_echo_that_is_never_read(fresh_server: Server, connect_raw: ConnectRaw) -> None:
    raw = await connect_raw(fresh_server.url, "/echo", receive_buffer=4096)
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    before = peak_memory(fresh_server)
    while not raw.writer.transport.is_closing():
        raw.writer.write(raw.frame(1, b'"' + b"x" * 10_000 + b'"') * 10)
        await asyncio.sleep(0.001)
    await eventually(lambda: drops(fresh_server))
    assert re.fullmatch(r"Dropped 127\.0\.0\.1, of /echo, as too slow: \d+ bytes unsent", "".join(drops(fresh_server)))
    assert peak_memory(fresh_server) - before < 16 * MEBIBYTE


async def test_flood(start_server: Callable[..., Server], join: Join, connect_raw: ConnectRaw) -> None:
    """While one member floods a room of 200, a member of another room gets its turn after every message."""
    server = start_server("--verbose")
    for _ in range(200):
        listener = await connect_raw(server.url)
        # It reads, and throws away.
        listener.reader.feed_data = lambda data: None  # type: ignore[method-assign]
    flooder, other = await connect_raw(server.url), await connect_raw(server.url)
    other.writer.write(other.text(action="join_room", room="quiet room"))
    await eventually(lambda: "to 'quiet room'" in server.log.splitlines()[-1])
    server.process.send_signal(signal.SIGSTOP)
    for raw in (flooder, other):
        raw.writer.write(raw.text(action="chat_message", message="x") * 400)
        await raw.writer.drain()
    server.process.send_signal(signal.SIGCONT)  # and it finds all of that at once
    await eventually(lambda: server.log.count(" says 'x'") == 800)
    rooms = re.findall(r"in '(.*)' says 'x'", server.log)
    assert max(len(list(run)) for _, run in itertools.groupby(rooms)) < 20


async def test_many_members_die_at_once(server: Server, join: Join, connect_raw: ConnectRaw) -> None:
    survivor = await join(server.url)
    doomed = [await connect_raw(server.url) for _ in range(300)]
    names = {(await survivor.hear())["user"] for _ in doomed}
    for raw in doomed:
        raw.vanish()
    gone = [await survivor.hear() for _ in doomed]
    assert {body["user"] for body in gone} == names
    assert all(body == {**body, "action": "left", "room": "default", "shame": True} for body in gone)
    assert (await survivor.ask(action="user_list", room="default"))["users"] == [survivor.user]


async def test_members_come_and_go_at_random(server: Server, join: Join, connect_raw: ConnectRaw) -> None:
    """150 members connect, rename, talk, move, ask and vanish; in the end the server knows exactly who is there."""
    choose = random.Random(20260101)
    rooms = [f"room {number}" for number in range(6)]
    present: dict[str, set[str]] = defaultdict(set)
    watcher = await join(server.url, "watcher", "a room apart")

    async def live(number: int) -> None:
        raw = await connect_raw(server.url)
        user, room = (await raw.hear())["user"], "default"

        async def ask(**body: Any) -> Any:
            raw.writer.write(raw.text(**body))
            while "success" not in (answer := await raw.hear()):
                pass
            assert answer["action"] == body["action"]
            return answer

        for _ in range(choose.randrange(5, 25)):
            match choose.randrange(5):
                case 0:
                    nick = f"nick {choose.randrange(100)}"
                    user = nick if (await ask(action="set_nick", nick=nick))["success"] else user
                case 1:
                    new_room = choose.choice(rooms)
                    room = new_room if (await ask(action="join_room", room=new_room))["success"] else room
                case 2:
                    assert (await ask(action="chat_message", message="x" * choose.randrange(1, 2_000)))["success"]
                case 3:
                    users = (await ask(action="user_list", room=room))["users"]
                    assert Counter(users)[user] == 1
                case 4:
                    assert not (await ask(action=choose.choice(["dance", "", "set_nick"])))["success"]
        match number % 3:
            case 0:
                raw.vanish()
            case 1:
                raw.writer.write(raw.frame(8, b""))
                raw.writer.close()
            case _:
                present[room].add(user)
                # It stays, and reads on.
                raw.reader.feed_data = lambda data: None  # type: ignore[method-assign]

    await asyncio.gather(*map(live, range(150)))

    async def known() -> dict[str, set[str]]:
        answers = [await watcher.ask(action="user_list", room=room) for room in ("default", *rooms)]
        assert all(len(answer["users"]) == len(set(answer["users"])) for answer in answers)
        return {answer["room"]: set(answer["users"]) for answer in answers if answer["users"]}

    async with asyncio.timeout(TIMEOUT):
        while await known() != present:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert sum(map(len, present.values())) == 50
