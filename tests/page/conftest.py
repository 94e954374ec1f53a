"""The fixtures of the page's tests."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Any
from urllib.parse import quote

import pytest

from tests.helpers import TIMEOUT, Join, Member, Server
from tests.page.helpers import ChatPage, OpenPage, Run


@pytest.fixture
async def open_page(chromium: str) -> AsyncIterator[OpenPage]:
    """Open pages in Chromium with `await open_page(url, room, nick="", prepare=None)`.

    Each has a profile of its own. With a nick, the page is connected.
    """
    from playwright.async_api import async_playwright, expect

    expect.set_options(timeout=TIMEOUT * 1000)
    problems: list[str] = []  # such as what the Content-Security-Policy blocks

    async def open_page(url: str, room: str, nick: str = "", prepare: Any = None) -> ChatPage:
        storage: Any = {"origin": url, "localStorage": [{"name": "nick", "value": nick}]}
        context = await browser.new_context(storage_state={"origins": [storage] if nick else []})
        context.set_default_timeout(TIMEOUT * 1000)
        context.on("weberror", lambda error: problems.append(str(error.error)))
        context.on("console", lambda message: problems.append(message.text))
        chat = ChatPage(await context.new_page())
        if prepare:
            await prepare(chat)
        await chat.page.goto(f"{url}/#{quote(room)}")
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


@pytest.fixture
def run() -> Iterator[Run]:
    """Run programs with `run(*command, **environment)` until the test ends; return their output."""
    with contextlib.ExitStack() as stack:

        def run(*command: str, **environment: str) -> IO[str]:
            if not shutil.which(command[0]):
                pytest.skip(f"There is no {command[0]} here.")
            options: Any = {"stdout": PIPE, "stderr": DEVNULL, "text": True}
            process = stack.enter_context(Popen(command, env=os.environ | environment, **options))
            stack.callback(process.kill)
            assert process.stdout
            return process.stdout

        yield run
