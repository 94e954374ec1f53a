"""client.py at a terminal: what a person types and sees, and how it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from tests.clients.conftest import ServeWebSocket
from tests.clients.screen import Screen
from tests.helpers import Join, Member, StartScript, StartServer, said

Start = Callable[..., Awaitable[Screen]]


@pytest.fixture
async def start(start_script: StartScript) -> AsyncIterator[Start]:
    """Start clients, each on a terminal of its own: `await start(url, *options, NO_COLOR="1")`."""
    screens = []

    async def start(*options: Any, shell: str = 'exec "$@"', **environment: str) -> Screen:
        screens.append(screen := Screen())
        settings = {"shell": f"exec <>{screen.path} >&0; {shell}", "TERM": "xterm"} | environment
        screen.script = await start_script("client.py", "--url", *options, **settings)
        return screen

    yield start
    for screen in screens:
        screen.close()


@pytest.fixture
async def amy(url: URL, join: Join) -> Member:
    """A member in the room math."""
    return await join(url, "Amy", "math")


@pytest.fixture
async def bob(url: URL, amy: Member, start: Start) -> Screen:
    """Bob, who has come to Amy, at a terminal."""
    bob = await start(url / "chat", "--room", "math", "--nick", "Bob")
    await bob.contains("In math: Amy, Bob")
    await amy.catch_up()
    return bob


async def test_notices_and_completion(url: URL, join: Join, bob: Screen) -> None:
    carol = await join(url, room="math")
    await bob.shows(f"@ * {carol.user} joined math", "math Bob>")
    await bob.type("hi @user\t", f"math Bob> hi @{carol.user}")
    await carol.ask(action="set_nick", nick="Anna")
    await bob.shows(f"@ * {carol.user} is now known as Anna", f"math Bob> hi @{carol.user}")
    for key, name in ("\x15a\t", "a"), ("\t", "Amy"), ("\t", "Anna"), ("\t", "a"):
        await bob.type(key, f"math Bob> {name}")
    await carol.leave()
    (await join(url, "Dan", "math")).vanish()
    notices = ["@ * Anna left", "@ * Dan joined math", "@ * Dan left without a goodbye: shame!"]
    await bob.shows(*notices, "math Bob> a")
    for key, name in ("\x15a\t", "Amy"), ("\t", "a"):
        await bob.type(key, *notices, f"math Bob> {name}")
    await bob.type("\x15/us\t", *notices, "math Bob> /users")
    await bob.type(" art\r", *notices, "@ * In art: nobody", "math Bob>")


async def test_reconnect(start_server: StartServer, start: Start) -> None:
    """It comes back to its room, under its name, and with what was typed meanwhile."""
    server = start_server()
    options = (server.url / "chat", "--nick", "Bob", "--reconnect")
    bob = await start(*options, NO_COLOR="1")
    await bob.contains("default Bob>")
    await bob.type("/join math\r/nick Bobby\r")
    await bob.shows("@ * You are now known as Bobby", "@ * In math: Bobby", "math Bobby>")
    server.stop()
    await bob.contains("! ConnectionError: The server closed the connection. (trying again in 1 s)")
    await bob.contains("(trying again in 2 s)")
    assert (await (await start(*options)).end())[0] == 1  # because it could not connect at first
    await bob.type("I am back\r")
    start_server(port=server.port)
    await bob.shows("@ Bobby: I am back", "@ * In math: Bobby", "math Bobby>")
    cells = [cell for row in bob.screen.buffer.values() for cell in row.values()]
    assert {cell.fg for cell in cells} == {"default"}


async def test_half_typed_line_survives(amy: Member, bob: Screen) -> None:
    """What arrives is shown above it, and the cursor stays where it was."""
    await bob.type("half typed\x1b[D", "math Bob> half typed", cursor=19)
    for columns, rows in (100, 24), (34, 6):
        bob.resize(columns, rows)
        for text in ("x" * 120, "日本語" * 20 + "!", "e\u0301" * 40 + "!", *map(str, range(10))):
            await amy.say(text)
            await bob.waits_for(lambda text=text: text[-1] in str(bob.rows[-2:-1]))  # type: ignore[misc]
            await bob.shows("math Bob> half typed", cursor=19)
    await bob.type("!\r", "@ Bob: half type!d", "math Bob>")
    assert await amy.receive() == said("Bob", "half type!d")


async def test_keys_and_paste(amy: Member, bob: Screen) -> None:
    """Keys edit the line, and bring lines back. Only Enter sends it, whole."""
    await bob.type("one twi\x7fo\x1b[Hno ", "math Bob> no one two", cursor=13)  # Backspace, Home
    await bob.type("\r", "@ Bob: no one two", "math Bob>")
    await bob.type("new\x1b[A", "math Bob> no one two")  # Up
    await bob.type("\x1b[B\x04", "math Bob> new")  # Down; Ctrl+D leaves on an empty line only
    await bob.type("\x15\x1b[200~one\r\ntwo\n\tthree\x1b[201~", "two", "^Ithree")
    assert await amy.catch_up() == [said("Bob", "no one two")]
    await bob.type("\r", "@ Bob: one", "@ Bob: two", "@ Bob:  three", "math Bob>")
    long = "word " * 9_000 + "é" * 7_500
    await bob.type(f"\x1b[200~{long}\x1b[201~\r")
    await bob.type("k" * 6_000 + "\r")
    texts = [(await amy.receive())["message"] for _ in range(5)]
    assert texts == ["one", "two", " three", long, "k" * 6_000]


async def test_text_from_others_is_text(serve_websocket: ServeWebSocket, start: Start) -> None:
    """Names, messages, the prompt and completions are escaped, but emoji stay whole."""
    hostile = "\x1b[2J\x9b2J\x07\x08\t\r\n\u202e\u2066\ud83d\u2028\u200b\u00ad\ufeff\x7f\0"
    astronaut = "\N{WOMAN}\u200d\N{ROCKET}"

    async def talk(websocket: web.WebSocketResponse) -> None:
        for action in ("connecting", "joined"):
            await websocket.send_json({"action": action, "room": hostile, "user": hostile})
        body = {"action": "chat_message", "user": hostile, "message": hostile + astronaut}
        await websocket.send_json(body)
        await websocket.receive()

    bob = await start(await serve_websocket(talk))
    shown = ascii(hostile)[1:-1]
    await bob.contains(f"{shown}: {shown}")
    await bob.type(r"\x1b" + "\t")
    await bob.contains(f"{shown} {shown}> {shown}")
    output = bob.output.decode()
    assert astronaut in output
    assert "\x1b[2J" not in output
    assert not set(hostile) - set("\x1b[2J\r\n\x08") & set(output)


async def test_colour(amy: Member, bob: Screen) -> None:
    """A name has its colour, and a message that mentions the user is marked."""
    texts = ["hello, all", "bobby and kebob", "hello, BOB!", "hi @bob"]
    await amy.say(*texts)
    await bob.type("me\r", *(f"@ Amy: {text}" for text in texts), "@ Bob: me", "math Bob>")
    cells = [[bob.screen.buffer[row][column] for column in (6, 12)] for row in range(3, 8)]
    names, starts = [name.fg for name, _ in cells], [(text.fg, text.bold) for _, text in cells[:4]]
    assert len(set(names[:4])) == 1
    assert len({*names, "default", bob.screen.buffer[0][8].fg}) == 4
    assert starts == [("default", False)] * 2 + [("magenta", True)] * 2


async def test_server_that_goes_away(serve_websocket: ServeWebSocket, start: Start) -> None:
    """What may be lost stays on the screen in full, so that it can be copied."""
    is_over = asyncio.Event()
    bob = await start(await serve_websocket(lambda _: is_over.wait()))
    await bob.shows(">")
    line = "half typed " * 10
    await bob.type(f"hello\r{line}")
    await bob.contains(f"> {line.rstrip()}")
    is_over.set()
    assert (await bob.end())[0] == 1
    await bob.contains("! This may not have been delivered: hello")
    await bob.contains(f"> {line.rstrip()}")


@pytest.mark.parametrize("way", ["\x03", "\x04", "/quit\r", "SIGTERM", "close the window"])
async def test_end_in_a_busy_room(busy_room: URL, start: Start, way: str) -> None:
    """It closes the WebSocket properly, and prints no traceback."""
    bob = await start(busy_room)
    await bob.contains("Hello!")
    if way == "SIGTERM":
        bob.script.process.terminate()
        bob.script.process.terminate()  # this must not interrupt the close
    elif way == "close the window":
        bob.close()
        _, errors = await bob.script.process.communicate()
        assert b"Traceback" not in errors
        return
    else:
        await bob.type(way)
    assert await bob.end() == (0, "")


async def test_dumb_terminal(url: URL, start: Start) -> None:
    """It gets plain lines, and echoes what is typed. Other programs can read from it afterwards."""
    shell = '"$@"; echo over; cat'
    bob = await start(url / "chat", "--nick", "Bob", shell=shell, TERM="dumb")
    await bob.shows("@ * You are now known as Bob", "@ * In default: Bob")
    await bob.type("line\n", "@ * In default: Bob", "line", "@ Bob: line")
    await bob.type("\x04", "over")
    await bob.type("text\n", "over", "text", "text")
    await bob.type("\x04")
    assert await bob.end() == (0, "")
    assert b"\x1b" not in bob.output


async def test_suspend(url: URL, start: Start) -> None:
    """Ctrl+Z leaves the terminal to the shell, and fg brings the half-typed line back."""
    shell = 'exec 2>&0; set -m; "$@"; echo suspended; read line; fg'
    bob = await start(url / "chat", "--nick", "Bob", shell=shell)
    await bob.contains("default Bob>")
    await bob.type("half typed", "default Bob> half typed")
    await bob.type("\x1a")
    await bob.contains("suspended")
    await bob.type("for the shell\n", "default Bob> half typed")
    await bob.type("\r", "@ Bob: half typed", "default Bob>")
