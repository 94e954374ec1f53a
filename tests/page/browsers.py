"""Firefox and WebKit, as far as the tests need them, without a package or a download.

Firefox speaks WebDriver BiDi (https://w3c.github.io/webdriver-bidi/) over a WebSocket; WebKit has a
driver that speaks WebDriver (https://w3c.github.io/webdriver/) over HTTP.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.helpers import TIMEOUT, eventually


@dataclass
class Tab:
    """A tab of a browser, with what its protocol can do in it."""

    open: Callable[[str], Awaitable[Any]]  # go to a URL
    evaluate: Callable[[str], Awaitable[Any]]  # return the value of a JavaScript expression
    act: Callable[[Any], Awaitable[Any]]  # perform actions, which both protocols write the same way

    async def enter(self, text: str, focus: str) -> None:
        """Type a text and press Enter (U+E007), after an expression that moves the focus."""
        await self.evaluate(focus)
        keys = [{"type": t, "value": k} for k in text + "\ue007" for t in ("keyDown", "keyUp")]
        await self.act([{"type": "key", "id": "keyboard", "actions": keys}])

    async def sees(self, place: str, text: str) -> None:
        """Wait until an element shows a text."""
        element = f"document.querySelector('{place}')"
        async with asyncio.timeout(TIMEOUT):
            while text not in (await self.evaluate(f"{element}?.innerText") or ""):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(*command: str, **environment: str) -> AsyncIterator[Process]:
    """Run a program, and kill it at the end."""
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | environment, stdout=PIPE, stderr=DEVNULL
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@contextlib.asynccontextmanager
async def firefox(folder: Path) -> AsyncIterator[Tab]:
    """Run Firefox with its profile in a folder."""
    if not (program := shutil.which("firefox-esr") or shutil.which("firefox")):
        pytest.skip("There is no Firefox here.")

    async def command(method: str, **params: Any) -> Any:
        await websocket.send_json({"id": 1, "method": method, "params": params})
        while "id" not in (response := await websocket.receive_json(timeout=60)):
            pass  # an event
        return response["result"]

    async def evaluate(expression: str) -> Any:
        code = {"expression": f"JSON.stringify([{expression}])", "awaitPromise": False}
        response = await command("script.evaluate", target=tab, **code)
        return json.loads(response["result"]["value"])[0]

    options = ("--headless", "--remote-debugging-port=0", "--profile", str(folder))
    address = folder / "WebDriverBiDiServer.json"
    async with running(program, *options), aiohttp.ClientSession() as client:
        await eventually(address.exists)
        url = f"ws://127.0.0.1:{json.loads(address.read_text())['ws_port']}/session"
        async with client.ws_connect(url, max_msg_size=0) as websocket:
            await command("session.new", capabilities={})
            tab = await command("browsingContext.create", type="tab")
            yield Tab(
                lambda url: command("browsingContext.navigate", **tab, url=url, wait="complete"),
                evaluate,
                lambda actions: command("input.performActions", **tab, actions=actions),
            )
            await command("browser.close")


@contextlib.asynccontextmanager
async def webkit(folder: Path) -> AsyncIterator[Tab]:
    """Run WebKitGTK's MiniBrowser, with its files in a folder, on a screen that nobody sees."""
    if not shutil.which("WebKitWebDriver") or not shutil.which("Xvfb"):
        pytest.skip("There is no WebKit here; Debian has webkit2gtk-driver and xvfb.")

    async def command(path: str, **body: Any) -> Any:
        async with client.post(f"/session{path}", json=body) as response:
            return (await response.json())["value"]

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with running("Xvfb", "-displayfd", "1", "-nolisten", "tcp") as screen:
        assert screen.stdout
        display = ":" + (await screen.stdout.readline()).decode().strip()
        # WebKit's sandbox fails in containers.
        environment = {"HOME": str(folder), "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1"}
        driver = running("WebKitWebDriver", f"--port={port}", DISPLAY=display, **environment)
        async with driver, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            session = ""
            while not session:  # the driver is starting
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    session = "/" + (await command("", capabilities={}))["sessionId"]
            yield Tab(
                lambda url: command(f"{session}/url", url=url),
                lambda code: command(f"{session}/execute/sync", script=f"return {code}", args=[]),
                lambda actions: command(f"{session}/actions", actions=actions),
            )
            await client.delete(f"/session{session}")
