"""What the views do with the rooms, with the messages of clients, and with the answers.

The rooms are one dictionary: `rooms[room][user]` is the WebSocket of a user. A room exists while somebody is in it.
"""

import asyncio
import json
import logging
import random
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

MAX_BACKLOG = 1024 * 1024  # bytes that a client may leave unread before it is dropped
MAX_NAME = 32  # characters of a nickname or of a room's name

# What a request needs beside its action: a field, and what that field has to be.
NAME_RULE = f"1 to {MAX_NAME} printable characters with no space at either end"
REQUESTS = {
    "set_nick": ("nick", NAME_RULE),
    "join_room": ("room", NAME_RULE),
    "chat_message": ("message", "a text that is not empty"),
    "user_list": ("room", NAME_RULE),
}

logger = logging.getLogger("chat")


def refuse(constant: str) -> None:
    """Raise ValueError for NaN and Infinity: for Python they are JSON, for a browser they are not."""
    raise ValueError(f"{constant} is not a JSON value")


# Made once: json.loads() and json.dumps() make new ones for each message that they are called for with options.
decoder = json.JSONDecoder(parse_constant=refuse)
encoder = json.JSONEncoder(allow_nan=False)


class ClientSocket(web.WebSocketResponse):
    """A client's WebSocket, which knows its connection, and how many bytes were unsent if it was dropped, else 0."""

    __slots__ = ("dropped", "transport")  # found faster than what lies in a dictionary, and each send looks

    transport: asyncio.Transport
    dropped: int

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = False) -> bool:
        """Close as aiohttp does, but without draining: that would wait for a client that does not read, maybe for ever.

        aiohttp itself closes a connection after a broken frame, so the default has to be right.
        """
        return await super().close(code=code, message=message, drain=drain)


Rooms = defaultdict[str, dict[str, ClientSocket]]


class BadRequest(Exception):
    """What a client sent can't be done; the text is a sentence that tells the client why."""

    def __init__(self, sentence: str, action: str | None = None) -> None:
        super().__init__(sentence)
        self.action = action


async def receive(websocket: ClientSocket) -> AsyncIterator[WSMessage]:
    """Yield the text and binary messages of a client until it is gone, and answer its pings."""
    try:
        async for message in websocket:
            if message.type is WSMsgType.PING:
                # aiohttp would answer by itself, but with no bound on the answers that the client does not read.
                send(websocket, frame(message.data, WSMsgType.PONG))
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                yield message
            if websocket.dropped:
                return  # what it had sent before does not count any more
            # The loop never pauses while messages are waiting. This gives everyone else a turn, so that
            # a client that sends as fast as it can holds up nobody but itself.
            await asyncio.sleep(0)
    except asyncio.CancelledError as cancelled:
        if cancelled.args or not websocket.transport.is_closing():  # shutdown() gives a reason
            raise
        # aiohttp can be told to cancel the view of a client that hung up (handler_cancellation; its test server does
        # so). What the client said before that counts, so read on to the end.
        async for message in receive(websocket):
            yield message


def read_json(message: WSMessage) -> Any:
    """Return the JSON value in a message; raise BadRequest if there is none."""
    if message.type is not WSMsgType.TEXT:
        raise BadRequest("JSON goes into a text frame, not into a binary one.")
    try:
        return decoder.decode(message.data)
    except (ValueError, RecursionError) as error:  # 60,000 opening brackets are a RecursionError
        raise BadRequest(f"This can't be read as JSON: {error}.") from None


def read_request(message: WSMessage) -> dict[str, Any]:
    """Return the request in a message, its action and the field that goes with it checked; raise BadRequest."""
    body = read_json(message)
    if not isinstance(body, dict) or not isinstance(action := body.get("action"), str):
        raise BadRequest(f"A request is a JSON object with an action, one of {', '.join(REQUESTS)}.")
    if action not in REQUESTS:
        raise BadRequest(f"There is no such action; there are {', '.join(REQUESTS)}.", action)
    field, rule = REQUESTS[action]
    value = body.get(field)
    is_right = is_name if rule is NAME_RULE else bool
    if not (isinstance(value, str) and is_right(value)):
        raise BadRequest(f"{action} needs the field {field}: {rule}.", action)
    return body


def is_name(text: str) -> bool:
    """Tell whether a text can be a nickname or a room's name."""
    return 1 <= len(text) <= MAX_NAME and text.isprintable() and text == text.strip()


def encode(body: Any) -> bytes:
    """Return a body as JSON, in a text frame; raise BadRequest for what can't be: 1e999 is read as infinite."""
    try:
        return frame(encoder.encode(body).encode())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"This can't be sent back: {error}.") from None


def frame(payload: bytes, opcode: WSMsgType = WSMsgType.TEXT) -> bytes:
    """Return a payload as one whole WebSocket frame: an opcode, the length in 1, 3 or 9 bytes, the payload.

    aiohttp would build it anew for each member, which makes a broadcast a third more expensive.
    """
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x80 | opcode, size) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def send(websocket: ClientSocket, data: bytes) -> None:
    """Hand a frame to a client's connection, and never wait for the client to read it.

    What it leaves unread piles up there. A client whose backlog passes MAX_BACKLOG is dropped at once, so nobody waits
    for it and memory stays bounded. One that is gone is passed over: its own view is about to notice.
    """
    transport = websocket.transport
    if transport.is_closing():
        return
    transport.write(data)
    backlog = transport.get_write_buffer_size()
    if backlog > MAX_BACKLOG:
        websocket.dropped = backlog
        transport.abort()


def broadcast(rooms: Rooms, room: str, body: dict[str, Any], skip: ClientSocket) -> None:
    """Tell everyone in a room but one, whom it is about.

    As nothing here waits, this is one step for the event loop: nobody comes, goes or renames in the middle of it, and
    all members see all broadcasts in one and the same order.
    """
    data = encode(body)
    for websocket in rooms.get(room, {}).values():
        if websocket is not skip:
            send(websocket, data)


def pick_name(taken: Collection[str]) -> str:
    """Return a random name that is not taken."""
    while True:
        # The range grows with the room, so that half of it is always free.
        name = f"User{random.randrange(1000, 10_000 + 2 * len(taken))}"
        if name not in taken:
            return name


def remove_user(rooms: Rooms, room: str, user: str) -> None:
    """Take a user out of a room, and with the last user the room."""
    rooms[room].pop(user, None)
    if not rooms[room]:
        del rooms[room]


def change_nick(rooms: Rooms, room: str, user: str, nick: str) -> bool:
    """Rename a user and tell the room; return False if the name is taken there."""
    if nick in rooms[room]:
        return False
    rooms[room][nick] = websocket = rooms[room].pop(user)
    logger.info("%r in %r is now %r", user, room, nick)
    body = {"action": "nick_changed", "room": room, "from_user": user, "to_user": nick}
    broadcast(rooms, room, body, skip=websocket)
    return True


def change_room(rooms: Rooms, room: str, user: str, new_room: str) -> bool:
    """Move a user and tell both rooms; return False if the user's name is taken in the new one."""
    if user in rooms.get(new_room, {}):
        return False
    rooms[new_room][user] = websocket = rooms[room][user]
    remove_user(rooms, room, user)
    logger.info("%r went from %r to %r", user, room, new_room)
    broadcast(rooms, room, {"action": "left", "room": room, "user": user, "shame": False}, skip=websocket)
    broadcast(rooms, new_room, {"action": "joined", "room": new_room, "user": user}, skip=websocket)
    return True


def retrieve_users(rooms: Rooms, room: str) -> list[str]:
    """Return the names of those in a room, without creating it."""
    return list(rooms.get(room, {}))
