"""client.py at a terminal: what a person types and sees, and how it ends."""

import argparse
import asyncio
import fcntl
import os
import re
import shlex
import signal
import socket
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from prompt_toolkit.application import create_app_session
from yarl import URL

import client
from server import init_app
from tests.clients.conftest import Serve
from tests.clients.screen import Screen, busy
from tests.helpers import ROOT, TIMEOUT, WARNINGS, Join, Member, eventually, left, said

Start = Callable[..., Screen]
CLIENT = [sys.executable, *WARNINGS, "client.py"]
StartBob = Callable[..., Awaitable[tuple[Member, Screen]]]
Run = Callable[..., Awaitable[tuple[Screen, asyncio.subprocess.Process]]]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Start the client in this process with `start(url, columns=60, rows=12, nick="Bob")`."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screens = []

    async def run(screen: Screen, options: argparse.Namespace) -> None:
        monkeypatch.setattr(sys, "stdin", screen.stdin)
        monkeypatch.setattr(sys, "stdout", screen.stdout)
        with create_app_session():
            await client.main(options)

    def start(url: Any, columns: int = 60, rows: int = 12, **options: Any) -> Screen:
        screens.append(screen := Screen(columns, rows))
        defaults = {"room": "default", "nick": None, "verbose": False, "reconnect": False}
        given = argparse.Namespace(url=str(url), **(defaults | options))
        screen.chat = asyncio.create_task(run(screen, given))
        return screen

    yield start
    for screen in screens:
        screen.chat.cancel()
        await asyncio.wait([screen.chat])
        await eventually(screen.is_restored)
        screen.close()


@pytest.fixture
def start_bob(url: URL, join: Join, start: Start) -> StartBob:
    """Let Amy in, and then Bob at a terminal: `amy, bob = await start_bob(columns=60, rows=12)`."""

    async def start_bob(**options: int) -> tuple[Member, Screen]:
        amy = await join(url.parent, "Amy", "math")
        bob = start(url, room="math", nick="Bob", **options)
        await bob.shows("@ * In math: Amy, Bob", "math Bob>")
        await amy.catch_up()
        return amy, bob

    return start_bob


async def end(screen: Screen) -> str:
    """Return the sentence with which the client ends by itself, an empty one if the user left."""
    await asyncio.wait([screen.chat], timeout=TIMEOUT)
    if screen.chat.cancelled():
        return ""
    error = screen.chat.exception()
    return client.describe(error) if error else ""


# The chat


async def test_start(url: URL, join: Join, start: Start) -> None:
    """It joins the room, then takes the nickname, then shows the users."""
    amy = await join(url.parent, "Amy", "math")
    screen = start(url, room="math", nick="Amy")
    user = (await amy.receive())["user"]
    refusal = "@ ! Nickname is already in use"
    rows = ["@ * You are now in math", refusal, f"@ * In math: Amy, {user}"]
    await screen.shows(*rows, f"math {user}>")
    await screen.type("/quit\r")
    assert await end(screen) == ""
    assert await amy.catch_up() == [left("math", user, shame=False)]
    screen = start(url, verbose=True, columns=100)
    await screen.contains("* In default: User")
    assert screen.rows[1] == '@ > {"action": "user_list", "room": "default"}'
    assert screen.rows[2].startswith("""@ < '{"action": "user_list", "success": true,""")


async def test_notices_and_completion(url: URL, join: Join, start_bob: StartBob) -> None:
    _, bob = await start_bob()
    carol = await join(url.parent, room="math")
    await bob.shows(f"@ * {carol.user} joined math", "math Bob>")
    await bob.type("hi @user\t", f"math Bob> hi @{carol.user}")
    await carol.ask(action="set_nick", nick="Anna")
    await bob.shows(f"@ * {carol.user} is now known as Anna", f"math Bob> hi @{carol.user}")
    await carol.say("hello")
    await bob.type("\x15a\t", "@ Anna: hello", "math Bob> a")
    for name in "Amy", "Anna", "a":  # as far as there is one way to go on, then one by one
        await bob.type("\t", "@ Anna: hello", f"math Bob> {name}")
    await carol.leave()
    (await join(url.parent, "Dan", "math")).vanish()
    notices = ["@ * Anna left", "@ * Dan joined math", "@ * Dan left without a goodbye: shame!"]
    await bob.shows(*notices, "math Bob> a")
    await bob.type("\t", *notices, "math Bob> Amy")
    await bob.type("\x15/us\t", *notices, "math Bob> /users")
    await bob.type(" art\r", *notices, "@ * In art: nobody", "math Bob>")


async def test_commands(url: URL, join: Join, start_bob: StartBob) -> None:
    amy, bob = await start_bob(columns=100, rows=40)
    await join(url.parent, "Carol", "art")
    rows, prompt = bob.rows[:-1], "math Bob>"
    for line, shown in [
        ("hello", ["Bob: hello"]),
        ("//shrug", ["Bob: /shrug"]),
        ("   ", []),
        ("/dance now", ["! Unknown command /dance; /help lists the commands"]),
        ("/nick Amy", ["! Nickname is already in use"]),
        ("/nick  Robert Two ", ["* You are now known as Robert Two"]),
        ("/users", ["* In math: Amy, Robert Two"]),
        ("/users art", ["* In art: Carol"]),
        ("/join  math ", ["! You are already in math"]),
        ("/join art", ["* You are now in art", "* In art: Carol, Robert Two"]),
        ("/help", [f"* {row}" for row in client.HELP.splitlines()]),
    ]:
        rows += [f"@ {row}" for row in shown]
        prompt = prompt.replace("Bob", "Robert Two") if "Robert" in line else prompt
        prompt = prompt.replace("math", "art") if line == "/join art" else prompt
        await bob.type(f"{line}\r", *rows, prompt)
    assert await amy.catch_up() == [
        said("Bob", "hello"),
        said("Bob", "/shrug"),
        {"action": "nick_changed", "room": "math", "from_user": "Bob", "to_user": "Robert Two"},
        left("math", "Robert Two", shame=False),
    ]


async def welcome(websocket: web.WebSocketResponse) -> None:
    """Do what the chat does for a new user, for servers that then do something else."""
    await websocket.send_str('{"action": "connecting", "room": "default", "user": "u"}')
    await websocket.send_str('{"action": "user_list", "success": true, "users": ["u", 5]}')


async def test_odd_frames_are_ignored(serve_websocket: Serve, start: Start) -> None:
    frames = ["not JSON", "[]", "null", "{}", "[" * 60_000]
    frames += ['{"action": 5}', '{"action": "dance"}', '{"action": "joined", "user": []}']
    frames += ['{"action": "left"}', '{"action": "chat_message", "user": 5}', '{"success": 5}']
    frames += ['{"success": true}', '{"success": true}']  # the first one is the response
    frames += ['{"action": "chat_message", "user": "\\ud800", "message": "made it"}']

    async def talk(websocket: web.WebSocketResponse) -> None:
        await welcome(websocket)
        await websocket.receive()
        for frame in frames:
            await websocket.send_str(frame)
        await websocket.receive()

    bob = start(await serve_websocket(talk))
    await bob.contains("default u>")
    await bob.type("go\r", "@ * In default: u, 5", "@ u: go", r"@ \ud800: made it", "default u>")


async def test_reconnect(aiohttp_server: Any, join: Join, start: Start, monkeypatch: Any) -> None:
    """It comes back to its room, under its name, and with what was typed meanwhile."""
    monkeypatch.setattr(client, "MIN_PAUSE", 0.01)
    first = await aiohttp_server(await init_app())
    port = first.port
    bob = start(first.make_url("/chat"), nick="Bob", reconnect=True, columns=99)
    guest = start(first.make_url("/chat"), reconnect=True)
    await bob.contains("default Bob>")
    await bob.type("/join math\r/nick Bobby\r")
    await bob.shows("@ * You are now known as Bobby", "@ * In math: Bobby", "math Bobby>")
    await guest.contains("default User")
    prompt = guest.rows[-1]
    await first.close()
    await bob.contains("@ ! the server closed the connection (trying again in 0.01 s)")
    await bob.contains("@ ! no response; is the server running? (trying again in 0.02 s)")
    await bob.contains("0.04 s")
    await bob.type("I am back\r")
    second = await aiohttp_server(await init_app(), port=port)
    await bob.shows("@ Bobby: I am back", "@ * In math: Bobby", "math Bobby>")
    await guest.shows(f"@ * In default: {prompt[8:-1]}", prompt)
    amy = await join(second.make_url("/"), "Amy", "math")
    await bob.type("\x04")
    assert await amy.receive() == left("math", "Bobby", shame=False)


# The screen and the keyboard


@pytest.mark.parametrize(("columns", "rows"), [(100, 12), (34, 6)])
async def test_half_typed_line_survives(start_bob: StartBob, columns: int, rows: int) -> None:
    """What arrives is shown above it, and the cursor stays where it was."""
    amy, bob = await start_bob(columns=columns, rows=rows)
    await bob.type("half typed\x1b[D", "math Bob> half typed", cursor=19)
    texts = ["hi", "x" * 120, "日本語" * 20 + "!", "e\u0301" * 40 + "!", "\N{GRINNING FACE}" * 20]
    for text in [*texts, *map(str, range(10))]:
        await amy.say(text)
        await eventually(lambda text=text: text[-1] in bob.rows[-2])  # type: ignore[misc]
        await bob.shows("math Bob> half typed", cursor=19)
    bob.resize(columns + 1, rows)
    signal.raise_signal(signal.SIGWINCH)
    await bob.type("!", "math Bob> half type!d", cursor=20)
    await bob.type("\r", "@ Bob: half type!d", "math Bob>")
    assert await amy.receive() == said("Bob", "half type!d")


async def test_editing(start_bob: StartBob) -> None:
    """Keys edit the line, and bring lines back; only Enter sends it."""
    amy, bob = await start_bob()
    await bob.type("one twi\x7fo\x1b[Hno ", "math Bob> no one two", cursor=13)  # Backspace, Home
    await bob.type("\r", "@ Bob: no one two", "math Bob>")
    await bob.type("new\x1b[A", "math Bob> no one two")  # up
    await bob.type("\x1b[B\x04", "math Bob> new")  # down; Ctrl+D leaves on an empty line only
    assert [body["message"] for body in await amy.catch_up()] == ["no one two"]


async def test_paste(start_bob: StartBob) -> None:
    """A tab in pasted text is a space; keys can also arrive as fast as a paste."""
    amy, bob = await start_bob(rows=24)
    await bob.type("\x1b[200~one\r\ntwo\n\tthree\x1b[201~")
    assert await amy.catch_up() == []
    await bob.type("\r", "@ Bob: one", "@ Bob: two", "@ Bob:  three", "math Bob>")
    long = "word " * 9_000 + "é" * 7_500
    await bob.type(f"\x1b[200~{long}\x1b[201~\r")
    await bob.type("k" * 6_000 + "\r")
    await bob.type("\x1b[200~" + "y" * 65_600 + "\x1b[201~\r")
    await bob.contains("@ ! Too long: 65641 bytes; the limit is 65536")
    await bob.type("\x1b[A")  # it is not lost
    await eventually(lambda: bob.rows[-1].startswith("yyy"))
    texts = [body["message"] for body in await amy.catch_up()]
    assert texts == ["one", "two", " three", long, "k" * 6_000]


HOSTILE = [
    ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
    ("\x9b2J bell\x07 back\x08 tab\t", r"\x9b2J bell\x07 back\x08 tab\t"),
    ("one\ntwo\r\nthree", r"one\ntwo\r\nthree"),
    ("\u202eright to left\u2066", r"\u202eright to left\u2066"),
    ("half a pair \ud83d", r"half a pair \ud83d"),
    ("\u2028\u200b\u00ad\ufeff\x7f\0", r"\u2028\u200b\xad\ufeff\x7f\x00"),
    ("\N{WOMAN}\u200d\N{ROCKET}", "\N{WOMAN}"),  # an astronaut, of whom this screen shows a half
]


async def test_text_from_others_is_text(start_bob: StartBob) -> None:
    """Whatever they send, the escape sequences that reach the terminal stay the same."""

    def sequences() -> set[str]:
        found = re.findall(r"\x1b(?:\[\??[0-9;]*[a-zA-Z]|.)", bob.output.decode())
        return {re.sub("[0-9;]+", "", sequence) for sequence in found}

    amy, bob = await start_bob(rows=20)
    await amy.say("harmless")
    await bob.shows("@ Amy: harmless", "math Bob>")
    expected = sequences()
    for text, shown in HOSTILE:
        await amy.say(text)
        await bob.shows(f"@ Amy: {shown}", "math Bob>")
    assert sequences() == expected
    assert not re.search(
        "[\x9b\x07\t\u202e\u2066\u2028\u200b\xad\ufeff\x7f\0]", bob.output.decode()
    )


async def test_colour(start_bob: StartBob) -> None:
    """A name has its colour, and a message that mentions the user is marked."""
    amy, bob = await start_bob()
    texts = ["hello, all", "bobby and kebob", "hello, BOB!", "hi @bob"]
    for text in texts:
        await amy.say(text)
    await bob.type("me\r", *(f"@ Amy: {text}" for text in texts), "@ Bob: me", "math Bob>")
    cells = [[bob.screen.buffer[row][column] for column in (6, 12)] for row in range(3, 8)]
    names, starts = [name.fg for name, _ in cells], [(text.fg, text.bold) for _, text in cells[:4]]
    assert len(set(names[:4])) == 1
    assert len({*names, "default", bob.screen.buffer[0][8].fg}) == 4
    assert starts == [("default", False)] * 2 + [("magenta", True)] * 2


# How it ends


async def test_server_that_goes_away(serve_websocket: Serve, start: Start) -> None:
    """What may be lost stays on the screen in full, so that it can be copied."""
    is_over = asyncio.Event()

    async def talk(websocket: Any) -> None:
        await welcome(websocket)
        await websocket.receive()
        await is_over.wait()
        websocket._req.transport.close()

    bob = start(await serve_websocket(talk))
    await bob.contains("default u>")
    line = "half typed " * 10
    await bob.type(f"hello\r{line}")
    await bob.contains("half typed")
    is_over.set()
    assert await end(bob) == "the server closed the connection"
    await bob.contains("@ ! This may not have been delivered: hello")
    assert f"default u> {line}".rstrip() in "".join(bob.screen.display)


@pytest.mark.usefixtures("hurry")
async def test_server_that_falls_silent(serve_websocket: Serve, start: Start) -> None:
    """As when the network is gone."""
    sentence = await end(start(await serve_websocket(lambda _: asyncio.Event().wait())))
    assert sentence == "No PONG received after 0.1 seconds"


async def test_server_that_does_not_close(
    serve_websocket: Serve, start: Start, monkeypatch: Any
) -> None:
    """The user leaves nevertheless, even if messages come faster than they can be printed."""

    async def talk(websocket: web.WebSocketResponse) -> None:
        await welcome(websocket)
        while True:
            await websocket.send_str('{"action": "chat_message", "user": "Amy", "message": "Hi!"}')
            await asyncio.sleep(0)

    monkeypatch.setattr(client, "CLOSE_TIMEOUT", 0.1)
    bob = start(await serve_websocket(talk), reconnect=True)
    await bob.contains("Hi!")
    await bob.type("/quit\r")
    assert await end(bob) == ""


async def test_server_that_does_not_open(start: Start, monkeypatch: Any) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = URL(f"ws://localhost:{listener.getsockname()[1]}/chat")
        assert await end(start(url)) == "no response; is the server running?"
        listener.listen()  # now the system accepts connections
        bob = start(url)
        await bob.contains(">")
        await bob.type("\x04")
        assert await end(bob) == ""
        monkeypatch.setattr(client, "TIMEOUT", 0.05)
        assert await end(start(url)) == "the server does not respond"


async def test_address_of_something_else(url: URL, start: Start) -> None:
    sentences: dict[Any, str] = {
        url.with_path("/echo"): "this is a WebSocket, but not a chat",
        url.with_path("/"): "200, message='Invalid response status'",
        "ws://a..b/": "label empty",
    }
    for address in ("ws://", "localhost:8080", "//localhost"):
        sentences[address] = "this is not an address such as ws://localhost:8080/chat"
    for address, sentence in sentences.items():
        assert sentence in await end(start(address))


async def test_name_in_the_local_network(url: URL, start: Start, monkeypatch: Any) -> None:
    """The system resolves names, because it knows mDNS."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        assert host == "amys-laptop.local"
        return resolve("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    bob = start(url.with_host("amys-laptop.local"), nick="Bob")
    await bob.shows("@ * In default: Bob", "default Bob>")


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    """Run a program on a terminal of its own: `screen, process = await run("sh", TERM="xterm")`."""
    started = []

    async def run(*command: str, **environment: str) -> tuple[Screen, asyncio.subprocess.Process]:
        screen = Screen(columns=80)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=screen.slave,
            stdout=screen.slave,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        started.append((screen, process))
        return started[-1]

    yield run
    for screen, process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        screen.close()


@pytest.mark.parametrize("way", ["\x03", "\x04", "/quit\r", "SIGTERM", "close the window"])
async def test_end_in_a_busy_room(url: URL, join: Join, run: Run, way: str) -> None:
    """It closes the WebSocket properly, restores the terminal, and prints no traceback."""
    amy = await join(url.parent, "Amy")
    screen, process = await run(*CLIENT, "--url", str(url), "--nick", "Bob", TERM="xterm")

    await screen.contains("default Bob>")
    async with busy(amy):
        await screen.contains("Hello!")
        if way == "SIGTERM":
            for _ in range(2):  # the second one must not interrupt the close
                process.send_signal(signal.SIGTERM)
        elif way == "close the window":
            screen.close()
        else:
            await screen.type(way)
    _, errors = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert process.returncode == 0
    if way != "close the window":
        assert errors == b""
        await eventually(screen.is_restored)


async def test_dumb_terminal(url: URL, run: Run) -> None:
    """It gets plain lines, and echoes what is typed."""
    screen, process = await run(*CLIENT, "--url", str(url), "--nick", "Bob", TERM="dumb")
    await screen.shows("@ * You are now known as Bob", "@ * In default: Bob")
    await screen.type("line\n", "@ * In default: Bob", "line", "@ Bob: line")
    await screen.type("\x04")
    assert await asyncio.wait_for(process.wait(), TIMEOUT) == 0
    assert b"\x1b" not in screen.output
    assert screen.is_restored()


async def test_suspend(url: URL, run: Run) -> None:
    """Ctrl+Z leaves the terminal to the shell, and fg brings the half-typed line back."""
    command = shlex.join([*CLIENT, "--url", str(url), "--nick", "Bob"])
    shell = f"exec 2>&1; set -m; {command}; echo suspended; read line; fg"
    screen, _ = await run("sh", "-c", shell, TERM="xterm")
    await screen.contains("default Bob>")
    await screen.type("half typed", "default Bob> half typed")
    await screen.type("\x1a")
    await screen.contains("suspended")
    await screen.type("for the shell", "suspended", "for the shell")
    await screen.type("\n")
    await screen.shows("default Bob> half typed")
    await screen.type("\r", "@ Bob: half typed", "default Bob>")
