"""One chat on many processes, and what can happen to them and to Redis. All processes here are real."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.helpers import (
    HANDSHAKE,
    TIMEOUT,
    ConnectRaw,
    Join,
    Member,
    Server,
    StartScript,
    eventually,
    left,
    run_engine,
    said,
)

with contextlib.suppress(ImportError):  # the markers skip the tests then
    from playwright.async_api import async_playwright, expect
    from redis import Redis

pytestmark = pytest.mark.needs("redis")


class Process(Server):
    script = ("-m", "examples.server_redis")


class Chat:
    """A Valkey server of its own, and the processes of one chat."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self.engine = engine
        self.url = engine.connection_url
        self.folder = folder
        self.processes: list[Process] = []

    def start(self, count: int) -> list[Process]:
        for _ in range(count):
            self.processes.append(Process(self.folder / f"{len(self.processes)}.log"))
        return self.processes

    def redis(self) -> Redis:
        return Redis.from_url(self.url, decode_responses=True)


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join: Join) -> Iterator[Chat]:
    """The chat of a test; it ends before its members do, who would wait for stopped processes."""
    with run_engine(tmp_path / "valkey") as engine:
        chat = Chat(engine, tmp_path)
        monkeypatch.setenv("REDIS_URL", chat.url)
        try:
            yield chat
            running = [process for process in chat.processes if process.process.poll() is None]
            for process in running:
                process.process.terminate()
            for process in running:
                process.process.wait(TIMEOUT)
                process.stop()
        finally:
            for process in chat.processes:
                process.process.kill()
                process.process.wait()


async def respond(member: Member, **request: Any) -> tuple[Any, list[Any]]:
    """Send a request; return the response, and what was heard before it."""
    await member.websocket.send_json(request)
    heard = []
    while "success" not in (body := await member.hear()):
        heard.append(body)
    return body, heard


async def hear_end(member: Member) -> tuple[int | None, list[Any]]:
    """Return the code with which the server closes, and what is heard before it."""
    heard = []
    while (message := await member.websocket.receive(TIMEOUT)).type is aiohttp.WSMsgType.TEXT:
        heard.append(message.json())
    return member.websocket.close_code, heard


async def join_again(join: Join, url: str, *place: str) -> Member:
    """Join as soon as the process is in touch with Redis."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                return await join(url, *place)
            except (
                aiohttp.WSServerHandshakeError,
                aiohttp.WSMessageTypeError,
            ):  # the latter is the end at once
                await asyncio.sleep(0.05)


async def is_refused(url: str) -> None:
    """Wait for a 503 with a sentence, as long as it takes."""
    async with asyncio.timeout(TIMEOUT), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/chat", headers=HANDSHAKE) as response:
                if response.status == 503:
                    assert len((await response.text()).split()) > 3
                    return
            await asyncio.sleep(0.05)


async def test_one_winner(chat: Chat, join: Join) -> None:
    processes = chat.start(3)
    members = [await join(process.url) for process in islice(cycle(processes), 30)]
    for number in range(100):
        request = {"action": "set_nick", "nick": f"name {number}"}
        responses = await asyncio.gather(*(respond(member, **request) for member in members))
        assert Counter(body["success"] for body, _ in responses) == {True: 1, False: 29}


async def test_one_order(chat: Chat, join: Join) -> None:
    """While twelve talk, rename themselves, come and go: all watchers hear the same."""
    processes = cycle(chat.start(3))
    watchers = [await join(next(processes).url, f"watcher {number}", "math") for number in range(8)]
    talkers = [await join(next(processes).url, f"talker {number}", "math") for number in range(12)]
    for member in watchers + talkers:
        await member.catch_up()

    async def talk(member: Member) -> None:
        """Never hear of oneself; nothing of a room one is not in, or not yet in."""
        own, room = {member.user}, "math"
        for number in range(30):
            _, heard = await respond(
                member, action="chat_message", message=f"{number} of {member.user}"
            )
            if number % 5 == 0:
                member.user += "'"
                own.add(member.user)
                heard += (await respond(member, action="set_nick", nick=member.user))[1]
            elif number % 5 == 2:
                heard += (await respond(member, action="join_room", room="art"))[1]
                room, (_, elsewhere) = (
                    "math",
                    await respond(member, action="join_room", room="math"),
                )
                assert all(body.get("room", "art") == "art" for body in elsewhere)
                assert not any("watcher" in body.get("user", "") for body in elsewhere)
            assert all(body.get("room", room) == room for body in heard)
            assert not own & {body.get("user", body.get("from_user")) for body in heard}

    async def watch(member: Member) -> list[Any]:
        """Follow who is in the room, compare it with the lists that the server gives; return what was heard."""
        users, history = {other.user for other in watchers + talkers}, list[Any]()
        while not history or history[-1].get("message") != "the end":
            await member.websocket.send_json({"action": "user_list", "room": "math"})
            while "users" not in (body := await member.hear()):
                history.append(body)
                match body:
                    case {"action": "joined", "user": user}:
                        users.add(user)
                    case {"action": "left", "user": user}:
                        users.remove(user)
                    case {"action": "nick_changed", "from_user": old, "to_user": new}:
                        users = users - {old} | {new}
            assert sorted(body["users"]) == sorted(users)
        return history

    async def talk_all() -> None:
        await asyncio.gather(*map(talk, talkers))
        await respond(talkers[0], action="chat_message", message="the end")

    histories, _ = await asyncio.gather(asyncio.gather(*map(watch, watchers)), talk_all())
    assert len(histories[0]) == 12 * (30 + 6 + 2 * 6) + 1
    assert all(history == histories[0] for history in histories)


async def test_silence(chat: Chat, join: Join) -> None:
    """Nobody takes it for the end of a process, which may give no sign of life for 5 s."""
    amy, bob = [await join(process.url, room="math") for process in chat.start(2)]
    assert (await respond(amy, action="chat_message", message="before"))[0]["success"]
    await asyncio.sleep(7)
    assert (await respond(amy, action="chat_message", message="after"))[0]["success"]
    assert await bob.catch_up() == [said(amy.user, "before"), said(amy.user, "after")]


async def test_processes_that_end(chat: Chat, join: Join) -> None:
    """One is killed, one is shut down, and one is stopped for 8 s, at the same time."""
    killed, ended, stopped, *others = chat.start(5)
    watchers = [await join(process.url, f"watcher {process.port}") for process in others]
    sizes = {killed: 50, ended: 20, stopped: 20}
    names = {
        process: [f"{process.port} {number}" for number in range(sizes[process])]
        for process in sizes
    }
    members = {
        process: [await join(process.url, name) for name in names[process]] for process in names
    }
    for watcher in watchers:
        await watcher.catch_up()

    killed.process.kill()
    killed.process.wait()
    stopped.process.send_signal(signal.SIGSTOP)
    await members[stopped][0].websocket.send_json(
        {"action": "chat_message", "message": "posthumous"}
    )
    ended.process.terminate()
    ending = asyncio.gather(*map(hear_end, members[ended]))
    shame = {name: [process is not ended] for process in names for name in names[process]}
    for watcher in watchers:
        left: dict[str, list[bool]] = defaultdict(list)
        for number in range(90):
            body = await watcher.hear()
            assert (body["action"], body["room"]) == ("left", "default")
            left[body["user"]].append(body["shame"])
            assert number >= 20 or body["user"] in names[ended]  # nobody waits for those
        assert left == shame
    assert {code for code, _ in await ending} == {1001}

    await asyncio.sleep(2)  # it has been stopped for 6 to 7 s by now
    stopped.process.send_signal(signal.SIGCONT)
    assert {(await hear_end(member))[0] for member in members[stopped]} == {1012}
    again = await join_again(join, stopped.url, names[stopped][0])
    await join(others[0].url, names[killed][0])
    assert (await respond(again, action="chat_message", message="back"))[0]["success"]
    for watcher in watchers:
        heard = await watcher.catch_up()
        assert {body["action"] for body in heard} == {"joined", "nick_changed", "chat_message"}
        assert [body["message"] for body in heard if "message" in body] == ["back"]


@pytest.mark.parametrize("fault", ["killed", "old snapshot", "stopped", "flushed"])
async def test_engine_that_fails(chat: Chat, join: Join, fault: str) -> None:
    processes = chat.start(2)
    members = [
        await join(process.url, f"member of {process.port}", "math") for process in processes
    ]
    with chat.redis() as redis:
        if fault == "old snapshot":
            redis.save()
        if fault == "flushed":
            redis.flushall()
    if fault == "stopped":
        chat.engine._process.send_signal(signal.SIGSTOP)
    elif fault != "flushed":
        chat.engine.terminate()
    assert [(await hear_end(member))[0] for member in members] == [1012, 1012]
    if fault != "flushed":
        await asyncio.gather(*(is_refused(process.url) for process in processes))
        if fault == "stopped":
            await asyncio.sleep(4)
            chat.engine._process.send_signal(signal.SIGCONT)
        else:
            chat.engine.start()
    # Everybody can come again, on the other process, too: no ghost has kept a name.
    again = [
        await join_again(join, process.url, member.user, "math")
        for process, member in zip(processes[::-1], members, strict=True)
    ]
    users, _ = await respond(again[0], action="user_list", room="math")
    assert sorted(users["users"]) == sorted(member.user for member in members)
    assert (await respond(again[1], action="user_list", room="default"))[0]["users"] == []
    with chat.redis() as redis:
        assert redis.hlen("chat:names") == 2
        await eventually(lambda: redis.zcard("chat:processes") == 2)


async def test_connections_that_are_cut(chat: Chat, join: Join) -> None:
    """Who stays connected has lost nothing: what one hears of anyone who talks has no gap."""
    processes = chat.start(2)
    is_over = asyncio.Event()
    sessions = 0

    async def talk(process: Process) -> None:
        nonlocal sessions
        while not is_over.is_set():
            member = await join_again(join, process.url)
            sessions += 1
            said = 0
            heard: dict[str, list[int]] = defaultdict(list)
            with contextlib.suppress(
                aiohttp.ClientError, TypeError
            ):  # TypeError: the end instead of a body
                while not is_over.is_set():
                    _, bodies = await respond(member, action="chat_message", message=str(said))
                    said += 1
                    for body in bodies:
                        if body["action"] == "chat_message":
                            heard[body["user"]].append(int(body["message"]))
            for numbers in heard.values():
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

    talking = [asyncio.create_task(talk(process)) for process in islice(cycle(processes), 20)]
    with chat.redis() as redis:
        for _ in range(10):
            await asyncio.sleep(0.5)
            redis.client_kill_filter(_type="normal", skipme=True)
    is_over.set()
    await asyncio.gather(*talking)
    assert sessions > 20


async def test_member_that_stops_reading(chat: Chat, join: Join, connect_raw: ConnectRaw) -> None:
    """It is dropped as on the plain server, whoever it is that it does not hear, and the log in Redis stays short."""
    near, far = chat.start(2)
    amy, bob = await join(near.url, "Amy"), await join(far.url, "Bob")
    raw = await connect_raw(far.url, receive_buffer=4096)
    user = (await raw.hear())["user"]
    raw.stop_reading()
    heard: list[Any] = []
    async with asyncio.timeout(TIMEOUT):
        while left("default", user, shame=True) not in heard:
            assert (await respond(amy, action="chat_message", message="x" * 60_000))[0]["success"]
            heard += await bob.catch_up()
    assert f"Dropped '{user}' in 'default' as too slow: " in far.log
    with chat.redis() as redis:
        await eventually(lambda: redis.xlen("chat:log") < 3)


async def test_engine_that_comes_later(chat: Chat, join: Join) -> None:
    chat.engine.terminate()
    (process,) = chat.start(1)
    await is_refused(process.url)
    assert process.log.count("Out of touch with Redis: ") == 1
    chat.engine.start()
    assert (await join_again(join, process.url, "Bob", "math")).room == "math"


async def test_address_that_is_none(
    start_script: StartScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = await start_script("-m", "examples.server_redis", REDIS_URL="nonsense")
    code, _, errors = await script.end()
    assert (code, errors.count("\n")) == (1, 1), errors
    assert errors.startswith("REDIS_URL is not the address of a Redis: ")


@pytest.mark.needs("browser")
async def test_page_comes_back_by_itself(chat: Chat, chromium: str) -> None:
    (process,) = chat.start(1)
    expect.set_options(timeout=TIMEOUT * 1000)
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=chromium) as browser,
    ):
        page = await browser.new_page()
        await page.goto(process.url)
        status = page.get_by_role("status")
        await expect(status).to_have_text("Connected")
        chat.engine.terminate()
        await expect(status).to_contain_text("Disconnected")
        chat.engine.start()
        await expect(status).to_have_text("Connected")
