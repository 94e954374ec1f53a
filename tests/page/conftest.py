"""The fixtures of the page's tests."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from yarl import URL

from tests.helpers import Join, Member
from tests.page.helpers import ChatPage, OpenPage


@pytest.fixture
async def open_page(chromium: Any) -> AsyncIterator[OpenPage]:
    """Open a page in a new profile: `await open_page(url, room)`. With a nick, it is connected."""
    problems: list[str] = []  # such as what the Content-Security-Policy blocks

    async def open_page(url: URL, room: str, nick: str = "") -> ChatPage:
        storage = {"origin": str(url.origin()), "localStorage": [{"name": "nick", "value": nick}]}
        context = await chromium.new_context(storage_state={"origins": [storage] if nick else []})
        context.on("weberror", lambda error: problems.append(str(error.error)))
        context.on("console", lambda message: problems.append(message.text))
        chat = ChatPage(await context.new_page())
        await chat.page.goto(f"{url}#{room}")
        if nick:
            await chat.is_connected(room, nick)
        return chat

    yield open_page
    assert [text for text in problems if not text.startswith("WebSocket connection to ")] == []


@pytest.fixture
async def bob(url: URL, open_page: OpenPage) -> ChatPage:
    """Bob's page, in the room math."""
    return await open_page(url, "math", "Bob")


@pytest.fixture
async def ann(url: URL, join: Join, bob: ChatPage) -> Member:
    """Somebody who joined after Bob."""
    return await join(url, "Ann", "math")
