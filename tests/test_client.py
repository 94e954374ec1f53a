"""The terminal chat, in a real pseudo-terminal that an emulator renders: what a person sees; and through pipes."""

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pyte
import pytest
from aiohttp import web
from wcwidth import wcswidth  # comes with pyte

from tests.conftest import ROOT, TIMEOUT, UNWANTED, Member, Server, eventually

Join = Callable[..., Awaitable[Member]]


class Terminal:
    """A screen and a keyboard, with `python client.py` running in it."""

    def __init__(self, *arguments: str, columns: int = 60, rows: int = 12, **environment: str) -> None:
        self.output = b""
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.attributes = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "client.py", *arguments],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **environment},
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            # Its controlling terminal, which turns Ctrl+C into a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        asyncio.get_running_loop().add_reader(self.master, self.render)

    def render(self) -> None:
        data = os.read(self.master, 100_000)
        self.output += data
        self.stream.feed(data)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    async def enter(self, line: str, prompt: str) -> None:
        """Type a line, and wait for the prompt that comes then; the screen is large enough for both."""
        count = len(self.rows)
        self.type(f"{line}\n")
        await eventually(lambda: len(self.rows) > count and self.rows[-1] == prompt)

    @property
    def rows(self) -> list[str]:
        """What the screen shows, without the empty rows at its end."""
        return "\n".join(row.rstrip() for row in self.screen.display).rstrip("\n").split("\n")

    @property
    def cursor(self) -> tuple[int, int]:
        return self.screen.cursor.y, self.screen.cursor.x

    async def shows(self, *rows: str) -> None:
        """Wait until the screen shows just these rows."""
        try:
            await eventually(lambda: self.rows == list(rows))
        except TimeoutError:
            assert self.rows == list(rows)

    async def shows_last(self, *rows: str) -> None:
        """Wait until the screen ends with these rows."""
        try:
            await eventually(lambda: self.rows[-len(rows) :] == list(rows))
        except TimeoutError:
            assert self.rows[-len(rows) :] == list(rows)

    async def end(self) -> int:
        """Wait for the end of the program, see that the terminal is as it was, and return the exit code."""
        code = await asyncio.to_thread(self.process.wait, TIMEOUT)
        await asyncio.sleep(0)
        assert termios.tcgetattr(self.slave) == self.attributes
        assert os.get_blocking(self.slave)
        assert not UNWANTED.search("\n".join(self.rows)), self.rows
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        asyncio.get_running_loop().remove_reader(self.master)
        os.close(self.master)
        os.close(self.slave)


Start = Callable[..., Terminal]


@pytest.fixture
async def start(server: Server) -> AsyncIterator[Start]:
    """Start terminal chats with `start(*arguments, columns=60, rows=12, **environment)`."""
    terminals = []

    def start(*arguments: str, **options: Any) -> Terminal:
        if "--url" not in arguments:
            arguments = ("--url", f"{server.url}/chat", *arguments)
        terminals.append(Terminal(*arguments, **options))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


BOB_IN_MATH = ["* You are now in math", "* You are now known as Bob", "* In math: Amy, Bob", "math Bob>"]


async def start_bob(server: Server, join: Join, start: Start, **options: Any) -> tuple[Member, Terminal]:
    """Let Amy in, and then Bob, who sits at a terminal."""
    amy = await join(server.url, "Amy", "math")
    bob = start("--room", "math", "--nick", "Bob", **options)
    await bob.shows_last("math Bob>")
    await amy.catch_up()
    return amy, bob


async def say(member: Member, text: str) -> None:
    """Say something; what the others have done meanwhile does not matter."""
    await member.websocket.send_json({"action": "chat_message", "message": text})
    await member.catch_up()


# What is on the screen


async def test_beginning(server: Server, join: Join, start: Start) -> None:
    """It joins the room, then sets the nick, then shows who is there."""
    amy = await join(server.url, "Amy", "math")
    bob = start("--room", "math", "--nick", "Bob")
    await bob.shows(*BOB_IN_MATH)
    assert bob.cursor == (3, len("math Bob> "))
    joined, renamed = await amy.catch_up()
    assert (joined["action"], joined["room"]) == ("joined", "math")
    assert renamed == {"action": "nick_changed", "room": "math", "from_user": joined["user"], "to_user": "Bob"}


@pytest.mark.parametrize("arguments", [(), ("--room", "default")])
async def test_beginning_without_a_room_and_a_nick(start: Start, arguments: tuple[str, ...]) -> None:
    somebody = start(*arguments)
    await eventually(lambda: "> " in somebody.screen.display[1])
    user = somebody.rows[1].removeprefix("default ").removesuffix(">")
    assert user.startswith("User")
    assert somebody.rows == [f"* In default: {user}", f"default {user}>"]


async def test_beginning_with_a_nick_that_is_in_use(server: Server, join: Join, start: Start) -> None:
    await join(server.url, "Bob", "math")
    bob = start("--room", "math", "--nick", "Bob")
    await eventually(lambda: len(bob.rows) == 4)
    assert bob.rows[:2] == ["* You are now in math", "! Nickname is already in use"]
    assert bob.rows[2].startswith("* In math: Bob, User")
    assert bob.rows[3].startswith("math User")


async def test_notices(server: Server, join: Join, start: Start) -> None:
    amy, bob = await start_bob(server, join, start)
    carol = await join(server.url, "Carol", "math")
    await say(amy, "hello")
    await carol.ask(action="set_nick", nick="Carola")
    await carol.leave()
    await bob.shows_last("* Carola left", "math Bob>")
    dan = await join(server.url, "Dan", "math")
    dan.vanish()
    await bob.shows(
        *BOB_IN_MATH[:-1],
        "* Carol joined math",
        "Amy: hello",
        "* Carol is now known as Carola",
        "* Carola left",
        "* Dan joined math",
        "* Dan left without a goodbye: shame!",
        "math Bob>",
    )


async def test_commands(server: Server, join: Join, start: Start) -> None:
    amy, bob = await start_bob(server, join, start, rows=40)
    await join(server.url, "Carol", "art")
    for line in ("hello", "//shrug", "", "   ", "/dance now", "/nick Amy"):
        await bob.enter(line, "math Bob>")
    for line in ("/nick  Robert Two ", "/users", "/users art", "/users nowhere", "/join"):
        await bob.enter(line, "math Robert Two>")
    await bob.enter("/join art", "art Robert Two>")
    assert await amy.catch_up() == [
        {"action": "chat_message", "message": "hello", "user": "Bob"},
        {"action": "chat_message", "message": "/shrug", "user": "Bob"},
        {"action": "nick_changed", "room": "math", "from_user": "Bob", "to_user": "Robert Two"},
        {"action": "left", "room": "math", "user": "Robert Two", "shame": False},
    ]
    await bob.shows(
        *BOB_IN_MATH[:-1],
        "math Bob> hello",
        "math Bob> //shrug",
        "math Bob>",
        "math Bob>",
        "math Bob> /dance now",
        "! There is no /dance; /help shows what there is",
        "math Bob> /nick Amy",
        "! Nickname is already in use",
        "math Bob> /nick  Robert Two",
        "* You are now known as Robert Two",
        "math Robert Two> /users",
        "* In math: Amy, Robert Two",
        "math Robert Two> /users art",
        "* In art: Carol",
        "math Robert Two> /users nowhere",
        "* In nowhere: nobody",
        "math Robert Two> /join",
        "! join_room needs the field room: 1 to 32 printable characte",
        "rs with no space at either end.",
        "math Robert Two> /join art",
        "* You are now in art",
        "art Robert Two>",
    )
    bob.type("/help\n")
    await bob.shows_last("* //text         say something that begins with a slash", "art Robert Two>")
    for command in ("/nick NAME", "/join ROOM", "/users [ROOM]", "/help", "/quit"):
        assert any(row.startswith(f"* {command} ") for row in bob.rows)


@pytest.mark.parametrize(("columns", "rows"), [(60, 12), (60, 5), (30, 8), (200, 50)])
async def test_half_typed_line_survives(server: Server, join: Join, start: Start, columns: int, rows: int) -> None:
    """Whatever arrives is shown above it, wherever on the screen it is, and the cursor stays where it was."""
    amy, bob = await start_bob(server, join, start, columns=columns, rows=rows)
    bob.type("half typed")
    line = "math Bob> half typed"
    await bob.shows_last(line)
    above = bob.rows[:-1]
    for text in ["hi", "x" * 150, "日本語" * 20, "e\u0301" * 40, "\N{GRINNING FACE}" * 31, *map(str, range(30))]:
        await say(amy, text)
        above += wrapped(f"Amy: {text}", columns)
        # The emulator puts a letter and its accent together.
        above = [unicodedata.normalize("NFC", row) for row in above]
        await bob.shows(*above[-(rows - 1) :], line)
        assert bob.cursor == (min(len(above), rows - 1), len(line))
    bob.type(" and done\n")
    assert await amy.hear() == {"action": "chat_message", "message": "half typed and done", "user": "Bob"}
    await bob.shows_last(f"{line} and done", "math Bob>")


def wrapped(text: str, columns: int) -> list[str]:
    """Return the rows that a text takes on a screen."""
    rows = [""]
    for char in text:
        if wcswidth(rows[-1] + char) > columns:
            rows.append("")
        rows[-1] += char
    return rows


@pytest.mark.parametrize("name", ["n" * 32, "日" * 32, "\N{GRINNING FACE}" * 32])
async def test_names_that_are_too_long_for_the_prompt(server: Server, join: Join, start: Start, name: str) -> None:
    """The prompt takes half of the screen at the most, so that the line does not break."""
    amy = await join(server.url, "Amy", name)
    bob = start("--room", name, "--nick", name, columns=40, rows=12)
    prompt = f"{wrapped(f'{name} {name}', 18)[0]}>"
    await bob.shows_last(prompt)
    bob.type("half")
    await say(amy, "hello")
    await bob.shows_last("Amy: hello", f"{prompt} half")


async def test_what_is_typed_before_the_prompt_is_there_comes_behind_it(aiohttp_server: Any, start: Start) -> None:
    """A slow server answers late; the user types on."""
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_json({"action": "connecting", "room": "r", "user": "u"})
        async for message in websocket:
            answer = {"success": True, "message": "", **message.json(), "users": []}
            if answer["action"] == "set_nick":
                answer = await answers.get()
            await websocket.send_json(answer)
        return websocket

    app = web.Application()
    app.router.add_get("/", view)
    url = str((await aiohttp_server(app)).make_url("/"))
    bob = start("--url", url)
    await bob.shows_last("r u>")
    bob.type("/nick Bob\nhal")
    await bob.shows("* In r: nobody", "r u> /nick Bob", "hal")
    answers.put_nowait({"action": "set_nick", "success": True, "message": ""})
    await bob.shows("* In r: nobody", "r u> /nick Bob", "* You are now known as Bob", "r Bob> hal")
    bob.type("f")
    await bob.shows_last("r Bob> half")


HOSTILE = [
    ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
    ("\x9b2J", r"\x9b2J"),
    ("bell\x07 back\x08 tab\t", r"bell\x07 back\x08 tab\t"),
    ("one\ntwo\r\nthree", r"one\ntwo\r\nthree"),
    ("\u202eright to left\u2066", r"\u202eright to left\u2066"),
    ("half a pair \ud83d", r"half a pair \ud83d"),
    ("\u2028\u200b\u00ad\ufeff\x7f", r"\u2028\u200b\xad\ufeff\x7f"),
]


async def test_text_from_others_is_text(server: Server, join: Join, start: Start) -> None:
    amy, bob = await start_bob(server, join, start, rows=20, NO_COLOR="1")
    for text, shown in HOSTILE:
        await say(amy, text)
        await bob.shows_last(f"Amy: {shown}", "math Bob>")
        raw = bob.output.decode()
        assert not any(char in raw for char in "\x9b\x07\x08\t\u202e\u2066\u2028\u200b\xad\ufeff\x7f")
        assert "\x1b[2J" not in raw
        assert "\x1b[31m" not in raw


async def test_colour(server: Server, join: Join, start: Start) -> None:
    await join(server.url, "Amy", "math")
    environments = [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}]
    colourful, plain, dumb = [start("--room", "math", **environment) for environment in environments]
    for terminal in (colourful, plain, dumb):
        await eventually(lambda terminal=terminal: "* In math: Amy" in "".join(terminal.rows))  # type: ignore[misc]
    assert b"\x1b[36m* You are now in math" in colourful.output
    assert b"* You are now in math" in plain.output
    assert b"\x1b[36m" not in plain.output
    assert b"\x1b" not in dumb.output


async def test_terminal_that_can_do_nothing(server: Server, join: Join, start: Start) -> None:
    amy = await join(server.url, "Amy", "math")
    bob = start("--room", "math", "--nick", "Bob", TERM="dumb")
    await bob.shows(*BOB_IN_MATH[:-1])
    await say(amy, "hello")
    await bob.shows(*BOB_IN_MATH[:-1], "Amy: hello")


async def test_verbose(server: Server, join: Join, start: Start) -> None:
    amy, bob = await start_bob(server, join, start)
    carol = start("--room", "math", "--nick", "Carol", "--verbose", columns=150, rows=20)
    await carol.shows_last("math Carol>")
    assert '> {"action": "join_room", "room": "math"}' in carol.rows
    assert """< '{"action": "join_room", "success": true, "message": ""}'""" in carol.rows
    assert not any("{" in row for row in bob.rows)
    await amy.catch_up()


async def test_message_that_is_too_long(server: Server, join: Join, tmp_path: Path) -> None:
    amy = await join(server.url, "Amy", "math")
    typed = "x" * 66_000 + "\n" + "y" * 60_000 + "\n" + "z" * 200_000  # the last line needs no newline
    code, output, errors = await pipe(server, typed.encode(), "--room", "math")
    assert (code, errors) == (0, "")
    too_long = 66_000 + len('{"action": "chat_message", "message": ""}')
    assert f"! This is too long: {too_long} bytes of 65536\n" in output
    assert "! This is too long: 200041 bytes of 65536\n" in output
    said = [body["message"] for body in await amy.catch_up() if body["action"] == "chat_message"]
    assert said == ["y" * 60_000]


# How it ends


@pytest.mark.parametrize("how", ["/quit", "Ctrl+D", "Ctrl+C", "SIGTERM", "Ctrl+D behind a text"])
async def test_goodbye(server: Server, join: Join, start: Start, how: str) -> None:
    amy, bob = await start_bob(server, join, start)
    match how:
        case "/quit":
            bob.type("/quit\n")
        case "Ctrl+D":
            bob.type("\x04")
        case "Ctrl+C":
            bob.type("half typed\x03")
        case "SIGTERM":
            bob.process.terminate()
        case "Ctrl+D behind a text":
            bob.type("half typed\x04\x04")
            assert await amy.hear() == {"action": "chat_message", "message": "half typed", "user": "Bob"}
    assert await bob.end() == 0
    assert await amy.hear() == {"action": "left", "room": "math", "user": "Bob", "shame": False}
    # The shell's prompt comes at the beginning of a line.
    await eventually(lambda: bob.cursor[1] == 0)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
async def test_server_goes_away(
    start_server: Callable[..., Server], join: Join, start: Start, signal_number: signal.Signals
) -> None:
    server = start_server()
    bob = start("--url", f"{server.url}/chat", "--nick", "Bob", columns=90)
    await bob.shows_last("default Bob>")
    bob.type("half typed")
    await bob.shows_last("default Bob> half typed")
    server.process.send_signal(signal_number)
    assert await bob.end() == 1
    await bob.shows_last("default Bob> half typed", f"{server.url}/chat: the server closed the connection.")
    server.process.wait()


# Without a terminal


async def pipe(server: Server, typed: bytes, *arguments: str) -> tuple[int, str, str]:
    """Run it with a text as its input; return its exit code, output and errors."""
    command = [sys.executable, "client.py", "--url", f"{server.url}/chat", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, **pipes)  # type: ignore[arg-type]
    try:
        output, errors = await asyncio.wait_for(process.communicate(typed), TIMEOUT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_pipe(server: Server, join: Join) -> None:
    amy = await join(server.url, "Amy", "lounge")
    code, output, errors = await pipe(server, b"one\ntwo\nthree", "--room", "lounge", "--nick", "Bob")
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "* You are now in lounge",
        "* You are now known as Bob",
        "* In lounge: Amy, Bob",
        "Bob: one",
        "Bob: two",
        "Bob: three",
    ]
    bodies = (await amy.catch_up())[2:]
    assert bodies == [
        *[{"action": "chat_message", "message": text, "user": "Bob"} for text in ("one", "two", "three")],
        {"action": "left", "room": "lounge", "user": "Bob", "shame": False},
    ]


async def test_pipe_with_many_lines_and_odd_bytes(server: Server, join: Join) -> None:
    amy = await join(server.url, "Amy", "lounge")
    lines = [f"line {number}" for number in range(1_000)]
    code, _, errors = await pipe(server, "\r\n".join([*lines, ""]).encode() + b"\xff\n\n", "--room", "lounge")
    assert (code, errors) == (0, "")
    said = [body["message"] for body in await amy.catch_up() if body["action"] == "chat_message"]
    assert said == [*lines, "\ufffd"]


async def test_files(server: Server, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"one\n\xfftwo")
    with (tmp_path / "in").open() as stdin, (tmp_path / "out").open("w") as stdout:
        command = [sys.executable, "client.py", "--url", f"{server.url}/chat", "--nick", "Bob"]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=stdin, stdout=stdout, stderr=stdout)
        assert await asyncio.wait_for(process.wait(), TIMEOUT) == 0
    assert (tmp_path / "out").read_text() == (
        "* You are now known as Bob\n* In default: Bob\nBob: one\nBob: \N{REPLACEMENT CHARACTER}two\n"
    )


async def test_pipe_to_a_server_that_goes_away(start_server: Callable[..., Server]) -> None:
    server = start_server()
    command = [sys.executable, "client.py", "--url", f"{server.url}/chat", "--nick", "Bob"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, **pipes)  # type: ignore[arg-type]
    assert process.stdout
    assert await process.stdout.readline() == b"* You are now known as Bob\n"
    await asyncio.to_thread(server.stop)
    # Its input stays open all the while.
    assert await asyncio.wait_for(process.wait(), TIMEOUT) == 1
    _, errors = await process.communicate()
    assert errors.decode() == f"{server.url}/chat: the server closed the connection.\n"


# Servers that are odd

ODD_FRAMES = [
    *["not JSON", "[]", "5", "null", "{}", '{"action": "dance"}', '{"action": 5}', "[" * 60_000, "1" * 6_000, "NaN"],
    *['{"action": "joined"}', '{"action": "joined", "room": 5, "user": []}', '{"action": "left", "user": null}'],
    *['{"action": "chat_message", "user": "x"}', '{"success": "yes"}', '{"action": "nick_changed", "to_user": "x"}'],
]
STRAY_ANSWERS = ['{"success": true}', '{"success": false}', '{"success": true, "users": 5}']
BINARY_FRAMES = [b"\xff\x00", b'{"action": "chat_message", "user": "x", "message": "y"}']


@pytest.mark.parametrize("verbose", [False, True])
async def test_odd_frames_are_skipped(aiohttp_server: Any, start: Start, verbose: bool) -> None:
    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_json({"action": "connecting", "room": "r", "user": "u"})
        async for message in websocket:
            if message.json()["action"] == "user_list":
                await websocket.send_json({"action": "user_list", "success": True, "room": "r", "users": ["u", 5]})
            else:
                for text in ODD_FRAMES + STRAY_ANSWERS:
                    await websocket.send_str(text)
                for data in BINARY_FRAMES:
                    await websocket.send_bytes(data)
                await websocket.send_json({"action": "chat_message", "user": "Amy", "message": "made it"})
        return websocket

    app = web.Application()
    app.router.add_get("/", view)
    url = str((await aiohttp_server(app)).make_url("/"))
    bob = start("--url", url, *(["--verbose"] if verbose else []), rows=20)
    await bob.shows_last("r u>")
    bob.type("go\n")
    if verbose:
        await eventually(lambda: "Amy: made it" in bob.rows)
        assert bob.output.decode().count("skipped") == len(ODD_FRAMES + BINARY_FRAMES)
    else:
        await bob.shows_last("r u> go", "Amy: made it", "r u>")
