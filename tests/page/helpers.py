"""The web page as people find it, in Chromium."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from urllib.parse import quote

with contextlib.suppress(ImportError):  # then the tests are skipped
    from playwright.async_api import Locator, Page, expect

OpenPage = Callable[..., Awaitable["ChatPage"]]
RANDOM = re.compile(r"^User\d+$")


class ChatPage:
    """A page of the chat, and what is on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.status = page.get_by_role("status")
        self.users = page.get_by_role("list", name="Users", exact=True).get_by_role("listitem")
        self.log = page.get_by_role("log")

    def field(self, label: str) -> Locator:
        return self.page.get_by_role("textbox", name=label, exact=True)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name)

    def texts(self, kind: str = "") -> Locator:
        return self.log.locator(f"> *{kind} .text")

    async def enter(self, label: str, text: str) -> None:
        await self.field(label).fill(text)
        await self.field(label).press("Enter")

    async def is_refused(self, label: str, sentence: str) -> None:
        """Wait until the page says next to a field why it was refused; without a sentence, not."""
        description = re.compile(re.escape(sentence) or "^$")
        await expect(self.field(label)).to_have_accessible_description(description)

    async def is_connected(self, room: str, nick: str | re.Pattern[str]) -> None:
        """Wait until the page shows that it is connected, in this room and under this name."""
        await expect(self.status).to_have_text("Connected")
        await expect(self.page).to_have_title(f"{room} - aiohttp chat")
        assert self.page.url.endswith("/#" + quote(room, safe="!'()*"))
        await expect(self.users.filter(has_text="(you)").locator("bdi")).to_have_text(nick)
