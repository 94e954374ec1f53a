"""The main scenarios in Firefox and WebKit, where these are installed."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import Join, StartServer, said
from tests.page.browsers import firefox, webkit

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.needs("browser")]


@pytest.mark.parametrize("browser", [firefox, webkit])
async def test_main_scenarios(
    browser: Any, start_server: StartServer, join: Join, tmp_path: Path
) -> None:
    server = start_server()
    ann = await join(server.url, "Ann", "math")
    async with browser(tmp_path) as tab:
        await tab.open(f"{server.url}/#math")
        await tab.sees("#status", "Connected")
        await tab.enter("Bob", "document.getElementById('nick').select()")
        await tab.sees("#users", "Bob (you)")
        await ann.catch_up()
        await tab.enter("Hello, Ann", "document.activeElement.blur()")  # typing anywhere will do
        assert await ann.receive() == said("Bob", "Hello, Ann")
        await tab.sees(".own", "Hello, Ann")
        # White space once froze a tab of WebKit for minutes.
        await ann.say("Hi, Bob!", " " * 60_000 + "x", "after it")
        await tab.sees("mark", "Bob")
        await tab.sees(".message:last-child", "after it")
        # A link leads to another room, and the form back.
        await tab.evaluate("location.hash = '#chess'")
        await tab.sees(".line:last-child", "You are Bob in chess")
        await tab.enter("math", "document.getElementById('room').select()")
        await tab.sees("#users", "Ann")
        # The server restarts.
        server.stop()
        await tab.sees("#status", "Disconnected")
        start_server(port=server.port)
        await tab.sees("#status", "Connected")
        await tab.sees("#log", "You were disconnected")
        await tab.sees("#users", "Bob (you)")
        assert await tab.evaluate("location.hash") == "#math"
