"""What the views do with the rooms, with the requests of clients, and with what clients are told.

The rooms are one dictionary: `rooms[room][name]` is the WebSocket of a user. A room exists while somebody is in it.
"""

import asyncio
import contextlib
import functools
import json
import logging
import random
import re
import socket
import struct
import unicodedata
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

MAX_MESSAGE = 64 * 1024  # bytes of a message from a client; a larger one ends the connection
MAX_BACKLOG = 1024 * 1024  # bytes that a client may leave unread before it is dropped
MAX_RATE = 1024 * 1024  # bytes a second that a client may send, after a burst of as many
MIN_COST = 512  # bytes that every message counts at least, as what it makes others hear can be longer than itself
MAX_NAME = 32  # characters of a nickname or of a room's name
HEARTBEAT = 30.0  # seconds of silence after which a client is pinged; it has half as long to answer
CLOSE_TIMEOUT = (
    2.0  # seconds for a client to answer a close frame, and to read what is still unsent
)

UNFLUSHED = web.AppKey("unflushed", list["ClientSocket"])  # those with something in their outbox

logger = logging.getLogger("chat")


# What clients send


class InvalidRequest(Exception):
    """What a client sent can't be done; the text is a sentence that tells the client why."""

    def __init__(self, sentence: str, action: str | None = None) -> None:
        super().__init__(sentence)
        self.action = action


# Fillers and variation selectors: printable for Python, but nobody sees them.
INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"


def is_name(text: str) -> bool:
    """Tell whether a text can be a nickname or a room's name."""
    is_visible = text.isprintable() and not re.search(f"[{INVISIBLE}]", text)
    return 1 <= len(text) <= MAX_NAME and text == text.strip() and is_visible


Rule = tuple[Callable[[str], bool], str]
NAME: Rule = (is_name, f"1 to {MAX_NAME} visible characters with no space at either end")
TEXT: Rule = (bool, "a text that is not empty")
# The fields that each action needs, and what these texts have to be.
REQUESTS = {
    "set_nick": {"nick": NAME},
    "join_room": {"room": NAME},
    "chat_message": {"message": TEXT},
    "user_list": {"room": NAME},
}


def refuse(constant: str) -> None:
    """Raise ValueError for NaN and Infinity: for Python they are JSON, for a browser they are not."""
    raise ValueError(f"{constant} is not a JSON value")


# Made once: json.loads() and json.dumps() make new ones for each message that they are called for with options.
decoder = json.JSONDecoder(parse_constant=refuse)
encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


async def receive(websocket: "ClientSocket") -> AsyncIterator[WSMessage]:
    """Yield the text and binary messages of a client until it disconnects, and answer its pings.

    A client that sends too much waits here, and so does nobody else.
    """
    clock = asyncio.get_running_loop().time
    paid_until = 0.0  # when all that the client has sent would have been sent at MAX_RATE
    async for message in websocket:
        if message.type is WSMsgType.PING:
            # aiohttp would answer by itself, but wait for a client that does not read. Nothing here ever does.
            websocket.send(frame(message.data, WSMsgType.PONG))
        elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            yield message
        if websocket.dropped or message.type is WSMsgType.ERROR:
            return  # what it sent before it was dropped does not count any more
        size = len(message.data.encode()) if message.type is WSMsgType.TEXT else MIN_COST
        paid_until = max(paid_until, clock() - 1) + max(size, MIN_COST) / MAX_RATE
        # Even a sleep of no time is needed: without it, the loop never pauses while messages are waiting.
        await asyncio.sleep(max(paid_until - clock(), 0))


def read_json(message: WSMessage) -> Any:
    """Return the JSON value in a message; raise InvalidRequest if there is none."""
    if message.type is not WSMsgType.TEXT:
        raise InvalidRequest("JSON goes into a text frame, not into a binary one.")
    try:
        return decoder.decode(message.data)
    except (ValueError, RecursionError) as error:  # 60,000 opening brackets are a RecursionError
        raise InvalidRequest(f"This can't be read as JSON: {error}.") from None


def read_request(message: WSMessage) -> dict[str, Any]:
    """Return the request in a message, with its action and that action's fields checked; raise InvalidRequest."""
    request = read_json(message)
    if not isinstance(request, dict) or not isinstance(action := request.get("action"), str):
        raise InvalidRequest(
            f"A request is a JSON object with an action, one of {', '.join(REQUESTS)}."
        )
    if action not in REQUESTS:
        raise InvalidRequest(f"There is no such action; there are {', '.join(REQUESTS)}.", action)
    for field, (is_right, rule) in REQUESTS[action].items():
        value = request.get(field)
        if not isinstance(value, str) or not is_right(value):
            raise InvalidRequest(f"{action} needs the field {field}: {rule}.", action)
    return request


# What clients are told


def encode(body: Any) -> bytes:
    """Return a body as JSON in a text frame; raise InvalidRequest for what can't be: 1e999 is read as infinite."""
    try:
        # Half of a surrogate pair has no UTF-8. As an escape, it reaches those who can do something with it.
        return frame(encoder.encode(body).encode(errors="backslashreplace"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"This can't be sent back: {error}.") from None


def frame(payload: bytes, opcode: WSMsgType = WSMsgType.TEXT) -> bytes:
    """Return a payload as a WebSocket frame, with its length in 1, 3 or 9 bytes. A broadcast needs it only once."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x80 | opcode, size) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


class ClientSocket(web.WebSocketResponse):
    """A client's WebSocket. Nothing that is sent through it ever waits for the client to read it."""

    __slots__ = (
        "dropped",
        "outbox",
        "owner",
        "transport",
        "unflushed",
        "unread",
    )  # what every send looks at, faster

    def __init__(self, request: web.Request) -> None:
        super().__init__(
            heartbeat=HEARTBEAT,
            timeout=CLOSE_TIMEOUT,
            max_msg_size=MAX_MESSAGE + 1,  # aiohttp refuses messages of this size, too
            autoping=False,  # receive() answers pings
            autoclose=False,  # a view can tell a close frame from a broken connection
            compress=False,  # frame() does not compress, and to read what a browser compresses takes much memory
        )
        self.transport = cast(
            asyncio.Transport, request.transport
        )  # if it is None by now, prepare() raises
        self.owner: object = f"{request.remote}, of {request.path},"  # for the log
        self.outbox: list[bytes] = []
        self.unflushed = request.app[UNFLUSHED]
        self.dropped = False  # as too slow
        self.unread: socket.socket | None = None  # what a client still sends after a broken frame

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Answer the handshake; raise HTTPUpgradeRequired if it is none, or if the client has disconnected already."""
        try:
            if request.method != "GET":
                raise ValueError("only GET")
            return await super().prepare(request)
        except (
            web.HTTPBadRequest,
            ConnectionError,
            ValueError,
        ):  # ValueError: a Sec-WebSocket-Key that is not ASCII
            headers = {
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
            }
            raise web.HTTPUpgradeRequired(
                text="Open this address with a WebSocket client.", headers=headers
            ) from None

    @property
    def vanished(self) -> bool:
        """Whether the client has disconnected without a close frame. After one, our side is open: autoclose is off."""
        return self.closed or (self.close_code is None and self.transport.is_closing())

    def send(self, data: bytes) -> None:
        """Put a frame into the client's outbox. In the next turn of the event loop, all that is in there leaves."""
        if not self.outbox:
            if not self.unflushed:
                asyncio.get_running_loop().call_soon(flush, self.unflushed)
            self.unflushed.append(self)
        self.outbox.append(data)

    def read_rest(self) -> None:
        """Read what a client said before it hung up: asyncio forgets it where a write fails, even a goodbye."""
        protocol = cast(asyncio.Protocol, self.transport.get_protocol())
        with contextlib.suppress(OSError), self.transport.get_extra_info("socket").dup() as unread:
            while data := unread.recv(MAX_MESSAGE):
                protocol.data_received(data)

    async def close(
        self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = False
    ) -> bool:
        """Close as aiohttp does, but give a client CLOSE_TIMEOUT seconds to read what is unsent, and not for ever.

        aiohttp itself closes after a broken frame. As closing with something unread is a reset, which can overtake the
        close frame, linger() then keeps a copy of the socket open.
        """
        flush([self])
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.transport.abort)
        if code in (
            WSCloseCode.PROTOCOL_ERROR,
            WSCloseCode.INVALID_TEXT,
            WSCloseCode.MESSAGE_TOO_BIG,
        ):
            with contextlib.suppress(OSError):  # the client has disconnected already
                self.unread = self.transport.get_extra_info("socket").dup()
        return await super().close(code=code, message=message, drain=drain)

    async def linger(self) -> None:
        """Wait until a client that has sent a broken frame hangs up, for CLOSE_TIMEOUT seconds at most."""
        if self.unread:
            with contextlib.suppress(OSError, TimeoutError), self.unread:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    while await asyncio.get_running_loop().sock_recv(self.unread, MAX_MESSAGE):
                        pass


def flush(websockets: list[ClientSocket]) -> None:
    """Hand what is in outboxes to the transports, which keep what the network does not take yet, and empty the list.

    One write takes all that a client is told in a turn of the event loop: in a busy room, what many members have said.
    A client that leaves more than MAX_BACKLOG unread is dropped at once: nobody waits for it, and memory stays bounded.
    """
    for websocket in websockets:
        transport, outbox = websocket.transport, websocket.outbox
        if not transport.is_closing():  # else its view is about to notice
            transport.write(b"".join(outbox))
            backlog = transport.get_write_buffer_size()
            if backlog > MAX_BACKLOG:
                logger.warning("Dropped %s as too slow: %d bytes unsent", websocket.owner, backlog)
                websocket.dropped = True
                transport.abort()
            elif transport.is_closing():
                websocket.read_rest()
        outbox.clear()
    websockets.clear()


# The rooms

Rooms = defaultdict[str, dict[str, ClientSocket]]


def broadcast(rooms: Rooms, room: str, body: dict[str, Any], skip: ClientSocket) -> None:
    """Tell everyone in a room but the client whom it is about.

    As nothing here waits, this is one step for the event loop: nobody enters, leaves or renames in the middle of it,
    and all members see all broadcasts in one and the same order.
    """
    data = encode(body)
    for websocket in rooms.get(room, {}).values():
        if websocket is not skip:
            websocket.send(data)


@dataclass(slots=True)
class User:
    """Somebody who chats: `rooms[room][name]` is their WebSocket from enter() to leave()."""

    rooms: Rooms
    websocket: ClientSocket
    name: str
    room: str = "default"

    def __str__(self) -> str:
        return f"{self.name!r} in {self.room!r}"

    def tell_others(self, action: str, **fields: object) -> None:
        """Send a broadcast to the room that the user is in."""
        broadcast(self.rooms, self.room, {"action": action, **fields}, skip=self.websocket)


def enter(user: User) -> None:
    """Put a user into their room, and tell the others there."""
    user.rooms[user.room][user.name] = user.websocket
    user.tell_others("joined", room=user.room, user=user.name)


def leave(user: User, shame: bool = False) -> None:
    """Take a user out of their room, and with the last user the room."""
    user.rooms[user.room].pop(user.name, None)  # shutdown() may have emptied the rooms
    if not user.rooms[user.room]:
        del user.rooms[user.room]
    user.tell_others("left", room=user.room, user=user.name, shame=shame)


def change_nick(user: User, nick: str) -> None:
    """Rename a user and tell the room; raise InvalidRequest if the name is taken there."""
    if is_taken(nick, user.rooms[user.room]):
        raise InvalidRequest("Nickname is already in use", "set_nick")
    logger.info("%s is now %r", user, nick)
    user.rooms[user.room][nick] = user.rooms[user.room].pop(user.name)
    user.tell_others("nick_changed", room=user.room, from_user=user.name, to_user=nick)
    user.name = nick


def change_room(user: User, room: str) -> None:
    """Move a user and tell both rooms; raise InvalidRequest if the user's name is taken in the new one."""
    if is_taken(user.name, user.rooms.get(room, {})):
        raise InvalidRequest("Name already in use in this room.", "join_room")
    logger.info("%s goes to %r", user, room)
    leave(user)
    user.room = room
    enter(user)


def retrieve_users(rooms: Rooms, room: str) -> list[str]:
    """Return the names of those in a room, without creating it."""
    return list(rooms.get(room, {}))


@functools.lru_cache(10_000)
def fold(name: str) -> str:
    """Return the same text for all names that look alike: Bob, bob, and Bob in letters of full width."""
    return unicodedata.normalize("NFKC", name).casefold()


def is_taken(name: str, users: Collection[str]) -> bool:
    """Tell whether one of the users has this name, or one that looks like it."""
    folded = fold(name)
    return any(fold(user) == folded for user in users)


def pick_name(rooms: Rooms) -> str:
    """Return a random name that is free in every room, so that a newcomer can join any of them."""
    while True:
        # The range grows with the users, so that half of it is always free.
        name = f"User{random.randrange(1000, 10_000 + 2 * sum(map(len, rooms.values())))}"
        if not any(is_taken(name, users) for users in rooms.values()):
            return name
