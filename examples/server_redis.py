"""The same chat on many processes: Redis, or Valkey, holds who is where, and one log.

A request is one step in Redis: it checks, changes, and writes into the log. Every process reads the log and tells its
own members, the one who asked included. So all members, wherever they are connected, hear everything in one order.

    REDIS_URL=redis://localhost uv run --group redis -m examples.server_redis --port 8081

Whatever goes wrong between a process and Redis, there is one way out: the process does what a dead one does, closes its
members with 1012, and starts over as a new one, with nobody on it. So nothing ever has to be repaired.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

import server
from utils import ClientSocket, InvalidRequest, Rooms, broadcast, encode, fold, logger, read_request, receive

PATIENCE = 3.0  # seconds without a response of Redis; the others bury a process after 5, so it knows before they do
SIGN_OF_LIFE = 1.0  # seconds between two of them
PAUSE = 0.5  # seconds between two attempts to reach Redis, and the longest wait for something in the log
BATCH = 100  # entries of the log that are told at once
MAX_CALLS = 8  # connections for the requests of all members; the others wait for their turn

SCRIPT = Path(__file__).with_suffix(".lua").read_text()


class Member:
    """Somebody who is connected to this process. In Redis, an id stands for them: names change."""

    def __init__(self, websocket: ClientSocket) -> None:
        self.websocket = websocket
        view = asyncio.current_task()
        assert view
        self.view = view
        self.id = uuid.uuid4().hex
        self.room = self.user = ""  # as the log has it, up to where it has been read
        self.told = asyncio.Event()  # whether the response to the last request has been sent
        self.lost = False  # whether this process has lost touch with Redis

    def __str__(self) -> str:
        return f"{self.user!r} in {self.room!r}"


async def ws_chat(request: web.Request) -> web.WebSocketResponse:
    """Let a client chat, as a user who is in one room at a time."""
    process = request.app[PROCESS]
    if not process.id:
        raise web.HTTPServiceUnavailable(text="The chat is out of touch with Redis. Try again in a few seconds.")
    async with server.open_websocket(request) as websocket:
        websocket.owner = member = Member(websocket)
        try:
            await process.enter(member)
            logger.info("%s connected", member)
            async for message in receive(websocket):
                try:
                    await handle_request(process, member, read_request(message))
                except InvalidRequest as error:
                    websocket.send(encode({"action": error.action, "success": False, "message": str(error)}))
        except asyncio.CancelledError:
            if member.lost:
                await websocket.close(code=WSCloseCode.SERVICE_RESTART)
            raise
        finally:
            await process.leave(member)
            logger.info("%s disconnected%s", member, " without a goodbye" if websocket.vanished else "")
    return websocket


async def handle_request(process: "Process", member: Member, request: dict[str, Any]) -> None:
    """Let Redis do what a member asks for; the response comes through the log."""
    match request:
        case {"action": "set_nick", "nick": nick}:
            await process.ask(member, "set_nick", nick, fold(nick))
        case {"action": "join_room" | "user_list" as action, "room": room}:
            await process.ask(member, action, room)
        case {"action": "chat_message", "message": message}:
            logger.debug("%s says %r", member, message)
            await process.ask(member, "chat_message", message)
        case {"action": action}:
            raise InvalidRequest("This server can't do that yet.", action)


class Process:
    """This process, as Redis knows it: it has an id while they are in touch, and each time another one."""

    def __init__(self, url: str, rooms: Rooms) -> None:
        # No second attempt: a script whose response got lost may have run. And no timeouts of redis-py, which would
        # use asyncio.wait_for(): on Python 3.11, that loses a cancellation now and then.
        self.redis = Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="surrogatepass",  # a message may hold half of a surrogate pair
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=None,
        )
        self.redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # raises if the URL is wrong
        self.script = self.redis.register_script(SCRIPT)
        self.turns = asyncio.Semaphore(MAX_CALLS)
        self.rooms = rooms
        self.members: dict[str, Member] = {}
        self.id = self.former_id = ""
        self.last = "0-0"  # the id of the last entry of the log that has been told
        self.problem = ""  # what the log has been told of last

    async def enter(self, member: Member) -> None:
        """Bring a new member into the chat, under a name that nobody in any room has."""
        self.members[member.id] = member
        names: int | None = 0
        while names is not None:
            # The range grows with the names in use, so that half of it is always free.
            user = f"User{random.randrange(1000, 10_000 + 2 * names)}"
            names = await self.run("enter", member.id, user, fold(user))
        await member.told.wait()

    async def ask(self, member: Member, action: str, *values: str) -> None:
        """Run the script for a member, and wait until they have been told what came of it."""
        member.told.clear()
        await self.run(action, member.id, *values)
        await member.told.wait()

    async def leave(self, member: Member) -> None:
        """Let a member leave, unless all who are connected to this process have left already."""
        if self.members.pop(member.id, None):
            self.put(member, "", "")
            await self.run("leave", member.id, "shame" if member.websocket.vanished else "")

    async def run(self, action: str, *values: str) -> Any:
        """Run the script and return its response; if there is none, the members are about to be cancelled."""
        async with self.turns:
            with self.crash_only():
                return await self.call_script(action, self.id, *values)

    async def call_script(self, *arguments: str) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self.script(args=arguments)

    async def read_log(self) -> None:
        """Tell the members what is in the log, and give a sign of life every second, until touch is lost."""
        clock = asyncio.get_running_loop().time
        signed_at = clock()
        while self.id:
            calls = self.redis.pipeline(transaction=False)
            calls.xread({"chat:log": self.last}, count=BATCH, block=int(PAUSE * 1000))
            calls.zscore("chat:processes", self.id)
            async with asyncio.timeout(PATIENCE):
                streams, is_known = await calls.execute()
            if is_known is None:  # buried; then the log may have been trimmed before this process had read it
                raise RedisError("it does not know this process any more")
            for _, entries in streams:
                for self.last, entry in entries:
                    self.tell(entry)
            if clock() - signed_at >= SIGN_OF_LIFE:
                signed_at = clock()
                await self.call_script("sign", self.id, "", self.last)

    def tell(self, entry: dict[str, str]) -> None:
        """Tell the members what one entry of the log says. Nothing here waits, so all hear it in the same order."""
        body = json.loads(entry["body"])
        if "skip" in entry:
            skip = self.members.get(entry["skip"])
            broadcast(self.rooms, entry["room"], body, skip and skip.websocket)  # type: ignore[arg-type]
        elif member := self.members.get(entry["to"]):
            self.put(member, entry["room"], entry["user"])
            if body.get("users") == {}:
                body["users"] = []  # Lua has one type for both
            member.websocket.send(encode(body))
            member.told.set()

    def put(self, member: Member, room: str, user: str) -> None:
        """Put a member into another place of the dictionary, or, with no room, out of it."""
        if (member.room, member.user) == (room, user):
            return
        if member.room:
            del self.rooms[member.room][member.user]
            if not self.rooms[member.room]:
                del self.rooms[member.room]
        if room:
            self.rooms[room][user] = member.websocket
            member.room, member.user = room, user

    # The life of a process

    async def begin(self) -> None:
        """Try to be a new process of the chat."""
        new_id = uuid.uuid4().hex
        with self.crash_only():
            self.last = await self.call_script("begin", new_id, "", self.former_id)
            self.id = self.former_id = new_id
            self.problem = ""
            logger.info("In touch with Redis")

    async def live(self) -> None:
        """Read the log; after touch has been lost, begin again."""
        while True:
            with self.crash_only():
                await self.read_log()
            await self.redis.aclose()  # a connection of before may be broken without knowing it
            await asyncio.sleep(PAUSE)
            await self.begin()

    @contextlib.contextmanager
    def crash_only(self) -> Iterator[None]:
        """Do what a dead process does if anything goes wrong: disconnect all members, and repair nothing."""
        try:
            yield
        except Exception as error:
            problem = str(error) or f"no response for {PATIENCE:g} s"
            if problem != self.problem:  # it is tried again and again; one line in the log is enough
                logger.warning("Out of touch with Redis: %s", problem)
            self.problem = problem
            self.id = ""
            for member in self.members.values():
                member.lost = True
                member.view.cancel()
            self.members.clear()
            self.rooms.clear()

    async def start(self, app: web.Application) -> None:
        await self.begin()
        self.life = asyncio.create_task(self.live())

    async def stop(self, app: web.Application) -> None:
        """Let all members leave, before their views are cancelled."""
        self.life.cancel()
        self.members.clear()
        if self.id:
            await self.run("stop")

    async def close(self, app: web.Application) -> None:
        await self.redis.aclose()


PROCESS = web.AppKey("process", Process)


async def init_app(argv: Sequence[str] = ()) -> web.Application:
    """Return the app of server.py, with Redis behind /chat: the one at $REDIS_URL, or at redis://localhost."""
    app = await server.init_app(argv, chat=ws_chat)
    url = os.environ.get("REDIS_URL", "redis://localhost")
    try:
        app[PROCESS] = process = Process(url, app["websockets"])
    except (ValueError, TypeError) as error:
        sys.exit(f"REDIS_URL can't be {url!r}: {error}.")
    app.on_startup.append(process.start)
    app.on_shutdown.insert(0, process.stop)
    app.on_cleanup.append(process.close)
    return app


if __name__ == "__main__":
    server.main(init_app)
