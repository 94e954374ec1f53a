"""The rooms and their users, what clients send, and how they are sent to."""

import asyncio
import json
import logging
import random
import re
import struct
import time
import unicodedata
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

MAX_MESSAGE = 64 * 1024  # bytes of a message from a client; a larger one ends the connection
MAX_RATE = 128 * 1024  # bytes a second that a client may send, after a burst of as many
DELIVERY_RATE = 25 * 1024 * 1024  # bytes a second that the others may be sent because of a client
MIN_COST = 512  # bytes: a shorter message counts as so many, and so does each of its deliveries
MAX_BACKLOG = 1024 * 1024  # bytes that may wait here for a client to read; then it is dropped
MAX_WRITES = 100  # clients that are written to in one iteration of the event loop
MAX_NAME = 32  # characters of a nickname or of a room's name
HEARTBEAT = 20.0  # seconds of silence before the server pings; a client has half of that to respond
CLOSE_TIMEOUT = 2.0  # seconds for a client to respond to a close frame

# Fillers and variation selectors: Python calls them printable, but nobody sees them.
INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
INVISIBLE += "\U00013441\U00013442\U00016fe4\U0001d159\U000e0100-\U000e01ef"

NAMES = web.AppKey("names", defaultdict[str, set[str]])  # canonical name -> rooms where it is taken

logger = logging.getLogger("chat")


class InvalidRequest(Exception):
    """A request that is refused. The text is a sentence that tells the client why."""


class User:
    """A client that chats: `rooms[room][name]` is its WebSocket from enter() to leave()."""

    def __init__(self, app: web.Application, websocket: "ClientSocket") -> None:
        self.rooms: defaultdict[str, dict[str, ClientSocket]] = app["websockets"]
        self.names, self.websocket = app[NAMES], websocket
        self.room, self.name = "default", ""
        while not self.name or canonical_name(self.name) in self.names:  # free in every room
            self.name = f"User{random.randrange(1000, 1_000_000)}"

    def enter(self) -> None:
        self.rooms[self.room][self.name] = self.websocket
        self.names[canonical_name(self.name)].add(self.room)

    def leave(self) -> None:
        """Delete what enter() has added, and then a room or a name that nobody has."""
        name = canonical_name(self.name)
        self.rooms[self.room].pop(self.name, None)  # shutdown() may have emptied the rooms
        self.names[name].discard(self.room)
        if not self.rooms[self.room]:
            del self.rooms[self.room]
        if not self.names[name]:
            del self.names[name]

    def change_room(self, room: str) -> None:
        """Go to another room; raise InvalidRequest if the user's name is taken there."""
        if room in self.names[canonical_name(self.name)]:
            raise InvalidRequest("Name already in use in this room.")
        self.leave()
        self.broadcast("left", room=self.room, user=self.name, shame=False)
        self.room = room
        self.enter()
        self.broadcast("joined", room=self.room, user=self.name)

    def change_nick(self, nick: str) -> None:
        """Take another name; raise InvalidRequest if it is taken in the room."""
        if self.room in self.names.get(canonical_name(nick), ()):
            raise InvalidRequest("Nickname is already in use")
        self.broadcast("nick_changed", room=self.room, from_user=self.name, to_user=nick)
        self.leave()
        self.name = nick
        self.enter()

    def broadcast(self, action: str, **fields: object) -> None:
        """Send a broadcast to the others in the room, and log it."""
        # No method of a User waits, so all members receive all changes in the same order.
        body = {"action": action, **fields}
        logger.log(logging.DEBUG if action == "chat_message" else logging.INFO, "%s", body)
        room = self.rooms.get(self.room, {})
        others = [websocket for websocket in room.values() if websocket is not self.websocket]
        data = encode(body)
        send(data, others)
        self.websocket.pay(len(others) * max(len(data), MIN_COST) / DELIVERY_RATE)


def canonical_name(name: str) -> str:
    """Return the form by which names are compared: Bob and bob have the same."""
    return unicodedata.normalize("NFKC", name).casefold()


async def receive(websocket: "ClientSocket") -> AsyncIterator[WSMessage]:
    """Yield the text and binary messages of a client until it disconnects, and answer its pings."""
    async for message in websocket:
        if message.type is WSMsgType.ERROR:
            return
        data = message.data.encode() if message.type is WSMsgType.TEXT else message.data
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            yield message
        elif message.type is WSMsgType.PING:
            send(frame(data, WSMsgType.PONG), [websocket])
        websocket.pay(max(len(data), MIN_COST) / MAX_RATE)
        # A client that sends too much waits here. For others this takes no time, but lets all tasks
        # run: `async for` does not pause while messages are waiting.
        await asyncio.sleep(websocket.paid_until - time.monotonic())


def read_json(message: WSMessage) -> Any:
    """Return the JSON value in a message; raise InvalidRequest if there is none."""
    if message.type is not WSMsgType.TEXT:
        raise InvalidRequest("Send JSON in a text frame, not in a binary one.")
    try:
        value = json.loads(message.data)
        encode([value])  # fails for NaN, 1e999 (infinity), and what a response would nest too deep
    except (ValueError, RecursionError) as error:  # the latter for deep nesting
        raise InvalidRequest(f"This is not valid JSON: {error}.") from None
    return value


def check_name(name: Any) -> str:
    """Return a nickname or a room's name; raise InvalidRequest if it can't be one."""
    if isinstance(name, str) and 1 <= len(name) <= MAX_NAME and name == name.strip():
        if name.isprintable() and not re.search(f"[{INVISIBLE}]", name):
            return name
    raise InvalidRequest(f"A name has 1 to {MAX_NAME} visible characters, and no space at an end.")


# Not for the first reading: how clients are sent to, and what a client can't do to the others


def encode(body: Any) -> bytes:
    """Return a body as JSON in a text frame; raise ValueError for NaN and infinity."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair can't be encoded as UTF-8. It is sent as an escape, such as \ud800.
    return frame(text.encode(errors="backslashreplace"))


def frame(payload: bytes, opcode: WSMsgType = WSMsgType.TEXT) -> bytes:
    """Return a payload as a WebSocket frame, with its length in 1, 3 or 9 bytes."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x80 | opcode, size) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def send(data: bytes, websockets: Collection["ClientSocket"]) -> None:
    """Put a frame into the outboxes of clients. No send waits for a client to read."""
    empty = [websocket for websocket in websockets if not websocket.outbox]
    for websocket in websockets:
        websocket.outbox.append(data)
    asyncio.get_running_loop().call_soon(flush, empty)  # the others are scheduled already


def flush(websockets: list["ClientSocket"]) -> None:
    """Write outboxes. In a busy room, one write holds the messages of many members."""
    for websocket in websockets[:MAX_WRITES]:
        try:
            transport, data = websocket.transport, b"".join(websocket.outbox)
            websocket.outbox.clear()
            if transport.is_closing():
                continue  # the view is about to notice
            transport.write(data)  # buffers what the network cannot take yet
            backlog = transport.get_write_buffer_size()
            if backlog > MAX_BACKLOG:
                logger.warning("Dropped a client as too slow: %d bytes unsent", backlog)
                transport.abort()
            elif transport.is_closing():  # asyncio discards what is unread, maybe a close frame
                with suppress(OSError), transport.get_extra_info("socket").dup() as unread:
                    transport.get_protocol().data_received(unread.recv(MAX_BACKLOG))
        except Exception:  # the others are written all the same
            logger.exception("Dropped a client, because writing to it failed")
            websocket.transport.abort()
    if len(websockets) > MAX_WRITES:
        asyncio.get_running_loop().call_soon(flush, websockets[MAX_WRITES:])


class ClientSocket(web.WebSocketResponse):
    """A client's WebSocket."""

    # Python shares the layout of up to 30 attributes, and aiohttp has 29: this saves 1.2 KiB.
    __slots__ = ("outbox", "paid_until", "transport")

    def __init__(self, request: web.Request) -> None:
        super().__init__(
            heartbeat=HEARTBEAT,
            max_msg_size=MAX_MESSAGE + 1,  # aiohttp refuses messages of this size, too
            autoping=False,  # receive() answers pings; aiohttp would wait for the client to read
            autoclose=False,  # so that `closed` is false after a close frame, see `vanished`
            compress=False,  # frame() does not compress; a connection that does takes 168 KiB
        )
        self.transport: Any = request.transport  # None if the client is gone: prepare() raises
        self.outbox: list[bytes] = []
        self.paid_until = 0.0  # the time.monotonic() at which the client may send again

    @property
    def vanished(self) -> bool:
        """Whether the connection has ended without a close frame of the client."""
        return self.closed or (self.close_code is None and self.transport.is_closing())

    def pay(self, seconds: float) -> None:
        """Let the client wait before its next message, after a burst of one second."""
        self.paid_until = max(self.paid_until, time.monotonic() - 1) + seconds

    async def close(self, **options: Any) -> bool:
        """Close as aiohttp does, but give the client only CLOSE_TIMEOUT seconds to respond."""
        flush([self])
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.transport.abort)
        return await super().close(**options)
