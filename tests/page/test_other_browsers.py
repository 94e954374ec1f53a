"""The main scenario in Firefox and WebKit, where these are installed, without a package for it.

Firefox speaks WebDriver BiDi (https://w3c.github.io/webdriver-bidi/) over a WebSocket; WebKit has a
driver that speaks WebDriver (https://w3c.github.io/webdriver/) over HTTP. The actions of an input
device are alike in both.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectorError, ClientSession
from aiohttp.test_utils import unused_port

from tests.helpers import TIMEOUT, Join, StartScript, StartServer, listed, said


async def firefox(start: StartScript, client: ClientSession, folder: Path, url: str) -> Any:
    """Open a URL. Return what evaluates a JavaScript expression, and what performs actions."""

    async def command(method: str, **params: Any) -> Any:
        await websocket.send_json({"id": 1, "method": method, "params": params})
        return (await websocket.receive_json(timeout=60))["result"]

    async def evaluate(expression: str) -> Any:
        code = {"expression": expression, "awaitPromise": False, "target": tab}
        return (await command("script.evaluate", **code))["result"].get("value")

    options = f"--headless --remote-debugging-port=0 --profile {folder}"
    output = await start(shell=f"exec firefox {options} 2>&1")
    websocket = await client.ws_connect(f"{await output.find('ws://.*')}/session")
    await command("session.new", capabilities={})
    tab = await command("browsingContext.create", type="tab")
    await command("browsingContext.navigate", **tab, url=url, wait="complete")
    return evaluate, lambda actions: command("input.performActions", **tab, actions=actions)


async def webkit(start: StartScript, client: ClientSession, folder: Path, url: str) -> Any:
    """Do the same as firefox(), on a screen that nobody sees."""

    async def command(path: str, **body: Any) -> Any:
        async with client.post(f"http://127.0.0.1:{port}/session{path}", json=body) as response:
            return (await response.json())["value"]

    screen = await start(shell="exec Xvfb -displayfd 1 -nolisten tcp")
    environment = {"DISPLAY": f":{await screen.find('[0-9]+')}", "HOME": str(folder)}
    environment["WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS"] = "1"  # it fails in containers
    port = unused_port()
    await start(shell=f"exec WebKitWebDriver --port={port}", **environment)
    session = ""
    while not session:  # the driver is starting
        with contextlib.suppress(ClientConnectorError):
            session = "/" + (await command("", capabilities={}))["sessionId"]
    await command(f"{session}/url", url=url)
    return (
        lambda code: command(f"{session}/execute/sync", script=f"return {code}", args=[]),
        lambda actions: command(f"{session}/actions", actions=actions),
    )


BROWSERS = [pytest.param(run, marks=pytest.mark.needs(run.__name__)) for run in (firefox, webkit)]


@pytest.mark.needs("browser")
@pytest.mark.parametrize("browser", BROWSERS)
async def test_main_scenario(
    browser: Any, start_script: StartScript, start_server: StartServer, join: Join, tmp_path: Path
) -> None:
    async def enter(text: str, focus: str) -> None:
        """Type a text and press Enter (U+E007), after an expression that moves the focus."""
        await evaluate(focus)
        keys = [{"type": t, "value": k} for k in text + "\ue007" for t in ("keyDown", "keyUp")]
        await act([{"type": "key", "id": "keyboard", "actions": keys}])

    async def sees(place: str, text: str) -> None:
        """Wait until an element shows a text."""
        shown = f"document.querySelector('{place}')?.innerText ?? ''"
        async with asyncio.timeout(TIMEOUT):
            while text not in await evaluate(shown):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    server = start_server()
    ann = await join(server.url, "Ann", "math")
    async with ClientSession() as client:
        evaluate, act = await browser(start_script, client, tmp_path, f"{server.url}#math")
        await sees("#status", "Connected")
        await enter("Bob", "document.getElementById('nick').select()")
        await sees("#users", "Bob (you)")
        await ann.catch_up()
        await enter("Hello, Ann", "document.activeElement.blur()")  # typing anywhere will do
        assert await ann.receive() == said("Bob", "Hello, Ann")
        # White space once froze a tab of WebKit for minutes.
        await ann.say("Hi, Bob!", " " * 60_000 + "x", "after it")
        await sees("mark", "Bob")
        await sees(".message:last-child", "after it")
        await evaluate("location.hash = '#chess'")  # a link
        await sees(".line:last-child", "You are Bob in chess")
        server.stop()
        await sees("#status", "Disconnected")
        start_server(port=server.port)
        await sees("#status", "Connected")
        ann = await join(server.url, "Ann", "chess")
        assert await ann.ask(action="user_list", room="chess") == listed("chess", "Bob", "Ann")
