"""One chat on many processes, and what can happen to them and to Redis. All processes are real."""

import asyncio
import re
import signal
from typing import Any

import aiohttp
import pytest

from tests.helpers import TIMEOUT, Join, Member, Server, StartScript, StartServer
from tests.helpers import eventually, joined, left

pytestmark = pytest.mark.needs("redis")


def process_id(process: Server) -> str:
    """Return the id under which a process was last registered in Redis."""
    return str(re.findall("Connected to Redis as process (.*)", process.log)[-1])


async def receive_end(member: Member) -> int | None:
    """Return the code with which the server closes the connection."""
    while (await member.websocket.receive(TIMEOUT)).type is aiohttp.WSMsgType.TEXT:
        pass
    return member.websocket.close_code


async def wait_until(process: Server, status: int, start: str = "") -> None:
    """Wait until a process responds to a proxy with this status, and with this start of a text."""
    async with asyncio.timeout(TIMEOUT), aiohttp.ClientSession(process.url) as session:
        while True:
            async with session.get("/health") as response:
                if response.status == status and (await response.text()).startswith(start):
                    return
            await asyncio.sleep(0.05)


async def test_random_name_is_free(redis: Any, start_server: StartServer, join: Join) -> None:
    taken = {f"user{number}": 1 for number in range(1000, 1_000_000, 2)}
    redis.hset("chat:names", mapping=taken)
    process = start_server()
    names = [(await join(process.url)).user for _ in range(10)]
    assert {int(name[-1]) % 2 for name in names} == {1}


async def test_processes_that_end(redis: Any, start_server: StartServer, join: Join) -> None:
    """One is killed, one is shut down, and one stands still until another has removed it."""
    killed, ended, stopped, other = [start_server() for _ in range(4)]
    watcher = await join(other.url)
    members = {
        process: [await join(process.url, f"{number} of {process.port}") for number in range(5)]
        for process in (killed, ended, stopped)
    }
    await watcher.catch_up()
    killed.process.kill()
    killed.process.wait()
    stopped.process.send_signal(signal.SIGSTOP)
    await members[stopped][0].send(action="chat_message", message="late")
    ended.process.terminate()
    ending = asyncio.gather(*map(receive_end, members[ended]))
    for processes, shame in (([ended], False), ([killed, stopped], True)):  # in this order
        users = {member.user for process in processes for member in members[process]}
        received = [await watcher.receive() for _ in users]
        assert {body["user"] for body in received} == users
        assert all(body == left("default", body["user"], shame) for body in received)
    assert {*await ending} == {1001}
    await eventually(lambda: other.log.count("Removed process ") == 2)
    for process in (killed, stopped):
        assert f"Removed process {process_id(process)}: " in other.log
    stopped.process.send_signal(signal.SIGCONT)
    assert {await receive_end(member) for member in members[stopped]} == {1012}
    await wait_until(stopped, 200)
    for process in (killed, stopped):  # all names are free again
        await join(stopped.url, members[process][0].user)
    assert not [body for body in await watcher.catch_up() if "message" in body]


async def test_log_in_redis(redis: Any, start_server: StartServer, join: Join) -> None:
    """It stays short. A process that has nothing to read is not taken for one that stops."""
    process = start_server()
    await (await join(process.url)).say("x" * 60_000)
    later = (redis.time()[0] + 3) * 1000
    await eventually(lambda: redis.zscore("chat:processes", process_id(process)) > later)
    await eventually(lambda: redis.xlen("chat:log") == 0)


async def test_idle_connections(redis: Any, start_server: StartServer, join: Join) -> None:
    """Redis closes them, and nobody notices."""
    process = start_server()
    members = [await join(process.url, room="math") for _ in range(5)]
    redis.config_set("timeout", 1)

    async def use_three() -> None:
        """Talk until a request has met a heartbeat; the fourth connection is the test's own."""
        while len(redis.client_list()) < 4:
            await asyncio.gather(*(member.say("x") for member in members))

    await use_three()
    await eventually(lambda: len(redis.client_list()) < 4)
    await use_three()
    assert "Lost Redis" not in process.log


@pytest.mark.parametrize("fault", ["killed", "old snapshot", "stopped", "flushed"])
async def test_redis_that_fails(
    own_engine: Any, redis: Any, start_server: StartServer, join: Join, fault: str
) -> None:
    near, far = processes = [start_server(), start_server()]
    members = [await join(process.url, f"Member {process.port}") for process in processes]
    crowd = [await join(near.url) for _ in range(90)]
    slow = await join(near.url)  # it does not respond to its close frame, and leaves 2 s later
    if fault == "old snapshot":
        redis.save()
    if fault == "flushed":
        redis.flushall()
    elif fault == "stopped":
        own_engine._process.send_signal(signal.SIGSTOP)
    else:
        own_engine.terminate()
    for member in crowd:
        member.vanish()
    assert [await receive_end(member) for member in members] == [1012, 1012]
    if fault != "flushed":
        processes.append(start_server())
        reason = "no response for 3 seconds" if fault == "stopped" else "Error 111 connecting to "
        for process in processes:
            await wait_until(process, 503, f"The chat has lost Redis: {reason}")
            with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                await join(process.url)
            assert process.log.count(f"Lost Redis: {reason}") == 1
        if fault == "stopped":
            own_engine._process.send_signal(signal.SIGCONT)
        else:
            own_engine.start()
    await eventually(slow.transport.is_closing)
    # Everybody can come again, on the other process, too: no ghost has kept a name.
    for process in processes:
        await wait_until(process, 200)
    for process, member in ((far, members[0]), (near, members[1])):
        again = await join(process.url, member.user, "math")
    for room, users in (("math", {member.user for member in members}), ("default", set())):
        response = await again.ask(action="user_list", room=room)
        assert {*response["users"]} == users
    await eventually(lambda: redis.zcard("chat:processes") == len(processes))
    # What the members of before have left undone does not end what comes after.
    counts = [process.log.count("Connected to Redis") for process in processes]
    assert counts == [2, 2, 1][: len(processes)]


async def test_broken_connection(redis: Any, start_server: StartServer, join: Join) -> None:
    """The members of the process are not ashamed, because they have not vanished."""
    watcher = await join(start_server().url, room="math")
    before = {client["id"] for client in redis.client_list()}
    far = start_server()
    member = await join(far.url, room="math")
    assert await watcher.receive() == joined("math", member.user)
    async with asyncio.timeout(TIMEOUT):
        while "WARNING Lost Redis: " not in far.log:
            for client in redis.client_list():
                if client["id"] not in before:
                    redis.client_kill_filter(client["id"])
            await asyncio.sleep(1)  # a request that was tried again would succeed meanwhile
    assert await receive_end(member) == 1012
    assert await watcher.receive() == left("math", member.user, shame=False)


async def test_process_that_was_removed(redis: Any, start_server: StartServer, join: Join) -> None:
    """It may have missed something, so its members receive nothing more."""
    process = start_server()
    member = await join(process.url, room="math")
    entry = {"sender": "", "room": "math", "name": "", "response": "", "broadcast": "{}"}
    with redis.pipeline() as transaction:
        transaction.zrem("chat:processes", process_id(process)).xadd("chat:log", entry).execute()
    assert await member.close_code() == 1012


async def test_address_that_is_none(start_script: StartScript) -> None:
    for url in ("nonsense", "redis://:secret#1@localhost"):
        script = await start_script("-m", "examples.server_redis", REDIS_URL=url)
        sentence = "REDIS_URL must look like redis://user:password@host:6379/0.\n"
        assert await script.end() == (1, "", sentence)
