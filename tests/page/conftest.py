"""The fixtures of the page's tests."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.helpers import TIMEOUT, Join, Member, Server
from tests.page.helpers import ChatPage, OpenPage


@pytest.fixture
async def open_page(chromium: str) -> AsyncIterator[OpenPage]:
    """Open pages in Chromium with `await open_page(url, room, nick="")`.

    Each has a profile of its own. With a nick, the page is connected.
    """
    from playwright.async_api import async_playwright, expect

    expect.set_options(timeout=TIMEOUT * 1000)
    problems: list[str] = []  # such as what the Content-Security-Policy blocks

    async def open_page(url: str, room: str, nick: str = "") -> ChatPage:
        storage: Any = {"origin": url, "localStorage": [{"name": "nick", "value": nick}]}
        context = await browser.new_context(storage_state={"origins": [storage] if nick else []})
        context.on("weberror", lambda error: problems.append(str(error.error)))
        context.on("console", lambda message: problems.append(message.text))
        chat = ChatPage(await context.new_page())
        await chat.page.goto(f"{url}/#{room}")
        if nick:
            await chat.is_connected(room, nick)
        return chat

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium)
        yield open_page
        await browser.close()
    assert [text for text in problems if not text.startswith("WebSocket connection to ")] == []


@pytest.fixture
async def bob(server: Server, open_page: OpenPage) -> ChatPage:
    """Bob's page, in the room math."""
    return await open_page(server.url, "math", "Bob")


@pytest.fixture
async def ann(server: Server, join: Join, bob: ChatPage) -> Member:
    """Somebody who joined after Bob."""
    return await join(server.url, "Ann", "math")
