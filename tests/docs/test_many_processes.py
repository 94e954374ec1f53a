"""What docs/many-processes.md shows is true: its commands run, and its figures are the code's."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator

import aiohttp
import pytest

from tests.helpers import ROOT, TIMEOUT, Join, Script, StartScript, left, said

with contextlib.suppress(ImportError):  # the marker skips the tests then
    from redis import Redis

pytestmark = pytest.mark.needs("redis")

DOCS = (ROOT / "docs" / "many-processes.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
GUNICORN, *SINGLE = "".join(text for info, text in BLOCKS if info == "shell").splitlines()
(ACL,) = [text for info, text in BLOCKS if info == "text"]


@pytest.fixture
def redis(engine: str) -> Iterator[Redis]:
    with Redis.from_url(engine, decode_responses=True) as redis:
        redis.flushall()
        yield redis


def arguments(command: str, old_port: str, port: int) -> list[str]:
    """Return what Python is called with, for a command that runs at another port."""
    assert command.startswith("REDIS_URL=redis://localhost uv run --group redis ")
    words = shlex.split(command.partition("--group redis ")[2].replace(old_port, str(port)))
    return words if words[0] == "-m" else ["-m", *words]


async def find(script: Script, pattern: str) -> str:
    """Return what a line of the log has in a place of a pattern, as soon as there is one."""
    assert script.process.stderr
    async with asyncio.timeout(TIMEOUT):
        while line := (await script.process.stderr.readline()).decode():
            if found := re.search(pattern, line):
                return found[1]
    raise AssertionError("The script has ended.")


async def test_one_command(
    redis: Redis, engine: str, unused_tcp_port: int, join: Join, start_script: StartScript
) -> None:
    """It starts one chat, replaces a process that is killed, and ends with 1001 everywhere."""
    command = arguments(GUNICORN, ":8080", unused_tcp_port)
    command[-1] = f"127.0.0.1:{command[-1]}"
    script = await start_script(*command, REDIS_URL=engine)
    ids = {await find(script, "INFO Connected to Redis as process (.*)") for _ in range(3)}
    members, users = [], dict[str, set[str]]()
    while len(users) < 2:  # until two processes have members
        members.append(await join(f"http://127.0.0.1:{unused_tcp_port}"))
        places = {id: redis.hvals(f"chat:members:{id}") for id in ids}
        users = {id: set(re.findall(r"User\d+", str(places[id]))) for id in ids if places[id]}
    killed = next(iter(users))
    survivors = [member for member in members if member.user not in users[killed]]
    for member in survivors:
        await member.catch_up()
    os.kill(int(killed.split("-")[-2]), signal.SIGKILL)
    for member in survivors:
        vanished = [await member.receive() for _ in users[killed]]
        assert {body["user"] for body in vanished} == users[killed]
        assert all(body == left("default", body["user"], shame=True) for body in vanished)
    # The line of the new process, or that of the one that has removed the killed one, comes first.
    ids.add(await find(script, "INFO Connected to Redis as process (.*)"))
    assert len(ids) == 4
    script.process.send_signal(signal.SIGTERM)
    for member in survivors:
        message = await member.websocket.receive(TIMEOUT)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    assert (await script.end())[0] == 0


async def test_single_processes(
    redis: Redis,
    engine: str,
    unused_tcp_port_factory: Callable[[], int],
    join: Join,
    start_script: StartScript,
) -> None:
    urls = []
    for command, old_port in zip(SINGLE, ("8081", "8082"), strict=True):
        port = unused_tcp_port_factory()
        script = await start_script(*arguments(command, old_port, port), REDIS_URL=engine)
        await find(script, "(Connected)")
        await script.line()
        urls.append(f"http://localhost:{port}")
    amy, bob = await join(urls[0], "Amy", "math"), await join(urls[1], "Bob", "math")
    await bob.ask(action="chat_message", message="hello")
    assert (await amy.catch_up())[-1] == said("Bob", "hello")
    async with aiohttp.ClientSession() as session, session.get(f"{urls[0]}/health") as response:
        assert response.status == 200


async def test_user_password_and_database(
    redis: Redis, engine: str, unused_tcp_port: int, join: Join, start_script: StartScript
) -> None:
    words = shlex.split(ACL.replace(">password", "'>a/b#c?d%e'"))
    redis.execute_command(*words)  # type: ignore[no-untyped-call]
    codes = dict(re.findall(r"`(%\w\w)` for\s`(.)`", DOCS))
    password = "".join({sign: code for code, sign in codes.items()}.get(c, c) for c in "a/b#c?d%e")
    address = engine.replace("redis://", f"redis://chat:{password}@") + "/1"
    command = arguments(SINGLE[0], "8081", unused_tcp_port)
    script = await start_script(*command, REDIS_URL=address)
    assert await find(script, "(Connected|Lost.*)") == "Connected"
    await script.line()
    bob = await join(f"http://localhost:{unused_tcp_port}", "Bob", "math")
    assert (await bob.ask(action="chat_message", message="hello"))["success"]
    assert redis.keys("chat:*") == []  # they are in the other database
    redis.acl_deluser("chat")


def test_figures() -> None:
    server_redis = importlib.import_module("examples.server_redis")
    text = " ".join(DOCS.split())
    patience, pause = server_redis.PATIENCE, server_redis.PAUSE
    assert "now - 5000" in server_redis.SCRIPT
    for sentence in (
        f"a process stands still for {patience - pause:g} seconds or longer",
        "a process stands still for 5 seconds or longer",
        f"silent for {patience:g} seconds",
        f"are on {100 * (1 - 0.99**100):.0f} of them",
    ):
        assert sentence in text
