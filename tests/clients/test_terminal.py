"""The terminal chat: what a person sees on an emulated screen, which a pseudo-terminal feeds, and pipes."""

import argparse
import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pyte
import pytest
from aiohttp import web
from yarl import URL

import client
from server import init_app
from tests.helpers import (
    ROOT,
    TIMEOUT,
    UNWANTED,
    Join,
    Member,
    StartScript,
    eventually,
    joined,
    left,
    said,
)


class Screen:
    """A screen and a keyboard, which a pseudo-terminal connects with a program. A time is shown as @."""

    chat: asyncio.Task[None]

    def __init__(self, columns: int = 60, rows: int = 12) -> None:
        self.output = b""
        self.master, self.slave = pty.openpty()
        self.attributes = termios.tcgetattr(self.slave)
        self.stdin, self.stdout = os.fdopen(self.slave, closefd=False), os.fdopen(self.slave, "w")
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.resize(columns, rows)
        asyncio.get_running_loop().add_reader(self.master, self.render)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        signal.raise_signal(
            signal.SIGWINCH
        )  # as the system does where a terminal is a process's own

    def render(self) -> None:
        data = os.read(self.master, 100_000)
        self.output += data
        self.stream.feed(data)

    @property
    def rows(self) -> list[str]:
        """What the screen shows, without the empty rows at its end."""
        rows = "\n".join(row.rstrip() for row in self.screen.display).rstrip("\n").split("\n")
        return [re.sub(r"^\d\d:\d\d(?= )", "@", row) for row in rows]

    async def shows(self, *rows: str, cursor: int | None = None) -> None:
        """Wait until the screen ends with these rows, and with the cursor in this column."""

        def state() -> tuple[list[str], int | None]:
            return self.rows[
                len(self.rows) - len(rows) :
            ], None if cursor is None else self.screen.cursor.x

        with contextlib.suppress(TimeoutError):
            await eventually(lambda: state() == (list(rows), cursor))
        assert state() == (list(rows), cursor)
        assert cursor is None or self.screen.cursor.y == len(self.rows) - 1

    async def type(self, text: str, *rows: str, cursor: int | None = None) -> None:
        """Type something, and wait until the screen ends with these rows, and with the cursor in this column."""
        for start in range(0, len(text), 1_000):  # as much as a pseudo-terminal takes at once
            await asyncio.to_thread(os.write, self.master, text[start : start + 1_000].encode())
        await self.shows(*rows, cursor=cursor)

    async def end(self) -> str:
        """Return the sentence with which the chat ends by itself, an empty one if the user has left."""
        await asyncio.wait([self.chat], timeout=TIMEOUT)
        error = self.chat.exception()  # raised if it goes on
        return client.why(error) if error else ""

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.master)
        os.close(self.master)
        self.stdin.close()
        self.stdout.close()

    def is_as_it_was(self) -> bool:
        """Tell whether the shell gets the terminal as it was, with its prompt at the beginning of a line."""
        is_plain = termios.tcgetattr(self.slave) == self.attributes and os.get_blocking(self.slave)
        return is_plain and self.screen.cursor.x == 0 and not UNWANTED.search("\n".join(self.rows))


def run_chat(
    stdin: Any, stdout: Any, url: URL, room: str | None, nick: str | None, **options: bool
) -> Any:
    """Run a chat in this process."""
    given = argparse.Namespace(
        **{"room": room, "nick": nick, "verbose": False, "reconnect": False, **options}
    )
    return asyncio.create_task(client.run(client.Chat(client.Terminal(stdin, stdout), given), url))


Start = Callable[..., Screen]
StartBob = Callable[..., Awaitable[tuple[Member, Screen]]]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Start chats with `start(url, room=None, nick=None, verbose=False, reconnect=False, columns=60, rows=12)`."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "7")  # which is wrong, as in a test run
    screens = []

    def start(
        url: URL,
        room: str | None = None,
        nick: str | None = None,
        columns: int = 60,
        rows: int = 12,
        **options: bool,
    ) -> Screen:
        screens.append(screen := Screen(columns, rows))
        screen.chat = run_chat(screen.stdin, screen.stdout, url, room, nick, **options)
        return screen

    yield start
    for screen in screens:
        screen.chat.cancel()
        await asyncio.wait([screen.chat])
        await eventually(screen.is_as_it_was)
        screen.close()


@pytest.fixture
async def url(aiohttp_server: Any) -> URL:
    """The address of a server in here."""
    url: URL = (await aiohttp_server(await init_app())).make_url("/")
    return url


@pytest.fixture
def start_bob(url: URL, join: Join, start: Start) -> StartBob:
    """Let Amy in, and then Bob, who sits at a terminal: `amy, bob = await start_bob(columns=60, rows=12)`."""

    async def start_bob(**options: int) -> tuple[Member, Screen]:
        amy = await join(url, "Amy", "math")
        bob = start(url / "chat", "math", "Bob", **options)
        await bob.shows("@ * In math: Amy, Bob", "math Bob>")
        await amy.catch_up()
        return amy, bob

    return start_bob


async def say(member: Member, text: str) -> None:
    """Say something; what the others have done meanwhile does not matter."""
    await member.websocket.send_json({"action": "chat_message", "message": text})
    await member.catch_up()


async def serve(aiohttp_server: Any, *frames: str | bytes, autoclose: bool = True) -> URL:
    """Return the address of a server that greets, responds with a user list, and to all else with some frames."""

    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(autoclose=autoclose)
        await websocket.prepare(request)
        await websocket.send_json({"action": "connecting", "room": "r", "user": "u"})
        async for message in websocket:
            if message.json()["action"] == "user_list":
                await websocket.send_json(
                    {"action": "user_list", "success": True, "room": "r", "users": ["u", 5]}
                )
            for frame in frames if message.json()["action"] == "chat_message" else ():
                await (
                    websocket.send_str(frame)
                    if isinstance(frame, str)
                    else websocket.send_bytes(frame)
                )
        await asyncio.sleep(0 if autoclose else TIMEOUT)
        return websocket

    app = web.Application()
    app.router.add_get("/", view)
    url: URL = (await aiohttp_server(app)).make_url("/")
    return url


# The chat


async def test_beginning(url: URL, join: Join, start: Start) -> None:
    """It joins the room, then sets the nick, then shows who is there."""
    amy = await join(url, "Amy", "math")
    somebody = start(url / "chat", "math", "Amy")
    await eventually(lambda: somebody.rows[-1].startswith("math User"))
    user = somebody.rows[-1].removeprefix("math ").removesuffix(">")
    refusal = "@ ! Nickname is already in use"
    await somebody.shows(
        "@ * You are now in math", refusal, f"@ * In math: Amy, {user}", f"math {user}>"
    )
    await somebody.type("/quit\n")
    assert await somebody.end() == ""
    assert await amy.catch_up() == [joined("math", user), left("math", user, shame=False)]
    somebody = start(
        url / "chat", "math", "\udcff"
    )  # how Python hands over an argument that is no UTF-8
    await eventually(lambda: f"@ {NICKNAME}" in somebody.rows)
    for room in (None, "default"):
        somebody = start(url / "chat", room)
        await eventually(lambda: somebody.rows[-1].startswith("default User"))  # noqa: B023
        assert len(somebody.rows) == 2


async def test_notices(url: URL, join: Join, start_bob: StartBob) -> None:
    """Tab knows who is there."""
    _, bob = await start_bob()
    carol = await join(url, room="math")
    await bob.shows(f"@ * {carol.user} joined math", "math Bob>")
    await bob.type("user\t", f"math Bob> {carol.user}")
    await carol.ask(action="set_nick", nick="Carol")
    await bob.shows(f"@ * {carol.user} is now known as Carol", f"math Bob> {carol.user}")
    await bob.type("\x15user\tca\t", "math Bob> user Carol")
    await say(carol, "hello")
    await carol.leave()
    (await join(url, "Dan", "math")).vanish()
    notices = [
        "@ Carol: hello",
        "@ * Carol left",
        "@ * Dan joined math",
        "@ * Dan left without a goodbye: shame!",
    ]
    await bob.shows(*notices, "math Bob> user Carol")
    await bob.type("\x15ca\t", *notices, "math Bob> ca")
    await bob.type("\x15/users art\n", "@ * In art: nobody", "math Bob>")
    await bob.type("am\t", "math Bob> Amy")


NICKNAME = "! A nickname has 1 to 32 printable characters"
ROOM = "! A room's name has 1 to 32 printable characters"
COMMANDS = [
    ("hello", ["Bob: hello"]),
    ("//shrug", ["Bob: /shrug"]),
    ("", []),
    ("   ", []),
    ("/dance now", ["! There is no /dance; /help shows what there is"]),
    ("/nick Amy", ["! Nickname is already in use"]),
    ("/nick", [NICKNAME]),
    ("/nick " + "n" * 33, [NICKNAME]),
    ("/nick  Robert Two ", ["* You are now known as Robert Two"]),
    ("/users", ["* In math: Amy, Robert Two"]),
    ("/users art", ["* In art: Carol"]),
    ("/users nowhere", ["* In nowhere: nobody"]),
    ("/users " + "r" * 33, [ROOM]),
    ("/join", [ROOM]),
    ("/join  math ", ["! You are already in math"]),
    ("/join art", ["* You are now in art", "* In art: Carol, Robert Two"]),
    ("/help", [f"* {row}" for row in client.HELP.splitlines()]),
]


async def test_commands(url: URL, join: Join, start_bob: StartBob) -> None:
    amy, bob = await start_bob(columns=80, rows=40)
    await join(url, "Carol", "art")
    rows, prompt = bob.rows[:-1], "math Bob>"
    for line, shown in COMMANDS:
        rows += [f"@ {row}" for row in shown]
        prompt = prompt.replace("Bob", "Robert Two") if "/nick  " in line else prompt
        prompt = prompt.replace("math", "art") if "art" in line and "join" in line else prompt
        await bob.type(f"{line}\n", *rows, prompt)
    assert await amy.catch_up() == [
        said("Bob", "hello"),
        said("Bob", "/shrug"),
        {"action": "nick_changed", "room": "math", "from_user": "Bob", "to_user": "Robert Two"},
        left("math", "Robert Two", shame=False),
    ]


async def test_verbose(url: URL, start: Start) -> None:
    bob = start(url / "chat", "math", verbose=True, columns=80)
    await eventually(
        lambda: """@ < '{"action": "join_room", "success": true, "message": ""}'""" in bob.rows
    )
    assert '@ > {"action": "join_room", "room": "math"}' in bob.rows


ODD_FRAMES: list[str | bytes] = [
    *[
        "not JSON",
        "[]",
        "5",
        "null",
        "{}",
        '{"action": "dance"}',
        '{"action": 5}',
        "[" * 60_000,
        "1" * 6_000,
        "NaN",
    ],
    *[
        '{"action": "joined"}',
        '{"action": "joined", "room": 5, "user": []}',
        '{"action": "left", "user": null}',
    ],
    *[
        '{"action": "chat_message", "user": "x"}',
        '{"success": "yes"}',
        '{"action": "nick_changed", "to_user": "x"}',
    ],
    *[b"\xff\x00", b'{"action": "chat_message", "user": "x", "message": "y"}'],
    *[
        '{"success": true}',
        '{"success": false}',
        '{"success": true, "users": 5}',
    ],  # the first is the response
]


async def test_odd_frames_are_skipped(aiohttp_server: Any, start: Start) -> None:
    made_it = '{"action": "chat_message", "user": "Amy", "message": "made it"}'
    bob = start(await serve(aiohttp_server, *ODD_FRAMES, made_it))
    await bob.type("go\n")
    await bob.shows("@ * In r: u, 5", "@ u: go", "@ Amy: made it", "r u>")


async def test_address_of_no_chat(url: URL, start: Start) -> None:
    assert await start(url / "echo").end() == "this is a WebSocket, but not a chat"
    assert (await start(url).end()).startswith("this is not a WebSocket: HTTP 200")


async def test_server_that_does_not_respond(
    aiohttp_server: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late response would pass for the next one; what was said may be lost, and is shown."""
    bob = start(await serve(aiohttp_server))
    await bob.shows("r u>")
    monkeypatch.setattr(client, "RESPONSE_TIMEOUT", 0.01)
    await bob.type("hello\n")
    assert await bob.end() == "no response; is the server running?"
    await bob.shows("@ * In r: u, 5", "@ ! Maybe nobody has seen this: hello")


async def test_server_that_does_not_respond_to_the_goodbye(
    aiohttp_server: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has left does not come back, not even with --reconnect."""
    monkeypatch.setattr(client, "GOODBYE_TIMEOUT", 0.1)
    url = await serve(aiohttp_server, autoclose=False)
    amy, bob = start(url, reconnect=True), start(url, reconnect=True)
    await amy.type("/quit\n")
    await bob.shows("r u>")
    bob.chat.cancel()  # as Ctrl+C does
    assert await amy.end() == "no response; is the server running?"
    assert await asyncio.wait([bob.chat], timeout=TIMEOUT) == ({bob.chat}, set())


async def test_reconnect(
    aiohttp_server: Any, join: Join, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back to where it was, under the name that it had, and with what was typed meanwhile."""
    monkeypatch.setattr(client, "MIN_PAUSE", 0.01)
    first = await aiohttp_server(await init_app())
    port = first.port
    bob, guest = (
        start(first.make_url("/chat"), nick=nick, reconnect=True, columns=99)
        for nick in ("Bob", None)
    )
    await bob.type("/join math\n/nick Bobby\n")
    await bob.shows("@ * In math: Bob", "@ * You are now known as Bobby", "math Bobby>")
    await eventually(lambda: guest.rows[-1].startswith("default User"))
    name = guest.rows[-1]
    await first.close()
    await eventually(lambda: "0.04 s" in bob.rows[-2])
    await bob.type("I am back\n")
    assert bob.rows[-4] == "@ ! the server closed the connection (trying again in 0.01 s)"
    assert bob.rows[-3] == "@ ! no response; is the server running? (trying again in 0.02 s)"
    second = await aiohttp_server(await init_app(), port=port)
    await bob.shows(
        "@ * You are now known as Bobby", "@ * In math: Bobby", "@ Bobby: I am back", "math Bobby>"
    )
    await guest.shows(f"@ * In default: {name[8:-1]}", name)
    amy = await join(second.make_url("/"), "Amy", "math")
    bob.chat.cancel()
    await asyncio.wait([bob.chat])
    assert await amy.hear() == left("math", "Bobby", shame=False)


# The screen and the keyboard


@pytest.mark.parametrize(("columns", "rows"), [(60, 12), (30, 5)])
async def test_half_typed_line_survives(start_bob: StartBob, columns: int, rows: int) -> None:
    """Whatever arrives is shown above it, and the cursor stays where it was."""
    amy, bob = await start_bob(columns=columns, rows=rows)
    await bob.type("half typed\x1b[D", "math Bob> half typed", cursor=19)
    for text in [
        "hi",
        "x" * 50,
        "日本語" * 10,
        "e\u0301" * 40,
        "\N{GRINNING FACE}" * 20,
        *map(str, range(10)),
    ]:
        await say(amy, text)
        await eventually(lambda text=text: text[-1] in bob.rows[-2] or text[-1] == "\u0301")  # type: ignore[misc]
        await bob.shows("math Bob> half typed", cursor=19)
    await bob.type("!", "math Bob> half type!d", cursor=20)
    await bob.type("\n", "@ Bob: half type!d", "math Bob>")
    assert await amy.hear() == said("Bob", "half type!d")


async def test_editing(start_bob: StartBob) -> None:
    amy, bob = await start_bob()
    for keys, line, cursor in [
        ("one two  three", "one two  three", 14),
        ("\x17", "one two", 9),  # Ctrl+W
        ("\x1b[D\x1b[D\x7f", "one tw", 6),  # left, Backspace
        ("\x1b[H\x1b[C\x1b[3~", "oe tw", 1),  # Home, right, Delete
        ("\x1bOF!\x1bOD\x04", "oe tw", 7),  # End, and Ctrl+D, which deletes
        ("\x01\x06\x0b", "o", 1),  # Ctrl+A, Ctrl+F, Ctrl+K
        ("k\x05\x15", "", 0),  # Ctrl+E, Ctrl+U
        ("日本\x1b[D語", "日語本", 4),
        ("\x1b[1", "日語本", 4),  # the rest of the key comes late
        ("~x", "x日語本", 1),
        ("\x1b[4~\x15\x1b[5~\x1b\x1b[Z", "", 0),  # keys that mean nothing here
        ("\tx", " x", 2),  # a tab in what is pasted is a space
        ("\x15/jo\t", "/join", 6),
        ("\x15hi @am\t", "hi @Amy", 8),
        ("q\tb", "hi @Amy q b", 11),  # no name begins so
    ]:
        await bob.type(keys, f"math Bob> {line}".rstrip(), cursor=len("math Bob> ") + cursor)
    await bob.type("\n", "@ Bob: hi @Amy q b", "math Bob>")
    await bob.type("second\n\n", "@ Bob: second", "math Bob>")
    for keys, line in [
        ("new", "new"),
        ("\x1b[A", "second"),
        ("\x1bOA\x10", "hi @Amy q b"),
        ("\x1b[B\x0e\x0e", "new"),
    ]:
        await bob.type(keys, f"math Bob> {line}")
    await bob.type("\x04", "math Bob> new")  # leaves on an empty line only
    # A typed line sends nothing before Enter.
    assert [body["message"] for body in await amy.catch_up()] == ["hi @Amy q b", "second"]


async def test_line_that_is_wider_than_the_screen(start_bob: StartBob) -> None:
    """It stays in one row, and the part around the cursor is seen, also after a change of the size and Ctrl+Z."""
    amy, bob = await start_bob(columns=40)
    await bob.type("begin" + "日本\uff21" * 10 + "\N{GRINNING FACE}" * 5 + "end")
    await eventually(lambda: bob.rows[-1].endswith("\N{GRINNING FACE} end".replace(" ", "")))
    assert bob.rows[-1].startswith("math Bob> ")
    cursor = bob.screen.cursor.x
    await say(amy, "hello, how is it over there? I have been waiting for a T-shirt")
    indented = [
        "@ Amy: hello, how is it over there?",
        " " * 11 + "I have been waiting for a",
        " " * 11 + "T-shirt",
    ]
    await bob.shows(*indented, bob.rows[-1], cursor=cursor)
    await bob.type(
        "\x01", *indented, "math Bob> begin日本\uff21日本\uff21日本\uff21日本\uff21", cursor=10
    )
    bob.resize(24, 12)
    rows = [
        "@ Amy: hello, how",
        *(" " * 11 + row for row in ("is it over", "there? I", "have been")),
    ]
    await bob.shows(
        *rows,
        " " * 11 + "waiting for",
        " " * 11 + "a T-shirt",
        "math Bob> begin日本\uff21日",
        cursor=10,
    )
    bob.resize(90, 12)
    whole = "math Bob> begin" + "日本\uff21" * 10 + "\N{GRINNING FACE}" * 5 + "end"
    await bob.shows(
        "@ Amy: hello, how is it over there? I have been waiting for a T-shirt", whole, cursor=10
    )
    # What the shell does after Ctrl+Z, and then `fg`.
    termios.tcsetattr(bob.slave, termios.TCSANOW, bob.attributes)
    bob.stream.feed(b"\r\n[1]+  Stopped\r\n$ fg\r\n")
    signal.raise_signal(signal.SIGCONT)
    await bob.shows("$ fg", whole, cursor=10)
    await bob.type("\x0bback\n", "@ Bob: back", "math Bob>")


async def test_paste(start_bob: StartBob) -> None:
    amy, bob = await start_bob(rows=24)
    await bob.type(
        "one\ntwo\nthree\nrest", "@ Bob: one", "@ Bob: two", "@ Bob: three", "math Bob> rest"
    )
    text = "".join(map(str, range(10_000)))[:30_000] + "é" * 15_000
    await bob.type("\x15" + text)
    await bob.type("\n")
    await bob.type("y" * 65_600)
    await bob.type("\n")
    await eventually(lambda: "@ ! This is too long: 65641 bytes of 65536" in bob.rows)
    await bob.type("\x1b[A\x01")  # it is not lost
    await eventually(lambda: bob.rows[-1].startswith("math Bob> yyy"))
    assert [body["message"] for body in await amy.catch_up()] == ["one", "two", "three", text]


async def test_names_that_are_too_long(url: URL, join: Join, start: Start) -> None:
    """The prompt takes half of the screen at the most, and text is not squeezed in beside a name that takes more."""
    name, nick = "\N{GRINNING FACE}" * 32, "n" * 32
    bob = start(url / "chat", name, name, columns=40)
    await bob.shows(name[:10])
    await bob.type("half", f"{name[:10]}half")
    await say(await join(url, nick, name), "and text")
    await bob.shows(f"@ {nick}:", "and text", f"{name[:10]}half")


HOSTILE = [
    ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
    ("\x9b2J", r"\x9b2J"),
    ("bell\x07 back\x08 tab\t", r"bell\x07 back\x08 tab\t"),
    ("one\ntwo\r\nthree", r"one\ntwo\r\nthree"),
    ("\u202eright to left\u2066", r"\u202eright to left\u2066"),
    ("half a pair \ud83d", r"half a pair \ud83d"),
    ("\u2028\u200b\u00ad\ufeff\x7f\0", r"\u2028\u200b\xad\ufeff\x7f\x00"),
    ("e\u0301" * 40, "é" * 40),  # one row: it counts 40 columns
    ("\N{WOMAN}\u200d\N{ROCKET}", "\N{WOMAN}"),  # an astronaut, of whom this screen shows a half
]


async def test_text_from_others_is_text(
    start_bob: StartBob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without colours, the only escape sequences are our own."""
    monkeypatch.setenv("NO_COLOR", "1")
    amy, bob = await start_bob(rows=20)
    for text, shown in HOSTILE:
        await say(amy, text)
        await bob.shows(f"@ Amy: {shown}", "math Bob>")
        assert not re.search(
            "[\x9b\x07\x08\t\u202e\u2066\u2028\u200b\xad\ufeff\x7f\0]", bob.output.decode()
        )
        sequences = set(re.findall(r"\x1b(?:[78]|\[\??[0-9]*[a-zA-Z]|.)", bob.output.decode()))
        assert sequences == {"\x1b[J", "\x1b[?7l", "\x1b7", "\x1b8", "\x1b[?7h"}


async def test_colour(start_bob: StartBob) -> None:
    amy, bob = await start_bob()
    texts = ["hello, all", "bobby and kebob", "hello, BOB!"]
    for text in texts:
        await say(amy, text)
    await bob.type("me\n", *(f"@ Amy: {text}" for text in texts), "@ Bob: me", "math Bob>")
    first, second, mark, own = (
        [bob.screen.buffer[row][column] for column in (6, 12)] for row in range(3, 7)
    )
    assert first[0].fg == second[0].fg == mark[0].fg != own[0].fg
    assert "default" not in (first[0].fg, own[0].fg, bob.screen.buffer[0][8].fg)
    assert (first[1].fg, first[1].bold, second[1].fg, second[1].bold) == (
        "default",
        False,
        "default",
        False,
    )
    assert mark[1].bold
    assert mark[1].fg != "default"


async def test_terminal_that_can_do_nothing(
    url: URL, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    bob = start(url / "chat", nick="Bob")
    await bob.shows("@ * You are now known as Bob", "@ * In default: Bob")
    await bob.type("line\n", "@ * In default: Bob", "line", "@ Bob: line")
    assert b"\x1b" not in bob.output


async def test_paused_terminal(start_bob: StartBob) -> None:
    """Ctrl+S pauses the output; the chat goes on, and all of it is shown after Ctrl+Q."""
    amy, bob = await start_bob()
    await bob.type("\x13")
    for text in (
        "one",
        "two",
    ):  # the second is sent after the response to the first, which is shown
        await bob.type(f"{text}\n")
        assert await amy.hear() == said("Bob", text)
        await say(amy, f"I heard {text}")
    await bob.shows("math Bob>")
    await bob.type(
        "\x11", "@ Bob: one", "@ Amy: I heard one", "@ Bob: two", "@ Amy: I heard two", "math Bob>"
    )


# How it ends


async def test_half_typed_line_at_the_end(aiohttp_server: Any, start: Start) -> None:
    """It is shown in full, so that it can be copied."""
    server = await aiohttp_server(await init_app())
    bob = start(server.make_url("/chat"), nick="Bob")
    await bob.shows("default Bob>")
    await bob.type("half typed " * 10)
    await eventually(lambda: bob.rows[-1].endswith("half typed"))
    await server.close()
    assert await bob.end() == "the server closed the connection"
    line = "default Bob> " + "half typed " * 10
    await bob.shows(line[:60].rstrip(), line[60:120].rstrip(), line[120:].rstrip())


@pytest.mark.parametrize("key", ["\x04", "\x03", None])
async def test_terminal_of_ones_own(
    url: URL, join: Join, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """It makes a signal of Ctrl+C, and two when its window is closed. Both are goodbyes, and so is Ctrl+D."""
    monkeypatch.setenv("TERM", "xterm")
    amy, screen = await join(url, "Amy", "math"), Screen()
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "client.py",
            "--url",
            str(url / "chat"),
            "--room",
            "math",
            "--nick",
            "Bob",
        ),
        stdin=screen.slave,
        stdout=screen.slave,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        await screen.shows("math Bob>")
        await amy.catch_up()
        if key:
            await screen.type(key)
        else:
            screen.close()
        _, errors = await asyncio.wait_for(process.communicate(), TIMEOUT)
        assert (process.returncode, errors) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert await amy.hear() == left("math", "Bob", shame=False)
    if key:
        await eventually(screen.is_as_it_was)
        screen.close()


# Without a terminal


async def test_pipe(url: URL, join: Join, start_script: StartScript) -> None:
    """Plain lines, for others: no times and no colours."""
    amy = await join(url, "Amy", "lounge")
    script = await start_script(
        "client.py", "--url", url / "chat", "--room", "lounge", "--nick", "Bob"
    )
    output = "* You are now in lounge\n* You are now known as Bob\n* In lounge: Amy, Bob\n"
    lines = [f"line {number}" for number in range(300)]
    typed = (
        "\r\n".join(["one", "", *lines, "z" * 200_000, "y" * 60_000]).encode() + b"\xff"
    )  # needs no newline
    code, shown, errors = await script.end(typed)
    assert (code, errors) == (0, "")
    lines = ["one", *lines, "y" * 60_000 + "\N{REPLACEMENT CHARACTER}"]
    expected = [f"Bob: {line}" for line in lines]
    expected.insert(-1, "! This is too long: 200041 bytes of 65536")
    assert shown == output + "\n".join(expected) + "\n"
    bodies = (await amy.catch_up())[2:]
    assert bodies == [*(said("Bob", text) for text in lines), left("lounge", "Bob", shame=False)]


async def test_reader_that_is_slow(
    url: URL, join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the input, it is waited for, longer than for anything else."""
    monkeypatch.setattr(client, "GOODBYE_TIMEOUT", 0.1)
    amy, lines = await join(url), ["x" * 60_000, "y" * 60_000, "last"]
    (tmp_path / "in").write_text("\n".join(lines))
    reading, writing = os.pipe()
    with (tmp_path / "in").open() as stdin, os.fdopen(writing, "w") as stdout:
        chat = run_chat(stdin, stdout, url / "chat", None, None)
        while (await amy.hear()).get("message") != "last":
            pass
        await asyncio.sleep(0.2)
        output = b""
        while not output.endswith(b": last\n"):
            output += await asyncio.wait_for(asyncio.to_thread(os.read, reading, 100_000), TIMEOUT)
        await asyncio.wait([chat])
    os.close(reading)
    assert [line.rpartition(": ")[2] for line in output.decode().splitlines()[1:]] == lines


async def test_files(url: URL, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"one\ntwo")
    with (
        (tmp_path / "in").open() as stdin,
        (tmp_path / "out").open("w", encoding="ascii") as stdout,
    ):
        await asyncio.wait_for(run_chat(stdin, stdout, url / "chat", None, "Zoë"), TIMEOUT)
    expected = [
        r"* You are now known as Zo\xeb",
        r"* In default: Zo\xeb",
        r"Zo\xeb: one",
        r"Zo\xeb: two",
    ]
    assert (tmp_path / "out").read_text().splitlines() == expected
