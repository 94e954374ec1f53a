"""A chat that is served in this process, and what its members see."""

import itertools
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

import utils
from tests.helpers import Join, Member, joined, left, said


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
    head = utils.frame(payload).removesuffix(payload)
    return bytes([first_bits | opcode, 0x80 | head[1]]) + head[2:] + bytes(4) + payload


def renamed(room: str, old: str, new: str) -> dict[str, Any]:
    return {"action": "nick_changed", "room": room, "from_user": old, "to_user": new}


async def see_visit(witness: Member, user: str, *messages: str, shame: bool) -> None:
    """See that a user came, said these messages and left, and that nothing else happened."""
    visit = [joined("default", user), *(said(user, message) for message in messages)]
    for body in [*visit, left("default", user, shame)]:
        assert await witness.receive() == body
    assert await witness.catch_up() == []


async def longest_run(chat: Chat) -> int:
    """Let two flood a room; return how many messages of one are received in a row."""
    witness = await chat.join()
    for flooder in [await chat.join() for _ in range(2)]:
        for _ in range(200):  # without a pause
            await flooder.send(action="chat_message", message="x")
    users: list[str] = []
    while len(users) < 400:
        if (body := await witness.receive())["action"] == "chat_message":
            users.append(body["user"])
    return max(len(list(run)) for _, run in itertools.groupby(users))
