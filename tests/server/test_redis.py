"""One chat on many processes, and what can happen to them and to Redis. All processes are real."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
from collections import defaultdict
from itertools import count, cycle
from typing import Any

import aiohttp
import pytest

from tests.helpers import TIMEOUT, Join, Member, StartScript, eventually, joined, left, said
from tests.server.processes import (
    Processes,
    receive_end,
    is_back,
    is_lost,
    join_again,
    respond,
    say,
)

with contextlib.suppress(ImportError):  # the marker skips the test then
    from playwright.async_api import async_playwright, expect

pytestmark = pytest.mark.needs("redis")


# One chat


async def test_one_winner(processes: Processes, join: Join) -> None:
    urls = cycle([process.url for process in processes.start(3)])
    members = [await join(next(urls)) for _ in range(30)]
    for number in range(50):
        request = {"action": "set_nick", "nick": f"name {number}"}
        responses = await asyncio.gather(*(respond(member, **request) for member in members))
        assert sum(body["success"] for body, _ in responses) == 1


async def test_one_order(processes: Processes, join: Join) -> None:
    """While twelve talk, change their names, come and go, all watchers receive the same."""
    urls = cycle([process.url for process in processes.start(3)])
    watchers = [await join(next(urls), f"watcher {number}", "math") for number in range(8)]
    talkers = [await join(next(urls), f"talker {number}", "math") for number in range(12)]
    for member in watchers + talkers:
        await member.catch_up()

    async def talk(member: Member) -> None:
        """Receive nothing about oneself, and nothing of a room before one is in it."""
        own = {member.user}
        for number in range(30):
            request = {"action": "chat_message", "message": f"{number} of {member.user}"}
            _, received = await respond(member, **request)
            if number % 5 == 0:
                member.user += "'"
                own.add(member.user)
                received += (await respond(member, action="set_nick", nick=member.user))[1]
            elif number % 5 == 2:
                received += (await respond(member, action="join_room", room="art"))[1]
                _, elsewhere = await respond(member, action="join_room", room="math")
                assert all(body.get("room", "art") == "art" for body in elsewhere)
                assert not any("watcher" in body.get("user", "") for body in elsewhere)
            assert all(body.get("room", "math") == "math" for body in received)
            assert not own & {body.get("user", body.get("from_user")) for body in received}

    async def watch(member: Member) -> list[Any]:
        """Follow who is in the room, and compare that with the server's lists."""
        users, history = {other.user for other in watchers + talkers}, list[Any]()
        while not history or history[-1].get("message") != "the end":
            body, received = await respond(member, action="user_list", room="math")
            for broadcast in received:
                match broadcast:
                    case {"action": "joined", "user": user}:
                        users.add(user)
                    case {"action": "left", "user": user}:
                        users.remove(user)
                    case {"action": "nick_changed", "from_user": old, "to_user": new}:
                        users = users - {old} | {new}
            assert sorted(body["users"]) == sorted(users)
            history += received
        return history

    watching = asyncio.gather(*map(watch, watchers))
    await asyncio.gather(*map(talk, talkers))
    await say(talkers[0], "the end")
    histories = await watching
    assert len(histories[0]) == 12 * (30 + 6 + 2 * 6) + 1
    assert all(history == histories[0] for history in histories)


async def test_bodies_that_lua_could_change(processes: Processes, join: Join) -> None:
    near, far = processes.start(2)
    amy, bob = await join(near.url, "Amy", '"users":{}'), await join(far.url, "Bob", '"users":{}')
    assert await amy.receive() == joined(amy.room, "Bob")
    for text in ('"users":{}', "\ud800", "/\\\0\x7f", "{}", "1e5"):
        await say(bob, text)
        assert await amy.receive() == said("Bob", text)
    users, _ = await respond(amy, action="user_list", room=amy.room)
    assert (users["room"], sorted(users["users"])) == (amy.room, ["Amy", "Bob"])


async def test_random_name_is_free_in_every_room(processes: Processes, join: Join) -> None:
    with processes.redis() as redis:
        for first in range(1000, 1_000_000, 10_000):
            even = range(first, first + 10_000, 2)
            redis.hset("chat:names", mapping={f"user{number}": 1 for number in even})
        (process,) = processes.start(1)
        names = [(await join(process.url)).user for _ in range(10)]
    assert {int(name[-1]) % 2 for name in names} == {1}


async def test_member_pays_for_what_it_causes(
    engine: str, serve: Any, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amy has to wait after her messages, and nobody else has."""
    monkeypatch.setenv("REDIS_URL", engine)
    server_redis = importlib.import_module("examples.server_redis")
    url = await serve(await server_redis.init_app())
    amy, bob = await join(url, "Amy", "pay"), await join(url, "Bob", "pay")
    monkeypatch.setattr(server_redis, "DELIVERY_RATE", 0.1)  # bytes a second
    for text in ("one", "two", "three"):
        await amy.send(action="chat_message", message=text)
    assert await bob.receive() == said("Amy", "one")
    received = [body for _ in range(20) for body in await bob.catch_up()]
    assert received in ([], [said("Amy", "two")])  # the price is known after the response
    amy.vanish()


async def test_log(processes: Processes, join: Join) -> None:
    (process,) = processes.start(1)
    bob = await join(process.url, "Bob", "math")
    await say(bob, "secret")
    await bob.leave()
    bob = await join(process.url)
    bob.vanish()
    await eventually(lambda: "without" in process.log)
    lines = [line.split(maxsplit=2)[2] for line in process.log.splitlines()]
    first = lines[1].split("'")[1]
    assert lines == [
        f"INFO Connected to Redis as process {process.id()}",
        f"INFO {first!r} in 'default' connected",
        f"INFO {first!r} in 'default' is now 'Bob'",
        "INFO 'Bob' in 'default' goes to 'math'",
        "INFO 'Bob' in 'math' disconnected",
        f"INFO {bob.user!r} in 'default' connected",
        f"INFO {bob.user!r} in 'default' disconnected without a close frame",
    ]


# Processes that end


async def test_processes_that_end(processes: Processes, join: Join) -> None:
    """One is killed, one is shut down, and one stands still until the others have removed it."""
    killed, ended, stopped, *others = processes.start(5)
    watchers = [await join(process.url, f"watcher {process.port}") for process in others]
    members = {
        process: [await join(process.url, f"{number} of {process.port}") for number in range(20)]
        for process in (killed, ended, stopped)
    }
    for watcher in watchers:
        await watcher.catch_up()

    killed.process.kill()
    killed.process.wait()
    stopped.process.send_signal(signal.SIGSTOP)
    await members[stopped][0].send(action="chat_message", message="late")
    ended.process.terminate()
    ending = asyncio.gather(*map(receive_end, members[ended]))
    shame = {m.user: process is not ended for process in members for m in members[process]}
    for watcher in watchers:
        received = [await watcher.receive() for _ in shame]
        by_user = {body["user"]: body for body in received}
        assert by_user == {user: left("default", user, shame[user]) for user in shame}
        assert not any(body["shame"] for body in received[:20])  # nobody waits for those
    assert set(await ending) == {1001}
    logs = "".join(process.log for process in others)
    for process in (killed, stopped):
        assert logs.count(f"Removed process {process.id()}: ") == 1

    stopped.process.send_signal(signal.SIGCONT)
    assert set(await asyncio.gather(*map(receive_end, members[stopped]))) == {1012}
    again = await join_again(join, stopped.url, members[stopped][0].user)
    await join(others[0].url, members[killed][0].user)
    await say(again, "back")
    for watcher in watchers:
        received = await watcher.catch_up()
        assert {body["action"] for body in received} == {"joined", "nick_changed", "chat_message"}
        assert [body["message"] for body in received if "message" in body] == ["back"]


async def test_log_in_redis(processes: Processes, join: Join) -> None:
    """It stays short. A process that has nothing to read is not taken for one that stops."""
    (process,) = processes.start(1)
    bob = await join(process.url)
    with processes.redis() as redis:
        await say(bob, "x" * 60_000)
        ((newest, _),) = redis.xrevrange("chat:log", count=1)
        last = int(newest.partition("-")[0])
        await eventually(lambda: redis.zscore("chat:processes", process.id()) > last + 2000)
        await eventually(lambda: redis.xlen("chat:log") == 0)


# A Redis that fails


async def test_idle_connections_that_redis_closes(processes: Processes, join: Join) -> None:
    """Nobody notices."""
    (process,) = processes.start(1)
    members = [await join(process.url, room="math") for _ in range(5)]
    with processes.redis() as redis:
        own = redis.client_id()

        def connections() -> set[str]:
            return {client["id"] for client in redis.client_list() if client["id"] != str(own)}

        redis.config_set("timeout", 1)
        while len(connections()) < 3:  # there is a third while a request meets a heartbeat
            await asyncio.gather(*(say(member, "before") for member in members))
        await eventually(lambda: len(connections()) < 3)
        before = connections()
        while not connections() - before:
            await asyncio.gather(*(say(member, "after") for member in members))
    assert "Lost Redis" not in process.log


@pytest.mark.parametrize("fault", ["killed", "old snapshot", "stopped", "flushed"])
async def test_redis_that_fails(processes: Processes, join: Join, fault: str) -> None:
    near, far = processes.start(2)
    members = [await join(process.url, f"Member {process.port}") for process in (near, far)]
    with processes.redis() as redis:
        if fault == "old snapshot":
            redis.save()
        if fault == "flushed":
            redis.flushall()
    with contextlib.ExitStack() as stack:
        if fault == "stopped":
            crowd = [await join(near.url) for _ in range(90)]
            processes.engine._process.send_signal(signal.SIGSTOP)
            stack.callback(processes.engine._process.send_signal, signal.SIGCONT)
            for member in crowd:
                member.vanish()
        elif fault != "flushed":
            processes.engine.terminate()
            stack.callback(processes.engine.start)
        assert [await receive_end(member) for member in members] == [1012, 1012]
        if fault != "flushed":
            await asyncio.gather(*(is_lost(process, fault) for process in (near, far)))
    # Everybody can come again, on the other process, too: no ghost has kept a name.
    for process in (near, far):
        await is_back(process)
    again = [
        await join(process.url, member.user, "math")
        for process, member in zip((far, near), members, strict=True)
    ]
    for member in again:
        users, _ = await respond(member, action="user_list", room="math")
        assert sorted(users["users"]) == sorted(member.user for member in members)
    assert (await respond(again[1], action="user_list", room="default"))[0]["users"] == []
    with processes.redis() as redis:
        assert redis.hlen("chat:names") == 2
        await eventually(lambda: redis.zcard("chat:processes") == 2)
    # What the members of before have left undone does not end what comes after.
    assert [process.log.count("Connected to Redis") for process in (near, far)] == [2, 2]


async def test_process_that_loses_redis(processes: Processes, join: Join) -> None:
    """Its members are not ashamed, because they have not vanished."""
    (near,) = processes.start(1)
    watcher = await join(near.url, room="math")
    with processes.redis() as redis:
        before = {client["id"] for client in redis.client_list()}
        (far,) = processes.start(1)
        member = await join(far.url, room="math")
        assert await watcher.receive() == joined("math", member.user)
        while "WARNING Lost Redis: " not in far.log:
            for client in redis.client_list():
                if client["id"] not in before:
                    redis.client_kill_filter(client["id"])
            await asyncio.sleep(0.1)
    assert await receive_end(member) == 1012
    assert await watcher.receive() == left("math", member.user, shame=False)


async def test_process_that_was_removed(processes: Processes, join: Join) -> None:
    """It may have missed something, so its members receive nothing more."""
    (process,) = processes.start(1)
    member = await join(process.url, room="math")
    entry = {"sender": "", "room": "math", "name": "", "response": "", "broadcast": "{}"}
    with processes.redis() as redis, redis.pipeline() as transaction:
        transaction.zrem("chat:processes", process.id()).xadd("chat:log", entry).execute()
    message = await member.websocket.receive(TIMEOUT)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)


async def test_connections_that_are_cut(processes: Processes, join: Join) -> None:
    """A client that stays connected has missed nothing: nobody's messages have a gap."""
    urls = cycle([process.url for process in processes.start(2)])
    sessions = dict.fromkeys(range(20), 0)

    async def talk(talker: int, url: str) -> None:
        while min(sessions.values()) < 4:
            member = await join_again(join, url)
            sessions[talker] += 1
            received: dict[str, list[int]] = defaultdict(list)
            with contextlib.suppress(aiohttp.ClientError, TypeError):  # the end, not a body
                for number in count():
                    _, bodies = await respond(member, action="chat_message", message=str(number))
                    for body in bodies:
                        if body["action"] == "chat_message":
                            received[body["user"]].append(int(body["message"]))
            await member.leave()
            for numbers in received.values():
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        talking = [tasks.create_task(talk(talker, next(urls))) for talker in sessions]
        with processes.redis() as redis:
            while not all(task.done() for task in talking):
                await asyncio.sleep(0.5)
                redis.client_kill_filter(_type="normal", skipme=True)


async def test_redis_that_comes_later(processes: Processes, join: Join) -> None:
    processes.engine.terminate()
    (process,) = processes.start(1)
    await is_lost(process, "killed")
    processes.engine.start()
    await is_back(process)
    assert (await join(process.url, "Bob", "math")).room == "math"
    assert process.log.count("Lost Redis: ") == 1


@pytest.mark.parametrize("url", ["nonsense", "redis://:secret#1@localhost"])
async def test_address_that_is_none(start_script: StartScript, url: str) -> None:
    script = await start_script("-m", "examples.server_redis", REDIS_URL=url)
    sentence = "REDIS_URL must look like redis://user:password@host:6379/0.\n"
    assert await script.end() == (1, "", sentence)


@pytest.mark.needs("browser")
async def test_page_comes_back_by_itself(processes: Processes, chromium: str) -> None:
    (process,) = processes.start(1)
    expect.set_options(timeout=TIMEOUT * 1000)
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=chromium) as browser,
    ):
        page = await browser.new_page()
        await page.goto(process.url)
        status = page.get_by_role("status")
        await expect(status).to_have_text("Connected")
        processes.engine.terminate()
        await expect(status).to_contain_text("Disconnected")
        processes.engine.start()
        await expect(status).to_have_text("Connected")
