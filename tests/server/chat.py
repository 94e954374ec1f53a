"""A chat that is served in this process, and the ways into it."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from tests.helpers import ConnectRaw, Join, Member, RawClient, joined, left, said


@dataclass
class Chat:
    """An app that is served in this process, and the ways into it."""

    app: web.Application
    url: URL
    join: Join
    connect_raw: ConnectRaw

    async def connect(self, path: str = "/chat", **options: Any) -> tuple[RawClient, str]:
        """Return a bare client, and in /chat its user's name."""
        raw = await self.connect_raw(path, **options)
        return raw, (await raw.receive())["user"] if path == "/chat" else ""

    def who(self) -> dict[str, list[str]]:
        """Return the shared dictionary, with names for the sockets."""
        return {room: sorted(users) for room, users in self.app["websockets"].items()}


async def see_visit(witness: Member, user: str, *messages: str, shame: bool) -> None:
    """See that a user came, said these messages and left, and that nothing else happened."""
    visit = [joined("default", user), *(said(user, message) for message in messages)]
    for body in [*visit, left("default", user, shame)]:
        assert await witness.receive() == body
    assert await witness.catch_up() == []
