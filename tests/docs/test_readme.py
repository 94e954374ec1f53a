"""What the README shows is true: its snippets and commands run, its tables are what is sent."""

import asyncio
import functools
import importlib
import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

import client_echo_example
import utils
from server import init_app
from tests.helpers import (
    ROOT,
    TIMEOUT,
    Join,
    Member,
    Script,
    StartScript,
    StartServer,
    left,
    said,
)

math_student: Any = importlib.import_module("examples.math_student")

Serve = Callable[[web.Application], Awaitable[URL]]
Run = Callable[..., Awaitable[Script]]

# What the text shows starts many processes. So it is checked where the style is checked, too.
pytestmark = pytest.mark.needs("lint")

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\S.*)\n((?:.*\n)*?)^```$", README, re.MULTILINE)


def blocks(kind: str) -> list[str]:
    return [text for its_kind, text in BLOCKS if its_kind == kind]


def table(first_cell: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a cell, without the head."""
    pattern = rf"^\| {first_cell} +\|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)"
    (rows,) = re.findall(pattern, README, re.MULTILINE)
    return [[cell.strip(" `") for cell in row[1:-1].split("|")] for row in rows.splitlines()]


COMMANDS = "".join(blocks("shell")).splitlines()


@pytest.fixture
async def url(serve: Serve) -> URL:
    return await serve(await init_app())


# Write a client


READ, BOTH, LEAVE = blocks("python client")
IMPORTS, LAST_LINE = READ.partition("async def main")[0], READ.splitlines()[-1]
CLIENTS = [
    READ,
    f"{IMPORTS}{BOTH}\n\n{LAST_LINE}",
    IMPORTS + BOTH.rpartition("async def")[0] + LEAVE,
]


@pytest.fixture
def run_client(start_script: StartScript, tmp_path: Path) -> Run:
    """Run the client after a step of the tutorial; it does not wait for long."""

    async def run(step: int, url: URL, loop: str = "while True") -> Script:
        code = CLIENTS[step - 1].replace("ws://localhost:8080", str(url.origin()))
        code = code.replace("while True", loop).replace("sleep(15)", "sleep(0.5)")
        (tmp_path / "my_client.py").write_text(code)
        return await start_script("-u", tmp_path / "my_client.py")

    return run


async def test_client_that_reads(url: URL, join: Join, run_client: Run) -> None:
    script = await run_client(1, url)
    lines = [await script.line()]
    bob = await join(url)
    await bob.ask(action="chat_message", message="hello")
    lines += [await script.line(), await script.line()]
    shown = blocks("text")[0].replace("User5678", bob.user)
    assert re.sub(r"User\d+", "User1234", lines[0]) + "".join(lines[1:]) == shown


@pytest.mark.parametrize("step", [2, 3])
async def test_server_that_stops(
    start_server: StartServer, join: Join, run_client: Run, step: int
) -> None:
    """After the second step, the client does not notice before it sends again."""
    server = start_server()
    amy = await join(server.url, "Amy", "garden")
    script = await run_client(step, URL(server.url))
    assert await script.line() == "You: 'Is anybody here?'\n"
    await amy.send(action="chat_message", message="Yes!")
    while (line := await script.line()) != "Amy: 'Yes!'\n":
        assert line == "You: 'Is anybody here?'\n"
    await asyncio.to_thread(server.stop)
    _, errors = await asyncio.wait_for(script.process.communicate(), TIMEOUT)
    assert (b"\naiohttp.client_exceptions.ClientConnectionResetError" in errors) == (step == 2)
    assert (errors == b"") == (step == 3)


@pytest.mark.parametrize("loop", ["while True", "for _ in range(1)"])
async def test_leaving(url: URL, join: Join, run_client: Run, loop: str) -> None:
    """By Ctrl+C, or because write() returns."""
    amy, _ = await join(url, "Amy", "garden"), await join(url, "Eve", "garden")
    script = await run_client(3, url, loop)
    assert await script.line() == "Refused: Nickname is already in use\n"
    assert await script.line() == "You: 'Is anybody here?'\n"
    if loop == "while True":
        script.process.send_signal(signal.SIGINT)
    assert await script.end() == (0, "", "")
    *_, last = await amy.catch_up()
    assert last == left("garden", last["user"], shame=False)


async def test_task_that_fails(url: URL, join: Join, run_client: Run) -> None:
    """Its exception is shown once, and the WebSocket is closed properly all the same."""
    amy = await join(url, "Amy", "garden")
    script = await run_client(3, url, "while 1 / 0")
    _, errors = await asyncio.wait_for(script.process.communicate(), TIMEOUT)
    assert errors.count(b"ZeroDivisionError") == errors.count(b"Traceback") == 1
    assert (await amy.catch_up())[-1] == left("garden", "Eve", shame=False)


# Write a server


ECHO, CHAT, APP = blocks("python server")


async def test_server(start_script: StartScript, join: Join, tmp_path: Path) -> None:
    """One can talk to it by hand, see its traceback, flood it, and chat."""
    code = ECHO.replace("from aiohttp import web\n", CHAT)
    code = re.sub(r"(app = .*\n)", lambda found: found[0] + APP, code)
    code = code.replace("run_app(app", 'run_app(app, host="127.0.0.1", port=0')
    (tmp_path / "my_server.py").write_text(code)
    # aiohttp warns that it prefers a web.AppKey to a string, but hides the warning.
    server = await start_script("-Wignore", "-u", tmp_path / "my_server.py")
    url = URL(re.findall(r"http\S+", await server.line())[0])
    amy = await join(url)

    (lines,) = blocks("python echo")
    connect = lines.splitlines()[2].replace("/echo", "/chat")
    (flood,) = re.findall(r"`(for .*?)`", README)
    lines += f"{connect}\n{flood.replace('20_000', '20')}\n\n"
    lines = lines.replace("ws://localhost:8080", str(url.origin()))
    python = await start_script("-m", "asyncio")
    shown, _ = await asyncio.wait_for(python.process.communicate(lines.encode()), TIMEOUT)
    assert b"{'echo': [1, 2]}" in shown
    assert b"WSMsgType.CLOSED" in shown
    joined, *messages, _ = [await amy.receive() for _ in range(22)]
    assert messages == [said(joined["user"], "x")] * 20

    await amy.ask(action="join_room", room="math")
    _, command = [command for command in COMMANDS if "--room math --verbose" in command]
    client = await start_script(*shlex.split(command)[2:], "--url", url / "chat")
    exit_code, output, errors = await client.end(b"hello\n")
    assert (exit_code, errors) == (0, "")
    assert "! This can't be done." in output
    joined, message, _ = [await amy.receive() for _ in range(3)]
    assert message == said(joined["user"], "hello")
    server.process.kill()
    _, log = await server.process.communicate()
    assert b"json.decoder.JSONDecodeError: Expecting value" in log


async def test_long_messages(
    url: URL, join: Join, start_script: StartScript, tmp_path: Path
) -> None:
    """Of the 200, two are enough here."""
    amy = await join(url, room="math")
    (command,) = [command for command in COMMANDS if "x.txt" in command]
    source, _, target = command.replace("uv run", "").replace("200", "2").partition("| ")
    *words, _, file = shlex.split(target)
    shell, redirect = source.replace("python", sys.executable, 1), f"> {tmp_path / file}"
    words += ["--url", str(url / "chat")]
    script = await start_script(*words, shell=f"{shell} |", redirect=redirect)
    assert await script.end() == (0, "", "")
    messages = [body.get("message") for body in await amy.catch_up()]
    assert messages[1:-1] == ["x" * 60_000] * 2


def test_map_of_the_server() -> None:
    """What mends something is a function, a method or a class."""
    sources = "".join((ROOT / file).read_text() for file in ("server.py", "utils.py"))
    for *_, cell in table("what goes wrong"):
        for name in re.findall(r"\w+", "".join(re.findall(r"`.*?`", f"`{cell}`"))):
            assert re.search(rf"^ *(async )?(def|class) {name}\b", sources, re.MULTILINE), name


# The protocol


@pytest.mark.parametrize(("sent", "received", "broadcast"), table("Bob sends"))
async def test_requests(url: URL, join: Join, sent: str, received: str, broadcast: str) -> None:
    amy, bob = await join(url, "Amy", "math"), await join(url, "Bob", "math")
    await amy.catch_up()
    await bob.websocket.send_str(sent)
    assert await bob.receive() == json.loads(received)
    assert await amy.catch_up() == ([json.loads(broadcast)] if broadcast else [])
    assert await bob.catch_up() == []


async def test_coming_and_going(url: URL, join: Join) -> None:
    amy = await join(url, "Amy", "math")
    connecting = {"action": "connecting", "room": "default", "user": "User1234"}
    assert f"`{json.dumps(connecting)}`" in README
    (joined, _), (shame, _) = table("Amy receives")
    for leave, change in ((Member.vanish, {}), (Member.leave, {"shame": False})):
        bob = await join(url, "Bob", "math")
        assert await amy.receive() == json.loads(joined)
        await (leave(bob) or asyncio.sleep(0))
        assert await amy.receive() == json.loads(shame) | change


# The task, and an action of your own


@pytest.mark.needs("browser")
async def test_page(serve: Serve, join: Join, chromium: str) -> None:
    """A message appears once. What the server refuses is not shown as one's own words."""
    from playwright.async_api import async_playwright

    async def serve_page(request: web.Request) -> web.Response:
        text = (ROOT / "examples/simple_page.html").read_text()
        text = text.replace("ws://localhost:8080", str(chat.origin()))
        return web.Response(text=text, content_type="text/html")

    pages = web.Application()
    pages.router.add_get("/", serve_page)
    origin = await serve(pages)
    chat = await serve(await init_app(["--allow-origin", str(origin)]))
    amy = await join(chat)
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=chromium) as browser,
    ):
        page = await browser.new_page()
        await page.goto(str(origin))
        assert (await amy.receive())["action"] == "joined"
        await amy.ask(action="chat_message", message="hello")
        await page.get_by_text(f"{amy.user}: hello").wait_for()
        await page.keyboard.type("\n<b>hi\n")  # the empty line is not sent
        await page.get_by_text("You: <b>hi").wait_for()
        await page.evaluate("socket.send('nonsense')")
        await page.get_by_text("Refused: This is not valid JSON").wait_for()
        assert await page.locator("li").count() == 3


async def test_whisper(start_script: StartScript, tmp_path: Path) -> None:
    """Its test passes, and one can whisper in a terminal, in a copy with the solutions."""
    (respond,), (terminal,) = blocks("python respond"), blocks("python terminal")
    receive, do = re.split(r"^ *# in .*\n", terminal, flags=re.MULTILINE)[1:]
    for name, case, place in (
        ("server.py", respond, 'case {"action": str(action)}'),
        ("client.py", receive, 'case {"action": "left"'),
        ("client.py", do, 'case "/help"'),
    ):
        assert f"above `{place}" in README or f"above {place}" in README
        path = tmp_path / name if (tmp_path / name).exists() else ROOT / name
        code, places = re.subn(
            rf"^ *{re.escape(place)}", rf"{case}\g<0>", path.read_text(), flags=re.M
        )
        assert places == 1
        (tmp_path / name).write_text(code)
    for name in ("utils.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "test_whisper.py").write_text(blocks("python test")[0])
    start = functools.partial(start_script, shell=f"cd {shlex.quote(str(tmp_path))};")
    _, output, _ = await (await start("-m", "pytest", "-q", "test_whisper.py")).end()
    assert "1 passed" in output
    server = await start("server.py", "--host", "127.0.0.1", "--port", "0")
    url = URL(re.findall(r"http\S+", await server.line())[0]) / "chat"
    amy = await start("client.py", "--nick", "Amy", "--url", url)
    while "You are now known as Amy" not in (line := await amy.line()):
        assert line
    (words,) = re.findall("`(/whisper .*?)`", README)
    bob = await start("client.py", "--nick", "Bob", "--url", url)
    assert (await bob.end(words.encode()))[0] == 0
    while "* Bob whispers: psst" not in (line := await amy.line()):
        assert line


def test_figures() -> None:
    assert README.count("```") == 2 * len(BLOCKS)
    assert COMMANDS[:2] == ["pip install uv && uv run server.py", "pip install uv && uv run pytest"]
    for sentence in (
        f"1 to {utils.MAX_NAME} visible characters",
        f"more than {utils.MAX_MESSAGE // 1024} KiB",
        f"{utils.MAX_BACKLOG // 1024**2} MiB unread",
        f"a message every {client_echo_example.INTERVAL} seconds",
        f"Every {math_student.INTERVAL} seconds, {math_student.NICK} asks",
    ):
        assert sentence in " ".join(README.split()), sentence
