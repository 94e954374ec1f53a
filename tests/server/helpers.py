"""A chat that is served in this process, and what its members see."""

import itertools
import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from tests.helpers import Join, Member, joined, left, said

# The headers of a handshake, as a browser sends them.
HANDSHAKE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "A" * 22 + "=="}
HANDSHAKE |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Extensions": "permessage-deflate"}


@dataclass
class Chat:
    """An app that is served in this process, and the ways into it."""

    app: web.Application
    url: URL
    join: Join

    def who(self) -> dict[str, list[str]]:
        """Return the shared dictionary, with names for the sockets."""
        return {room: sorted(users) for room, users in self.app["websockets"].items()}


def frame(opcode: int, payload: bytes, first_bits: int = 0x80) -> bytes:
    """Return a client's frame, masked with zeros, which leave the payload readable."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = bytes([0x80 | 126]) + size.to_bytes(2)
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8)
    return bytes([first_bits | opcode]) + length + bytes(4) + payload


def request_frame(**body: Any) -> bytes:
    """Return a request as a frame."""
    return frame(1, json.dumps(body).encode())


def renamed(room: str, old: str, new: str) -> dict[str, Any]:
    return {"action": "nick_changed", "room": room, "from_user": old, "to_user": new}


async def see_visit(witness: Member, user: str, *messages: str, shame: bool) -> None:
    """See that a user came, said these messages and left, and that nothing else happened."""
    visit = [joined("default", user), *(said(user, message) for message in messages)]
    for body in [*visit, left("default", user, shame)]:
        assert await witness.receive() == body
    assert await witness.catch_up() == []


async def respond(member: Member, **request: Any) -> tuple[Any, list[Any]]:
    """Send a request; return the response, and what was received before it."""
    await member.send(**request)
    received = []
    while "success" not in (body := await member.receive()):
        received.append(body)
    return body, received


async def longest_run(chat: Chat) -> int:
    """Let two flood a room; return how many messages of one are received in a row."""
    witness = await chat.join()
    for flooder in [await chat.join() for _ in range(2)]:
        flooder.transport.write(request_frame(action="chat_message", message="x") * 200)
    users: list[str] = []
    while len(users) < 400:
        if (body := await witness.receive())["action"] == "chat_message":
            users.append(body["user"])
    return max(len(list(run)) for _, run in itertools.groupby(users))
