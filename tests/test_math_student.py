"""The bot that asks: as a process of its own, in a room of the real server."""

import asyncio
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer

from server import init_app
from tests.conftest import ROOT, TIMEOUT, Member, Server, eventually

Join = Callable[..., Awaitable[Member]]
NEVER = ("--interval", "3600")

# What no server should send, and what may not harm a client.
ODD_FRAMES: list[str | bytes] = [
    "",
    "not JSON",
    "[" * 100_000,
    "1" * 5_000,
    "[]",
    "null",
    '"chat_message"',
    "{}",
    '{"success": true}',
    '{"success": false, "message": "odd"}',
    '{"action": null, "success": false, "message": "odd"}',
    '{"action": ["join_room"], "success": false, "message": "odd"}',
    '{"action": "join_room"}',
    '{"action": "join_room", "success": "no", "message": "odd"}',
    '{"action": "set_nick", "success": false, "message": null}',
    '{"action": "user_list", "success": true}',
    '{"action": "user_list", "success": true, "users": "odd"}',
    '{"action": "user_list", "success": false, "users": ["odd"]}',
    '{"action": "chat_message"}',
    '{"action": "chat_message", "message": "1 + 1"}',
    '{"action": "chat_message", "user": 1, "message": "1 + 1"}',
    '{"action": "chat_message", "user": "odd", "message": ["1 + 1"]}',
    '{"action": "left", "shame": true}',
    '{"action": "left", "room": "math", "user": null, "shame": true}',
    '{"action": "left", "room": "math", "user": "odd", "shame": 1}',
    '{"action": "left", "room": "default", "user": "odd", "shame": true}',
    '{"action": "odd", "room": "math", "user": "odd", "shame": true}',
    b'{"action": "chat_message", "user": "odd", "message": "1 + 1"}',
    b'{"action": "left", "room": "math", "user": "odd", "shame": true}',
    b"\xff",
]


class Bot:
    """An example, copied out of the repository and run as a process of its own, with every warning an error."""

    def __init__(self, script: str, directory: Path, *options: str, shell: str = "") -> None:
        directory.mkdir()
        self.output_path, self.errors_path = directory / "output", directory / "errors"
        command = [sys.executable, "-W", "error", shutil.copy(ROOT / "examples" / script, directory), *options]
        # No PYTHONUNBUFFERED, which would hide a print that lacks its flush.
        environment = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE")} | {"PYTHONUTF8": "1"}
        command = ["sh", "-c", f'{shell} exec "$@"', "sh", *command]
        with self.output_path.open("wb") as output, self.errors_path.open("wb") as errors:
            self.process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=errors)

    @property
    def output(self) -> str:
        return self.output_path.read_bytes().decode()

    @property
    def errors(self) -> str:
        return self.errors_path.read_bytes().decode()

    async def prints(self, text: str) -> None:
        """Wait for a text on the screen."""
        await eventually(lambda: text in self.output or self.process.poll() is not None)
        assert text in self.output, self.errors

    async def ends(self) -> int:
        """Wait for the end, return the exit code."""
        await eventually(lambda: self.process.poll() is not None)
        return self.process.returncode


@contextmanager
def bots(script: str, directory: Path) -> Iterator[Callable[..., Bot]]:
    """Start bots of one kind, in a new directory, with `start(url, *options)`; they are gone after the block."""
    directory.mkdir()
    started: list[Bot] = []

    def start(url: str, *options: str, shell: str = "") -> Bot:
        url = f"{url.replace('http', 'ws').rstrip('/')}/chat"
        started.append(Bot(script, directory / f"bot{len(started)}", "--url", url, *options, shell=shell))
        return started[-1]

    try:
        yield start
    finally:
        for bot in started:
            bot.process.kill()
            bot.process.wait()


def odd_chat(received: list[Any], broadcast: dict[str, Any], refused: str = "") -> web.Application:
    """Return a server that sends odd frames before every answer, and a broadcast after the third.

    It goes after the answer to the fourth request. One action may be refused. The requests are appended to received.
    """

    async def chat(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            body = message.json()
            received.append(body)
            for frame in ODD_FRAMES:
                await (websocket.send_bytes(frame) if isinstance(frame, bytes) else websocket.send_str(frame))
            answer = {"message": "", **body, "success": True, "users": ["\x1b[2J", 7, None]}
            if body["action"] == refused:
                answer |= {"success": False, "message": "No \x1b[2J."}
            await websocket.send_json(answer)
            if len(received) == 3:
                await websocket.send_json(broadcast)
            if len(received) == 4:
                break
        return websocket

    app = web.Application()
    app.router.add_get("/chat", chat)
    return app


@pytest.fixture
def start_student(tmp_path: Path) -> Iterator[Callable[..., Bot]]:
    """Start students with `start_student(url, *options)`; they are gone after the test."""
    with bots("math_student.py", tmp_path / "students") as start:
        yield start


@pytest.fixture
async def chat(aiohttp_server: AiohttpServer) -> str:
    """The address of the real server, here not as a process of its own, which starts faster."""
    return str((await aiohttp_server(await init_app())).make_url("/"))


async def hear_sum(member: Member) -> str:
    """Return the sum that the student asks next."""
    body = await member.hear()
    assert body == {"action": "chat_message", "message": body["message"], "user": "MathStudent"}
    assert re.fullmatch(r"[0-9]{1,2} [-+*/] [0-9]{1,2}", body["message"])
    return str(body["message"])


async def see_enter(member: Member, name: str) -> None:
    """Hear how a bot comes in and takes its name."""
    joined = await member.hear()
    assert joined == {"action": "joined", "room": "math", "user": joined["user"]}
    renamed = {"action": "nick_changed", "room": "math", "from_user": joined["user"], "to_user": name}
    assert await member.hear() == renamed


async def test_asks_at_once_and_again_at_every_interval(
    server: Server, join: Join, start_student: Callable[..., Bot]
) -> None:
    alice = await join(server.url, nick="Alice", room="math")
    student = start_student(server.url, "--interval", "0.01")
    await see_enter(alice, "MathStudent")
    signs: set[str] = set()
    sums: list[str] = []
    async with asyncio.timeout(TIMEOUT):
        while signs != set("+-*/"):
            sums.append(await hear_sum(alice))
            signs.add(sums[-1].split()[1])
    await student.prints("".join(f"MathStudent: {text}\n" for text in sums))


async def test_prints_what_is_said_but_lets_nobody_drive_the_terminal(
    chat: str, join: Join, start_student: Callable[..., Bot]
) -> None:
    alice = await join(chat, nick="Zoë", room="math")
    student = start_student(chat, *NEVER, shell="PYTHONIOENCODING=ascii")
    await see_enter(alice, "MathStudent")
    said = await hear_sum(alice)
    await alice.ask(action="chat_message", message="\x1b[2J\x9b2J\u202eevil\nMathStudent: \ud800 é")
    await alice.ask(action="chat_message", message="The end.")
    await student.prints("The end.\n")
    assert student.output.splitlines() == [
        f"MathStudent: {said}",
        r"Zo\xeb: \x1b[2J\x9b2J\u202eevil\nMathStudent: \ud800 \xe9",
        r"Zo\xeb: The end.",
    ]


async def test_laughs_at_those_who_leave_without_a_goodbye(
    chat: str, join: Join, start_student: Callable[..., Bot]
) -> None:
    names = ("Bob", "Carol", "Zoë", "Alice")
    bob, carol, zoe, alice = [await join(chat, nick=name, room="math") for name in names]
    student = start_student(chat, *NEVER)
    await see_enter(alice, "MathStudent")
    said = await hear_sum(alice)

    # A goodbye, a visit to another room: nothing to laugh at. Else that would be heard before the laugh at Zoë.
    await bob.leave()
    assert await alice.hear() == {"action": "left", "room": "math", "user": "Bob", "shame": False}
    await carol.ask(action="join_room", room="physics")
    assert await alice.hear() == {"action": "left", "room": "math", "user": "Carol", "shame": False}
    zoe.vanish()
    assert await alice.hear() == {"action": "left", "room": "math", "user": "Zoë", "shame": True}
    laugh = "Ha ha, Zoë left without a goodbye!"
    assert await alice.hear() == {"action": "chat_message", "message": laugh, "user": "MathStudent"}
    await student.prints(f"MathStudent: {said}\nMathStudent: {laugh}\n")


async def test_says_goodbye_on_ctrl_c_and_sigterm(chat: str, join: Join, start_student: Callable[..., Bot]) -> None:
    alice = await join(chat, nick="Alice", room="math")
    # A shell script lets what it runs in the background ignore Ctrl+C; there, too, SIGTERM has to end it.
    for number, shell in ((signal.SIGINT, ""), (signal.SIGTERM, "trap '' INT;")):
        student = start_student(chat, *NEVER, shell=shell)
        await see_enter(alice, "MathStudent")
        await hear_sum(alice)
        student.process.send_signal(number)
        assert await alice.hear() == {"action": "left", "room": "math", "user": "MathStudent", "shame": False}
        assert await student.ends() == 0
        assert student.errors == ""


async def test_does_not_share_its_name(chat: str, join: Join, start_student: Callable[..., Bot]) -> None:
    other = await join(chat, nick="MathStudent", room="math")
    student = start_student(chat)
    assert await student.ends() == 1
    sentence = "MathStudent can't enter the room: Nickname is already in use."
    assert student.errors == f"{chat.replace('http', 'ws')}chat: {sentence}\n"
    assert student.output == ""
    joined = await other.hear()
    assert joined == {"action": "joined", "room": "math", "user": joined["user"]}
    assert await other.hear() == {"action": "left", "room": "math", "user": joined["user"], "shame": False}


async def test_ends_with_the_server(server: Server, start_student: Callable[..., Bot]) -> None:
    student = start_student(server.url, *NEVER)
    await student.prints("MathStudent: ")
    with server.process:  # closes the pipe
        server.process.kill()
    assert await student.ends() == 1
    assert student.errors == f"ws://127.0.0.1:{server.port}/chat: the server closed the connection.\n"


async def test_skips_odd_frames(aiohttp_server: AiohttpServer, start_student: Callable[..., Bot]) -> None:
    received: list[Any] = []
    left = {"action": "left", "room": "math", "user": "\x1b[2JBob", "shame": True}
    server = await aiohttp_server(odd_chat(received, left))
    student = start_student(str(server.make_url("/")), *NEVER)
    assert await student.ends() == 1
    assert student.errors == f"ws://127.0.0.1:{server.port}/chat: the server closed the connection.\n"
    question = received[2].get("message")
    assert received == [
        {"action": "join_room", "room": "math"},
        {"action": "set_nick", "nick": "MathStudent"},
        {"action": "chat_message", "message": question},
        {"action": "chat_message", "message": "Ha ha, \x1b[2JBob left without a goodbye!"},
    ]
    assert student.output.splitlines() == [
        f"MathStudent: {question}",
        r"MathStudent: Ha ha, \x1b[2JBob left without a goodbye!",
    ]


async def test_says_that_it_may_not_join(aiohttp_server: AiohttpServer, start_student: Callable[..., Bot]) -> None:
    server = await aiohttp_server(odd_chat([], {}, refused="join_room"))
    student = start_student(str(server.make_url("/")))
    assert await student.ends() == 1
    sentence = r"MathStudent can't enter the room: No \x1b[2J."
    assert student.errors == f"ws://127.0.0.1:{server.port}/chat: {sentence}\n"


@pytest.mark.parametrize("interval", ["0", "nan"])
def test_asks_for_an_interval_that_passes(
    interval: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["math_student.py", "--interval", interval])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "examples/math_student.py"), run_name="__main__")
    assert capsys.readouterr().err.endswith("the interval has to be more than 0 seconds\n")
