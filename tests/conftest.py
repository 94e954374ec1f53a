"""The fixtures of all tests."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from yarl import URL

from tests.helpers import HANDSHAKE, PACKAGES, PROGRAMS, ROOT, TIMEOUT, UNWANTED, WARNINGS
from tests.helpers import ConnectRaw, Join, RawClient, Script, Serve, Server, StartScript
from tests.helpers import StartServer, members, request, run_engine


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


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server process for all tests that do not stop it, because starting one takes long."""
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The shared server, with nobody in it. Whatever happens to it, it logs no error."""
    shared_server.read_before += len(shared_server.log)
    yield shared_server
    shared_server.wait_until_empty()
    assert not UNWANTED.search(shared_server.log), shared_server.log


@pytest.fixture
async def start_script() -> AsyncIterator[StartScript]:
    """Start scripts with `await start_script("client.py", "--nick", "Bob")`, until the test ends.

    `shell` is put before the command ("cd docs;"), `redirect` behind it (">&-").
    """
    scripts = []

    async def start(
        *arguments: Any, shell: str = "", redirect: str = "", **environment: str
    ) -> Script:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f'{shell} exec "$@" {redirect}', "sh", sys.executable, *WARNINGS),
            *map(str, arguments),
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        scripts.append(Script(process))
        return scripts[-1]

    yield start
    for script in scripts:
        if script.process.returncode is None:
            script.process.kill()
        await script.process.communicate()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Valkey server that many tests share: each flushes it first."""
    with run_engine(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey.connection_url


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where this machine has a Chromium or Chrome."""
    commands = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, commands)), None)
    return path or pytest.skip("There is no Chromium here, nor at the path in $CHROMIUM.")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve apps in this process with `url = await serve(app)`, as `python server.py` does.

    aiohttp's own test server cancels a view as soon as its client hangs up.
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


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Let members in with `await join(url, nick="Bob", room="math")`; see members()."""
    async with members() as join:
        yield join


@pytest.fixture
async def connect_raw() -> AsyncIterator[ConnectRaw]:
    """Connect bare sockets with `await connect_raw(url, path="/chat", receive_buffer=None)`."""
    clients = []

    async def connect(
        url: Any, path: str = "/chat", receive_buffer: int | None = None
    ) -> RawClient:
        address = urlsplit(str(url))
        plain = socket.socket()
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, (address.hostname, address.port))
        # A small limit, so that what is not read stays in the socket.
        client = RawClient(*await asyncio.open_connection(sock=plain, limit=1024))
        clients.append(client)
        client.writer.write(request(path[1:], HANDSHAKE | {"Host": address.netloc}))
        answer = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), TIMEOUT)
        assert answer.startswith(b"HTTP/1.1 101 ")
        return client

    yield connect
    for client in clients:
        client.vanish()
        with contextlib.suppress(ConnectionError):
            await client.writer.wait_closed()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in parallel; a part that is asked for by name is faster without."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if is_whole and not hasattr(config, "workerinput") and config.option.numprocesses is None:
        config.option.numprocesses, config.option.maxprocesses = "auto", 4


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        (group,) = mark.args
        if missing := [name for name in PROGRAMS.get(group, ()) if not shutil.which(name)]:
            pytest.skip(f"it needs {', '.join(missing)}")
        if not all(map(importlib.util.find_spec, PACKAGES.get(group, ()))):
            pytest.skip(f"it needs `uv run --group {group} pytest`")
