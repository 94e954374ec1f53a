"""A chat that is served in this process, and what its members see."""

import itertools
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from tests.helpers import TIMEOUT, ConnectRaw, Join, Member, RawClient, joined, left, said


@dataclass
class Chat:
    """An app that is served in this process, and the ways into it."""

    app: web.Application
    url: URL
    join: Join
    connect_raw: ConnectRaw

    async def connect(self, path: str = "/chat", **options: Any) -> tuple[RawClient, str]:
        """Return a bare client, and in /chat its user's name."""
        raw, user = await self.connect_raw(path, **options), ""
        if path == "/chat":
            connecting = await raw.receive()
            user = connecting["user"]
            assert connecting == {"action": "connecting", "room": "default", "user": user}
            assert re.fullmatch(r"User\d+", user)
        return raw, user

    def who(self) -> dict[str, list[str]]:
        """Return the shared dictionary, with names for the sockets."""
        return {room: sorted(users) for room, users in self.app["websockets"].items()}


def connect(port: int | None) -> socket.socket:
    """Return a socket with a small receive buffer. Closing it resets the connection."""
    plain = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return plain


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
    flooders = [(await chat.connect())[0] for _ in range(2)]
    for raw in flooders:
        raw.writer.write(raw.text(action="chat_message", message="x") * 200)
    users: list[str] = []
    while len(users) < 400:
        if (body := await witness.receive())["action"] == "chat_message":
            users.append(body["user"])
    return max(len(list(run)) for _, run in itertools.groupby(users))
