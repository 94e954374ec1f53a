"""The same chat on many processes: Redis, or Valkey, holds who is where, and one log.

A request is one step in Redis: it checks, changes, and writes into the log. Every process reads the log and tells its
own members, the one who asked included. So all of them, wherever they are connected, hear everything in one order.

    REDIS_URL=redis://localhost uv run --group redis -m examples.server_redis --port 8081

If anything goes wrong between a process and Redis, the process does what a dead one does: its members are disconnected,
with 1012, and it starts over as a new one, with nobody on it. As there is no other way out, nothing has to be repaired.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import server
from utils import (
    ClientSocket,
    InvalidRequest,
    Rooms,
    broadcast,
    encode,
    fold,
    logger,
    read_request,
    receive,
)

PATIENCE = 3.0  # seconds to wait for Redis; the others bury a process after 5, so it gives up before they do
SIGN_OF_LIFE = 1.0  # seconds between two of them
PAUSE = 0.5  # seconds between two attempts to reach Redis, and the longest wait for news in the log
BATCH = 100  # entries of the log that are read at once
MAX_CALLS = (
    8  # requests of members that wait for Redis at the same time, each on a connection of its own
)

SCRIPT = Path(__file__).with_suffix(".lua").read_text()


class Member:
    """Somebody who is connected to this process. Names change; in Redis, an id stands for a member."""

    def __init__(self, websocket: ClientSocket, view: "asyncio.Task[Any]") -> None:
        self.websocket = websocket
        self.view = view
        self.id = uuid.uuid4().hex
        self.room = self.name = ""  # where the log has put them, as far as it has been read
        self.told = asyncio.Event()  # set when the response to their request has been sent
        self.lost = False  # whether this process has lost touch with Redis

    def __str__(self) -> str:
        return f"{self.name!r} in {self.room!r}"


async def ws_chat(request: web.Request) -> web.WebSocketResponse:
    """Let a client chat, as a user who is in one room at a time."""
    process = request.app[PROCESS]
    if not process.id:
        raise web.HTTPServiceUnavailable(
            text="The chat is out of touch with Redis. Try again in a few seconds."
        )
    async with server.open_websocket(request) as websocket:
        view = asyncio.current_task()
        assert view
        websocket.owner = member = Member(websocket, view)
        try:
            await process.enter(member)
            logger.info("%s connected", member)
            async for message in receive(websocket):
                try:
                    await handle_request(process, member, read_request(message))
                except InvalidRequest as error:
                    websocket.send(
                        encode({"action": error.action, "success": False, "message": str(error)})
                    )
        except asyncio.CancelledError:
            if member.lost:
                await websocket.close(code=WSCloseCode.SERVICE_RESTART)
            raise
        finally:
            await process.leave(member)
            logger.info(
                "%s disconnected%s", member, " without a goodbye" if websocket.vanished else ""
            )
    return websocket


async def handle_request(process: "Process", member: Member, request: dict[str, Any]) -> None:
    """Let the script do what a member asks for, and wait until the member has been told what came of it."""
    member.told.clear()
    match request:
        case {"action": "set_nick", "nick": nick}:
            await process.run("set_nick", member.id, nick, fold(nick))
        case {"action": "join_room" | "user_list" as action, "room": room}:
            await process.run(action, member.id, room)
        case {"action": "chat_message", "message": message}:
            logger.debug("%s says %r", member, message)
            await process.run("chat_message", member.id, message)
        case {"action": action}:
            raise InvalidRequest("This server can't do that yet.", action)
    await member.told.wait()


class Process:
    """This process as Redis knows it: it has an id while they are in touch, and a new one each time."""

    def __init__(self, url: str, rooms: Rooms) -> None:
        # Never a second attempt: a script whose response was lost may have run. And no timeouts of redis-py, which
        # uses asyncio.wait_for() for them: on Python 3.11, that loses a cancellation now and then.
        never: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "socket_connect_timeout": None,
        }
        # A message may hold half of a surrogate pair.
        self.redis = Redis.from_url(
            url, decode_responses=True, encoding_errors="surrogatepass", **never
        )
        self.redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # raises if the URL is wrong
        self.script = self.redis.register_script(SCRIPT)
        self.life: asyncio.Task[None]
        self.turns = asyncio.Semaphore(MAX_CALLS)
        self.rooms = rooms
        self.members: dict[str, Member] = {}
        self.id = self.former_id = ""
        self.last = ""  # the id of the last entry of the log that has been read
        self.next_sign = 0.0
        self.problem = ""

    async def enter(self, member: Member) -> None:
        """Bring a new member into the chat, under a name that nobody in any room has."""
        self.members[member.id] = member
        names: int | None = 0
        while names is not None:
            # The range grows with the names in use, so that half of it is always free.
            name = f"User{random.randrange(1000, 10_000 + 2 * names)}"
            names = await self.run("enter", member.id, name, fold(name))
        await member.told.wait()

    async def leave(self, member: Member) -> None:
        """Let a member leave, unless all members of this process have left already."""
        if self.members.pop(member.id, None):
            self.put(member, "")
            await self.run("leave", member.id, "shame" if member.websocket.vanished else "")

    async def run(self, action: str, *values: str) -> Any:
        """Run the script and return its response. If there is none, the view of every member is cancelled."""
        async with self.turns, self.in_touch():
            return await self.script(args=[action, self.id, *values])

    async def read_log(self) -> None:
        """Tell the members what is new in the log, and give a sign of life every second."""
        calls = self.redis.pipeline(transaction=False)
        calls.xread({"chat:log": self.last}, count=BATCH, block=int(PAUSE * 1000))
        calls.zscore("chat:processes", self.id)
        news, is_known = await calls.execute()
        if is_known is None:  # then it may have been trimmed away what this process had not read
            raise ConnectionError("Redis does not know this process any more")
        for _, entries in news:
            for self.last, entry in entries:
                self.tell(entry)
        now = asyncio.get_running_loop().time()
        if now >= self.next_sign:
            self.next_sign = now + SIGN_OF_LIFE
            await self.script(args=["sign", self.id, "", self.last])

    def tell(self, entry: dict[str, str]) -> None:
        """Tell the members what an entry of the log says. Nothing here waits, so all hear it at the same place."""
        body = json.loads(entry["body"])
        if "skip" in entry:
            skip = self.members.get(entry["skip"])
            broadcast(self.rooms, entry["room"], body, skip and skip.websocket)  # type: ignore[arg-type]
        elif member := self.members.get(entry["to"]):
            self.put(member, entry["room"], entry["user"])
            if body.get("users") == {}:
                body["users"] = []  # Lua writes both in the same way
            member.websocket.send(encode(body))
            member.told.set()

    def put(self, member: Member, room: str, name: str = "") -> None:
        """Put a member into another place of the dictionary; with no room, just take them out."""
        if (room, name) == (member.room, member.name):
            return
        if member.room:
            del self.rooms[member.room][member.name]
            if not self.rooms[member.room]:
                del self.rooms[member.room]
        if room:
            self.rooms[room][name] = member.websocket
            member.room, member.name = room, name

    @contextlib.asynccontextmanager
    async def in_touch(self) -> AsyncIterator[None]:
        """Wait for Redis, but not for long; if anything goes wrong, do what a dead process does."""
        try:
            async with asyncio.timeout(PATIENCE):
                yield
        except Exception as error:  # whatever it is, to start over is right
            problem = str(error) or f"no response for {PATIENCE:g} seconds"
            if problem != self.problem:  # each attempt to reach Redis has the same one
                logger.warning("Out of touch with Redis: %s", problem)
            self.problem = problem
            self.id = ""
            for member in self.members.values():
                member.lost = True
                member.view.cancel()
            self.members.clear()
            self.rooms.clear()

    async def begin(self) -> None:
        """Try to become a process of the chat."""
        new_id = uuid.uuid4().hex
        async with self.in_touch():
            self.last = await self.script(args=["begin", new_id, "", self.former_id])
            self.id = self.former_id = new_id
            self.problem = ""
            logger.info("In touch with Redis")

    async def live(self) -> None:
        """Read the log; after a loss of touch, begin again."""
        while True:
            while self.id:
                async with self.in_touch():
                    await self.read_log()
            async with self.in_touch():
                await (
                    self.redis.aclose()
                )  # the connections of before may be broken without knowing it
            await asyncio.sleep(PAUSE)
            await self.begin()


PROCESS = web.AppKey("process", Process)


async def start(app: web.Application) -> None:
    process = app[PROCESS]
    await process.begin()
    process.life = asyncio.create_task(process.live())


async def stop(app: web.Application) -> None:
    """Let all members leave in one step, before server.shutdown() disconnects them."""
    process = app[PROCESS]
    process.life.cancel()
    process.members.clear()
    if process.id:
        await process.run("stop")


async def close(app: web.Application) -> None:
    await app[PROCESS].redis.aclose()


async def init_app(argv: Sequence[str] = ()) -> web.Application:
    """Return the app of server.py, but with the chat in the Redis at $REDIS_URL, or at redis://localhost."""
    app = await server.init_app(argv, chat=ws_chat)
    url = os.environ.get("REDIS_URL", "redis://localhost")
    try:
        app[PROCESS] = Process(url, app["websockets"])
    except (ValueError, TypeError) as error:
        sys.exit(f"REDIS_URL is not the address of a Redis: {error}.")
    app.on_startup.append(start)
    app.on_shutdown.insert(0, stop)
    app.on_cleanup.append(close)
    return app


if __name__ == "__main__":
    server.main(init_app)
