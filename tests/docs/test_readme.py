"""What the README shows is true: its snippets and commands run, its tables are what is sent."""

import asyncio
import functools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

import client_echo_example
import utils
from examples import math_student, simple_server
from server import init_app
from tests.helpers import (
    HANDSHAKE,
    ROOT,
    TIMEOUT,
    ConnectRaw,
    Join,
    Member,
    Script,
    StartScript,
    StartServer,
    eventually,
    left,
    said,
)

Serve = Callable[[web.Application], Awaitable[URL]]
Run = Callable[..., Awaitable[Script]]

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


async def test_client_that_reads_and_writes(
    start_server: StartServer, join: Join, run_client: Run
) -> None:
    """It does not notice that the server is gone before it sends again."""
    server = start_server()
    amy = await join(server.url, "Amy", "garden")
    script = await run_client(2, URL(server.url))
    assert await script.line() == "You: 'Is anybody here?'\n"
    await amy.websocket.send_json({"action": "chat_message", "message": "Yes!"})
    while (line := await script.line()) != "Amy: 'Yes!'\n":
        assert line == "You: 'Is anybody here?'\n"
    await asyncio.to_thread(server.stop)
    _, errors = await asyncio.wait_for(script.process.communicate(), TIMEOUT)
    assert "ClientConnectionResetError" in errors.decode().splitlines()[-1]


@pytest.mark.parametrize("loop", ["while True", "for _ in range(1)"])
async def test_client_that_leaves(url: URL, join: Join, run_client: Run, loop: str) -> None:
    """By Ctrl+C, or because it has sent everything."""
    amy, _ = await join(url, "Amy", "garden"), await join(url, "Eve", "garden")
    script = await run_client(3, url, loop)
    assert await script.line() == "Refused: Nickname is already in use\n"
    assert await script.line() == "You: 'Is anybody here?'\n"
    if loop == "while True":
        script.process.send_signal(signal.SIGINT)
    assert await script.end() == (0, "", "")
    *_, last = await amy.catch_up()
    assert last == left("garden", last["user"], shame=False)


async def test_client_whose_server_stops(start_server: StartServer, run_client: Run) -> None:
    server = start_server()
    script = await run_client(3, URL(server.url))
    assert await script.line() == "You: 'Is anybody here?'\n"
    await asyncio.to_thread(server.stop)
    assert (await script.end())[::2] == (0, "")


async def test_client_that_fails(serve: Serve, run_client: Run) -> None:
    """The exception is shown once, and the WebSocket is closed properly all the same."""
    close_codes = []

    async def send_nonsense(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_str("nonsense")
        async for _ in websocket:
            pass
        close_codes.append(websocket.close_code)
        return websocket

    app = web.Application()
    app.router.add_get("/chat", send_nonsense)
    script = await run_client(3, await serve(app))
    _, errors = await asyncio.wait_for(script.process.communicate(), TIMEOUT)
    assert errors.count(b"Traceback") == errors.count(b"JSONDecodeError") == 1
    assert close_codes == [1000]


# Write a server


ECHO, CHAT, APP = blocks("python server")


def my_server() -> str:
    code = ECHO.replace("from aiohttp import web\n", CHAT, 1)
    app = "app = web.Application()\n"
    return code.replace(app, app + APP).replace(
        "run_app(app", 'run_app(app, host="127.0.0.1", port=0'
    )


async def run_lines(start_script: StartScript, url: URL, lines: str) -> str:
    """Type lines into `python -m asyncio`; return what it shows."""
    script = await start_script("-m", "asyncio")
    lines = lines.replace("ws://localhost:8080", str(url.origin()))
    output, _ = await asyncio.wait_for(script.process.communicate(lines.encode()), TIMEOUT)
    return output.decode()


async def test_server(start_script: StartScript, join: Join, tmp_path: Path) -> None:
    """Of the echo, one sees the traceback. One can chat."""
    (tmp_path / "my_server.py").write_text(my_server())
    server = await start_script("-u", tmp_path / "my_server.py")
    url = URL(re.findall(r"http\S+", await server.line())[0])
    shown = await run_lines(start_script, url, blocks("python echo")[0])
    assert "{'echo': [1, 2]}" in shown
    assert "WSMsgType.CLOSED" in shown
    amy = await join(url, room="math")
    (command,) = [command for command in COMMANDS if "--room math --verbose" in command][1:]
    client = await start_script(*shlex.split(command)[2:], "--url", url / "chat")
    code, output, errors = await client.end(b"hello\n")
    assert (code, errors) == (0, "")
    assert "! This can't be done." in output
    joined, message, _ = [await amy.hear() for _ in range(3)]
    assert message == said(joined["user"], "hello")
    server.process.terminate()
    _, errors = await server.process.communicate()
    assert b"json.decoder.JSONDecodeError: Expecting value" in errors


@pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")
async def test_flood_by_hand(serve: Serve, join: Join, start_script: StartScript) -> None:
    url = await serve(simple_server.init_app())
    amy = await join(url)
    connect, _, _ = blocks("python echo")[0].replace("/echo", "/chat").partition("await websocket")
    (flood,) = re.findall(r"`(for .*)`", README)
    await run_lines(start_script, url, f"{connect}{flood.replace('20_000', '20')}\n\n")
    assert [body["action"] for body in await amy.catch_up()].count("chat_message") == 20


@pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")
async def test_suspended_client(
    serve: Serve,
    connect_raw: ConnectRaw,
    start_script: StartScript,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command that sends 12 MB ends when the client that is suspended reads again."""
    monkeypatch.delitem(HANDSHAKE, "Sec-WebSocket-Extensions")
    app = simple_server.init_app()
    url = await serve(app)
    suspended = await connect_raw(url, receive_buffer=4096)
    suspended.writer.write(suspended.text(action="join_room", room="math"))
    suspended.stop_reading()
    await eventually(lambda: app["websockets"]["math"])
    ((websocket,),) = [room.values() for room in app["websockets"].values() if room]
    transport = websocket._req.transport
    (command,) = [command for command in COMMANDS if "x.txt" in command]
    source, _, target = command.replace("uv run", "").partition("| ")
    source = source.replace("python", sys.executable)
    *words, _, file = shlex.split(target)
    script = await start_script(
        *words, "--url", url / "chat", shell=f"{source} |", redirect=f"> {tmp_path / file}"
    )
    limit = transport.get_write_buffer_limits()[1]
    await eventually(lambda: transport.get_write_buffer_size() > limit)
    assert script.process.returncode is None
    suspended.writer.transport.resume_reading()  # type: ignore[attr-defined]
    reading = asyncio.create_task(suspended.reader.read())
    assert (await script.end())[0] == 0
    assert (tmp_path / file).read_text().count("x" * 60_000) == 200
    reading.cancel()


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
    assert await bob.hear() == json.loads(received)
    assert await amy.catch_up() == ([json.loads(broadcast)] if broadcast else [])
    assert await bob.catch_up() == []


async def test_coming_and_going(url: URL, join: Join) -> None:
    amy = await join(url, "Amy", "math")
    connecting = {"action": "connecting", "room": "default", "user": "User1234"}
    assert f"`{json.dumps(connecting)}`" in README
    (joined, _), (shame, _) = table("Amy receives")
    for leave, change in ((Member.vanish, {}), (Member.leave, {"shame": False})):
        bob = await join(url, "Bob", "math")
        assert await amy.hear() == json.loads(joined)
        await (leave(bob) or asyncio.sleep(0))
        assert await amy.hear() == json.loads(shame) | change


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
        assert (await amy.hear())["action"] == "joined"
        await amy.ask(action="chat_message", message="hello")
        await page.get_by_text(f"{amy.user}: hello").wait_for()
        await page.keyboard.type("\n<b>hi\n")  # the empty line is not sent
        await page.get_by_text("You: <b>hi").wait_for()
        await page.evaluate("socket.send('nonsense')")
        await page.get_by_text("Refused: This is not valid JSON").wait_for()
        assert await page.locator("li").count() == 3


@pytest.fixture
def whispering_chat(tmp_path: Path) -> Path:
    """A copy of the chat, with the solution put where the text says."""
    ((respond,), (terminal,)) = blocks("python respond"), blocks("python terminal")
    (receive, do) = re.split(r"^ *# in .*\n", terminal, flags=re.MULTILINE)[1:]
    places = {respond: 'case {"action": str(action)}', receive: 'case {"action": "left"'}
    for name, cases in ("server.py", [respond]), ("client.py", [receive, do]), ("utils.py", []):
        code = (ROOT / name).read_text()
        for case in cases:
            place = places.get(case, 'case "/help"')
            assert f"`{place}`" in README or f"above {place}" in README
            assert code.count(f"            {place}") == 1
            code = code.replace(f"            {place}", f"{case}            {place}")
        (tmp_path / name).write_text(code)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_whisper.py").write_text(blocks("python test")[0])
    return tmp_path


async def test_whisper(whispering_chat: Path, start_script: StartScript) -> None:
    """Its test passes, and one can whisper in a terminal."""
    shell = f"cd {shlex.quote(str(whispering_chat))};"
    script = await start_script("-m", "pytest", "-q", "test_whisper.py", shell=shell)
    code, output, _ = await script.end()
    assert (code, "1 passed" in output) == (0, True), output
    server = await start_script("server.py", "--host", "127.0.0.1", "--port", "0", shell=shell)
    url = URL(re.findall(r"http\S+", await server.line())[0]) / "chat"
    amy = await start_script("client.py", "--nick", "Amy", "--url", url, shell=shell)
    while "You are now known as Amy" not in (line := await amy.line()):
        assert line
    (words,) = re.findall("`(/whisper .*?)`", README)
    bob = await start_script("client.py", "--nick", "Bob", "--url", url, shell=shell)
    assert (await bob.end(words.encode()))[0] == 0
    while "whispers" not in (line := await amy.line()):
        assert line
    assert "* Bob whispers: psst" in line


# The rest


output_of = functools.cache(subprocess.check_output)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    """Its script and its options exist."""
    assert COMMANDS[:2] == ["pip install uv && uv run server.py", "pip install uv && uv run pytest"]
    command = re.sub(r".*(&& |\| )", "", command).partition(" >")[0]
    words = shlex.split(re.sub("^uv run (python )?", "", command))
    script = words[:1] if words[0].endswith(".py") else ["-m", words[words[0] == "-m"]]
    shown = output_of((sys.executable, *script, "--help"), cwd=ROOT, text=True)
    options = {word for word in words if word.startswith("-")} - {"-m"}
    assert options <= set(re.findall(r"(?<![\w-])--?\w[\w-]*", shown))


def test_links() -> None:
    headings = [text.lower().replace(" ", "-") for text in re.findall("^#+ (.+)$", README, re.M)]
    for link in re.findall(r"\]\(([^)\s]+)\)", README):
        assert "://" in link or link.lstrip("#") in headings or (ROOT / link).exists(), link


def test_figures() -> None:
    assert README.count("```") == 2 * len(BLOCKS)
    for sentence in (
        f"1 to {utils.MAX_NAME} visible characters",
        f"more than {utils.MAX_MESSAGE // 1024} KiB",
        f"{utils.MAX_BACKLOG // 1024**2} MiB unread",
        f"a message every {client_echo_example.INTERVAL} seconds",
        f"Every {math_student.INTERVAL} seconds, {math_student.NICK} asks",
    ):
        assert sentence in " ".join(README.split()), sentence
