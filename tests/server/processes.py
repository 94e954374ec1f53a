"""A chat on several processes over a Valkey server of its own, and the members' view of it."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp

from tests.helpers import HANDSHAKE, TIMEOUT, Join, Member, Server

with contextlib.suppress(ImportError):  # the markers skip the tests then
    from redis import Redis


class Process(Server):
    """`python -m examples.server_redis` as a process of its own."""

    script = ("-m", "examples.server_redis")

    def id(self) -> str:
        """Return the id under which it was last registered in Redis."""
        return self.log.rpartition("Connected to Redis as process ")[2].partition("\n")[0]


class Processes:
    """The processes of one chat, and their Valkey server."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.started: list[Process] = []

    def start(self, count: int) -> list[Process]:
        """Start some more processes; return them."""
        for _ in range(count):
            self.started.append(Process(self.folder / f"{len(self.started)}.log"))
        return self.started[-count:]

    def redis(self) -> "Redis":
        return Redis.from_url(self.engine.connection_url, decode_responses=True, protocol=2)


async def respond(member: Member, **request: Any) -> tuple[Any, list[Any]]:
    """Send a request; return the response, and what was received before it."""
    await member.send(**request)
    received = []
    while "success" not in (body := await member.receive()):
        received.append(body)
    return body, received


async def say(member: Member, text: str) -> None:
    assert (await respond(member, action="chat_message", message=text))[0]["success"]


async def receive_end(member: Member) -> int | None:
    """Return the code with which the server closes the connection."""
    while (await member.websocket.receive(TIMEOUT)).type is aiohttp.WSMsgType.TEXT:
        pass
    return member.websocket.close_code


async def join_again(join: Join, url: str, *place: str) -> Member:
    """Join as soon as the process is connected to Redis."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            # The second is what it raises if the connection ends at once.
            with contextlib.suppress(aiohttp.WSServerHandshakeError, aiohttp.WSMessageTypeError):
                return await join(url, *place)
            await asyncio.sleep(0.05)


async def get(url: str, path: str = "/health", **options: Any) -> tuple[int, str]:
    """Return the status and the text of a page."""
    async with aiohttp.ClientSession() as session, session.get(url + path, **options) as response:
        return response.status, await response.text()


async def is_lost(process: Process, fault: str) -> None:
    """Wait until a process has lost Redis, and refuses members with the reason."""
    reason = "no response for 3 seconds" if fault == "stopped" else "Error 111 connecting to "
    sentence = f"The chat has lost Redis: {reason}"
    async with asyncio.timeout(TIMEOUT):
        while not (await get(process.url))[1].startswith(sentence):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    status, text = await get(process.url, "/chat", headers=HANDSHAKE)
    assert (status, text.startswith(sentence)) == (503, True)
    assert f"Lost Redis: {reason}" in process.log


async def is_back(process: Process) -> None:
    """Wait until a process is connected to Redis."""
    async with asyncio.timeout(TIMEOUT):
        while await get(process.url) != (200, "The chat is open."):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
