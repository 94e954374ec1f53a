"""The main scenario in Firefox and WebKit, where these are installed, without a package for it.

Firefox speaks WebDriver BiDi (https://w3c.github.io/webdriver-bidi/) over a WebSocket; WebKit has a
driver that speaks WebDriver (https://w3c.github.io/webdriver/) over HTTP. The actions of an input
device are alike in both.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectorError, ClientSession
from aiohttp.test_utils import unused_port

from tests.helpers import TIMEOUT, Join, StartServer, eventually, said
from tests.page.helpers import Run

Call = Callable[[Any], Awaitable[Any]]


async def firefox(run: Run, client: ClientSession, folder: Path, url: str) -> tuple[Call, Call]:
    """Open a URL. Return what evaluates a JavaScript expression, and what performs actions."""

    async def command(method: str, **params: Any) -> Any:
        await websocket.send_json({"id": 1, "method": method, "params": params})
        return (await websocket.receive_json(timeout=60))["result"]

    async def evaluate(expression: str) -> Any:
        code = {"expression": expression, "awaitPromise": False, "target": tab}
        return (await command("script.evaluate", **code))["result"].get("value")

    run("firefox", "--headless", "--remote-debugging-port=0", "--profile", str(folder))
    address = folder / "WebDriverBiDiServer.json"
    await eventually(address.exists)
    port = json.loads(address.read_text())["ws_port"]
    websocket = await client.ws_connect(f"ws://127.0.0.1:{port}/session")
    await command("session.new", capabilities={})
    tab = await command("browsingContext.create", type="tab")
    await command("browsingContext.navigate", **tab, url=url, wait="complete")
    return evaluate, lambda actions: command("input.performActions", **tab, actions=actions)


async def webkit(run: Run, client: ClientSession, folder: Path, url: str) -> tuple[Call, Call]:
    """Do the same as firefox(), on a screen that nobody sees."""

    async def command(path: str, **body: Any) -> Any:
        async with client.post(f"http://127.0.0.1:{port}/session{path}", json=body) as response:
            return (await response.json())["value"]

    screen = run("Xvfb", "-displayfd", "1", "-nolisten", "tcp").readline().strip()
    port = unused_port()
    # WebKit's sandbox fails in containers.
    environment = {"HOME": str(folder), "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1"}
    run("WebKitWebDriver", f"--port={port}", DISPLAY=f":{screen}", **environment)
    session = ""
    while not session:  # the driver is starting
        with contextlib.suppress(ClientConnectorError):
            session = "/" + (await command("", capabilities={}))["sessionId"]
    await command(f"{session}/url", url=url)
    return (
        lambda code: command(f"{session}/execute/sync", script=f"return {code}", args=[]),
        lambda actions: command(f"{session}/actions", actions=actions),
    )


@pytest.mark.needs("browser")
@pytest.mark.parametrize("browser", [firefox, webkit])
async def test_main_scenario(
    browser: Any, run: Run, start_server: StartServer, join: Join, tmp_path: Path
) -> None:
    async def enter(text: str, focus: str) -> None:
        """Type a text and press Enter (U+E007), after an expression that moves the focus."""
        await evaluate(focus)
        keys = [{"type": t, "value": k} for k in text + "\ue007" for t in ("keyDown", "keyUp")]
        await act([{"type": "key", "id": "keyboard", "actions": keys}])

    async def sees(place: str, text: str) -> None:
        """Wait until an element shows a text."""
        element = f"document.querySelector('{place}')"
        async with asyncio.timeout(TIMEOUT):
            while text not in (await evaluate(f"{element}?.innerText") or ""):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    server = start_server()
    ann = await join(server.url, "Ann", "math")
    async with ClientSession() as client:
        evaluate, act = await browser(run, client, tmp_path, f"{server.url}/#math")
        await sees("#status", "Connected")
        await enter("Bob", "document.getElementById('nick').select()")
        await sees("#users", "Bob (you)")
        await ann.catch_up()
        await enter("Hello, Ann", "document.activeElement.blur()")  # typing anywhere will do
        assert await ann.receive() == said("Bob", "Hello, Ann")
        await sees(".own", "Hello, Ann")
        # White space once froze a tab of WebKit for minutes.
        await ann.say("Hi, Bob!", " " * 60_000 + "x", "after it")
        await sees("mark", "Bob")
        await sees(".message:last-child", "after it")
        # A link leads to another room, and the form back.
        await evaluate("location.hash = '#chess'")
        await sees(".line:last-child", "You are Bob in chess")
        await enter("math", "document.getElementById('room').select()")
        await sees("#users", "Ann")
        # The server restarts.
        server.stop()
        await sees("#status", "Disconnected")
        start_server(port=server.port)
        await sees("#log", "You were disconnected")
        await sees("#users", "Bob (you)")
        assert await evaluate("location.hash") == "#math"
