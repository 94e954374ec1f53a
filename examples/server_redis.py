"""The same chat on many processes: Redis (or Valkey) stores who is in which room, and one log.

A request is one step in Redis: it checks, changes, and adds to the log. Every process reads the
log and sends its own members what is for them, responses included: all in the same order. If
anything fails between a process and Redis, the process acts as if it had crashed: it disconnects
its members, with 1012, and starts over, empty.
"""

import asyncio
import hashlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMessage, web
from aiohttp.typedefs import Handler
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url

import server
from utils import DELIVERY_RATE, ClientSocket, InvalidRequest
from utils import canonical_name, check_name, encode, frame, logger, read_json, receive, send

PATIENCE = 3.0  # seconds to wait for Redis; less than the 5 after which others remove a process
PAUSE = 0.5  # seconds between two attempts to reach Redis, and the longest wait for a new entry
BATCH = 100  # requests that are sent, or entries that are read, at once
SCRIPT = Path(__file__).with_suffix(".lua").read_text()
RUN = ["EVALSHA", hashlib.sha1(SCRIPT.encode()).hexdigest(), 0]
CONNECTION: dict[str, Any] = {
    "protocol": 2,  # with 3, redis-py 8.1 uses connections that Redis has closed
    "retry": None,  # a request that got no response may have been carried out
    "socket_timeout": None,  # redis-py uses wait_for(), which loses cancellations in Python 3.11
    "decode_responses": True,
    "encoding_errors": "surrogatepass",  # a message may hold half of a surrogate pair
}


class Member:
    """A client that chats through this process. In Redis, its id stands for it: names change."""

    def __init__(self, id: str, websocket: ClientSocket, view: "asyncio.Task[None]") -> None:
        self.id, self.websocket, self.view = id, websocket, view
        self.room = self.name = ""  # its place, by the entries of the log that have been read
        self.responded = asyncio.Event()  # set when the response to its request has been sent


class Process:
    """This process as registered in Redis. After each failure, it registers under a new id."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.members: dict[str, Member] = {}
        self.problem = "not connected yet"  # why nobody can enter; empty if they can
        self.tried = asyncio.Event()  # set after the first attempt to register

    async def ws_chat(self, request: web.Request) -> web.WebSocketResponse:
        """Let a client chat, as a user who is in one room at a time."""
        async with server.open_websocket(request) as websocket:
            member = Member(f"{self.id}-{os.urandom(8).hex()}", websocket, request.task)
            self.members[member.id] = member
            try:
                await self.request(member, "enter")
                async for message in receive(websocket):
                    await self.respond(member, message)
            except asyncio.CancelledError:
                if self.problem:
                    await websocket.close(code=WSCloseCode.SERVICE_RESTART)
                raise
            finally:
                self.leave(member)
        return websocket

    async def respond(self, member: Member, message: WSMessage) -> None:
        """Have a request carried out, and wait until its response has been sent."""
        action: str | None = None
        try:
            match read_json(message):
                case {"action": "set_nick" as action, "nick": nick}:
                    await self.request(member, action, check_name(nick), canonical_name(nick))
                case {"action": "join_room" | "user_list" as action, "room": room}:
                    await self.request(member, action, check_name(room))
                case {"action": "chat_message" as action, "message": str(text)} if text:
                    await self.request(member, action, text)
                case {"action": str(action)}:
                    raise InvalidRequest("The action is unknown, or a field is missing or wrong.")
                case _:
                    raise InvalidRequest("A request is a JSON object with an action.")
        except InvalidRequest as error:
            body = {"action": action, "success": False, "message": str(error)}
            send(encode(body), [member.websocket])

    async def request(self, member: Member, *arguments: str) -> None:
        """Send a member's request to Redis, and wait until the log has brought the response."""
        member.responded.clear()
        self.requests.put_nowait((member, arguments))
        await member.responded.wait()

    def leave(self, member: Member) -> None:
        """Let a member leave, unless this process has lost it."""
        if self.members.pop(member.id, None):
            shame = "shame" if member.websocket.vanished else ""
            self.requests.put_nowait((member, ("leave", shame)))
            self.unregister(member)

    def unregister(self, member: Member) -> None:
        self.rooms[member.room].pop(member.name, None)
        if not self.rooms[member.room]:
            del self.rooms[member.room]

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Live while the app is served. Then let all members leave that have not left."""
        self.rooms = app["websockets"]  # room -> name -> WebSocket, for the members of this process
        life = asyncio.create_task(self.live())
        await self.tried.wait()
        yield
        life.cancel()
        await asyncio.gather(life, self.execute([*RUN, "end", self.id, ""]), return_exceptions=True)
        await self.redis.aclose()

    async def live(self) -> None:
        """Register, and serve the members until something fails; then start over."""
        former_id = ""
        while True:
            self.id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
            self.requests: asyncio.Queue[tuple[Member, tuple[str, ...]]] = asyncio.Queue()
            try:
                await self.redis.aclose()  # connections from before may be broken
                begin = [*RUN, "begin", self.id, "", former_id]
                _, self.last = await self.execute(["SCRIPT LOAD", SCRIPT], begin)
                former_id, self.problem = self.id, ""
                logger.info("Connected to Redis as process %s", self.id)
                self.tried.set()
                async with asyncio.TaskGroup() as tasks:  # if one fails, it cancels the others
                    for task in (self.send_requests, self.send_heartbeats, self.read_log):
                        tasks.create_task(task())
            except* Exception as errors:  # whatever it is
                problem = str(errors.exceptions[0]) or f"no response for {PATIENCE:g} seconds"
                if problem != self.problem:  # each attempt to register has the same one
                    logger.warning("Lost Redis: %s", problem)
                self.problem = problem
                for member in self.members.values():
                    member.view.cancel()
                self.members.clear()
                self.rooms.clear()
            self.tried.set()
            await asyncio.sleep(PAUSE)

    async def execute(self, *commands: list[Any]) -> list[Any]:
        """Send commands to Redis together, and return the results; raise the first error."""
        pipeline = self.redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        async with asyncio.timeout(PATIENCE):
            results: list[Any] = await pipeline.execute(raise_on_error=False)
        if errors := [result for result in results if isinstance(result, Exception)]:
            raise errors[0]
        return results

    async def send_requests(self) -> None:
        """Send the members' requests to Redis. Each member pays for what it causes."""
        while True:
            batch = [await self.requests.get()]
            batch += [self.requests.get_nowait() for _ in range(min(self.requests.qsize(), BATCH))]
            commands = [[*RUN, action, self.id, m.id, *values] for m, (action, *values) in batch]
            for (member, _), cost in zip(batch, await self.execute(*commands), strict=True):
                member.websocket.pay(cost / DELIVERY_RATE)

    async def send_heartbeats(self) -> None:
        """Report how far the log has been read, and remove the processes that have stopped."""
        while True:
            (removed,) = await self.execute([*RUN, "heartbeat", self.id, "", self.last])
            for process in removed:
                logger.warning("Removed process %s: it was 5 seconds behind", process)
            await asyncio.sleep(1)

    async def read_log(self) -> None:
        """Send the members what is new in the log."""
        read = ["XREAD", "COUNT", BATCH, "BLOCK", int(PAUSE * 1000), "STREAMS", "chat:log"]
        check = ["ZSCORE", "chat:processes", self.id]
        while True:
            # The log keeps an entry until all registered processes have read it. So a process
            # that is still registered after reading has missed none.
            news, score = await self.execute([*read, self.last], check)
            if score is None:
                raise ConnectionError("Redis does not know this process any more")
            for _, entries in news:
                for self.last, entry in entries:
                    self.deliver(**entry)

    def deliver(self, sender: str, room: str, name: str, response: str, broadcast: str) -> None:
        """Send a member the response in an entry, and the others in its room the broadcast."""
        member = self.members.get(sender)
        if member and response:
            self.unregister(member)
            member.room, member.name = room, name
            self.rooms[room][name] = member.websocket
            send(frame(response.encode(errors="backslashreplace")), [member.websocket])
            member.responded.set()
        if broadcast and sender.startswith(self.id):
            # In a name or a message, these quotes would be escaped.
            level = logging.DEBUG if '"action":"chat_message"' in broadcast else logging.INFO
            if logger.isEnabledFor(level):
                logger.log(level, "%s", json.loads(broadcast))
        if broadcast and room in self.rooms:
            others = [websocket for user, websocket in self.rooms[room].items() if user != name]
            send(frame(broadcast.encode(errors="backslashreplace")), others)

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Raise HTTPServiceUnavailable for clients, and for a proxy, while nobody can enter."""
        if self.problem and request.path in ("/chat", "/health"):
            raise web.HTTPServiceUnavailable(text=f"The chat has lost Redis: {self.problem}")
        return await handler(request)


async def init_app(argv: Sequence[str] = ()) -> web.Application:
    """Return the app of server.py, but with the chat in the Redis at $REDIS_URL."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        url = os.environ.get("REDIS_URL", "redis://localhost")
        pool = ConnectionPool(**{**parse_url(url), **CONNECTION})
    except ValueError:
        raise SystemExit("REDIS_URL must look like redis://user:password@host:6379/0.") from None
    process = Process(Redis.from_pool(pool))
    app = await server.init_app(argv, chat=process.ws_chat)
    app.middlewares.append(process.check)
    app.cleanup_ctx.append(process.run)
    return app


if __name__ == "__main__":
    server.main(init_app)
