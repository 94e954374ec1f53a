"""The fixtures of the page's tests, which share one Chromium, and with it one event loop."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest_asyncio

from tests.helpers import TIMEOUT, Join, Member, Server, members
from tests.page.helpers import ChatPage, OpenPage

with contextlib.suppress(ImportError):  # then the tests are skipped
    from playwright.async_api import Browser, async_playwright, expect


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """Chromium, without a window."""
    expect.set_options(timeout=TIMEOUT * 1000)
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=chromium) as browser,
    ):
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def join() -> AsyncIterator[Join]:
    """The fixture of all tests, in the event loop of the browser."""
    async with members() as join:
        yield join


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Open pages with `await open_page(url, room, nick="", prepare=None, context=None)`.

    With a nick, the page is connected. Without a context, it has a profile of its own.
    """
    problems: list[str] = []  # such as what the Content-Security-Policy blocks
    async with contextlib.AsyncExitStack() as stack:

        async def open_page(
            url: str, room: str, nick: str = "", prepare: Any = None, context: Any = None
        ) -> ChatPage:
            context = context or await stack.enter_async_context(await browser.new_context())
            page = await context.new_page()
            page.set_default_timeout(TIMEOUT * 1000)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text))
            chat = ChatPage(page)
            if nick:
                await page.add_init_script(
                    f"if (isSecureContext) sessionStorage.nick ??= {json.dumps(nick)}"
                )
            if prepare:
                await prepare(chat)
            await page.goto(f"{url}/#{quote(room)}")
            if nick:
                await chat.is_connected(room, nick)
            return chat

        yield open_page
    assert [text for text in problems if not text.startswith("WebSocket connection to ")] == []


@pytest_asyncio.fixture(loop_scope="session")
async def bob(server: Server, open_page: OpenPage) -> ChatPage:
    """Bob's page, in the room math."""
    return await open_page(server.url, "math", "Bob")


@pytest_asyncio.fixture(loop_scope="session")
async def ann(server: Server, join: Join, bob: ChatPage) -> Member:
    """Somebody who joined after Bob."""
    ann = await join(server.url, "Ann", "math")
    await expect(bob.users).to_have_text(["Bob (you)", "Ann"])
    return ann
