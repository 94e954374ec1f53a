"""The main scenarios in Firefox and WebKit, where these are installed."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import Join, StartServer, eventually, joined, left, said
from tests.page.browsers import Tab, firefox, webkit

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.needs("browser")]


@pytest.mark.parametrize("browser", [firefox, webkit])
async def test_main_scenarios(
    browser: Any, start_server: StartServer, join: Join, tmp_path: Path
) -> None:
    server = start_server()
    ann = await join(server.url, "Ann", "math")

    async def sees(place: str, text: str) -> None:
        shown = f"document.querySelector('{place}')?.innerText"
        await tab.until(f"{shown}?.includes({json.dumps(text)})")

    async with browser(tmp_path) as tab:
        await tab.open(f"{server.url}/#math")
        await sees("#status", "Connected")
        await tab.enter("nick", "Bob")
        await sees("#users", "Bob (you)")
        await ann.catch_up()
        await tab.enter("message", "Hello, Ann")
        assert await ann.hear() == said("Bob", "Hello, Ann")
        await sees("#log .own", "Hello, Ann")
        # White space once froze a tab of WebKit for minutes.
        for text in ("Hi, Bob!", " " * 60_000 + "x", "after it"):
            await ann.websocket.send_json({"action": "chat_message", "message": text})
        await sees("#log", "Hi, Bob!")
        await sees("#log mark", "Bob")
        await sees("#log .message:last-child", "after it")
        # A link leads to another room, typing to the message field, and the form back.
        await tab.evaluate("location.hash = '#chess'")
        await sees("#log", "You are Bob in chess")
        await tab.enter("room", "math")
        await sees("#users", "Ann")
        # The server restarts.
        server.stop()
        await sees("#status", "Disconnected")
        start_server(port=server.port)
        await sees("#status", "Connected")
        await sees("#log", "You were disconnected")
        assert (
            await tab.evaluate("location.hash + document.getElementById('nick').value")
            == "#mathBob"
        )
