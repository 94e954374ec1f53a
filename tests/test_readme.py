"""What the README shows is true: snippets run, bodies are what the server sends, commands and links exist."""

import asyncio
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

import client_echo_example
import utils
from server import init_app
from tests.conftest import PACKAGES, ROOT, TIMEOUT, Member, Script

Join = Callable[..., Awaitable[Member]]
Serve = Callable[[web.Application], Awaitable[URL]]
StartScript = Callable[..., Awaitable[Script]]

README = (ROOT / "README.md").read_text()
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
# (what stands behind the backquotes, the text of the block)
BLOCKS = re.findall(r"^```(\S.*)\n((?:.*\n)*?)^```$", README, re.MULTILINE)


def blocks(info: str) -> list[str]:
    return [text for its_info, text in BLOCKS if its_info == info]


def table(first_cell: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a cell, without the head."""
    (found,) = re.findall(rf"^\| {first_cell} +\|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in found.splitlines()]


QUOTES = [(info.split()[1], text) for info, text in BLOCKS if "." in info]
COMMANDS = "".join(blocks("shell")).splitlines()
LINKS = sorted(set(re.findall(r"\]\(([^)\s]+)\)", README)))
FIRST, *STEPS, CLIENT = blocks("python")
ADDRESS = "ws://localhost:8080/chat"


@pytest.fixture
async def url(serve: Serve) -> URL:
    """A server."""
    return await serve(await init_app())


def run(code: str) -> dict[str, Any]:
    """Return what a module defines."""
    names: dict[str, Any] = {"__name__": "my_client", "web": web}
    exec(code, names)
    return names


def test_every_block_is_known() -> None:
    kinds = ("", " naive", " plain", " test", " REQUESTS", " handle_request")
    known = {"shell", "text", "json", "html", *(f"python{kind}" for kind in kinds)}
    assert {info for info, _ in BLOCKS if "." not in info} == known
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize(("name", "text"), QUOTES)
def test_quoted_lines_stand_in_the_source(name: str, text: str) -> None:
    assert f"\n{text}" in (ROOT / name).read_text()


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
async def test_steps_of_your_own_client(url: URL, join: Join, capsys: pytest.CaptureFixture[str], count: int) -> None:
    witness = await join(url)
    main, end = FIRST.split("\n\n\nif __name__")
    await run("\n".join([main, *STEPS[:count]]) + "\n\nif __name__" + end)["main"](url / "chat")
    joined, left = await witness.catch_up()
    assert left == {"action": "left", "room": "default", "user": joined["user"], "shame": False}
    printed = [text for text in blocks("text") if text.startswith("{'action'")]
    assert capsys.readouterr().out == "".join(printed[: count + 1]).replace("User1234", joined["user"])


async def test_client_that_reads_all_the_time(url: URL, join: Join, start_script: StartScript, tmp_path: Path) -> None:
    eve = await join(url, "Eve", "garden")
    (tmp_path / "my_client.py").write_text(CLIENT.replace(ADDRESS, str(url / "chat")))
    script = await start_script("-u", tmp_path / "my_client.py")
    assert await script.line() == "Refused: Nickname is already in use\n"
    assert await script.line() == f"In the room: Eve, {(await eve.hear())['user']}\n"
    await eve.ask(action="chat_message", message="I am \x1b[2J")
    assert await script.line() == r"Eve says 'I am \x1b[2J'" + "\n"
    (await join(url, "Carol", "garden")).vanish()
    assert await script.line() == "Carol left without a goodbye\n"
    script.process.send_signal(signal.SIGINT)
    assert await script.end() == (0, "", "")
    assert (await eve.catch_up())[-1]["shame"] is False


async def test_client_that_stops_on_purpose(url: URL, join: Join) -> None:
    amy = await join(url, "Amy", "garden")
    code = CLIENT.replace("while True", "for _ in range(3)").replace("sleep(60)", "sleep(0)")
    await asyncio.wait_for(run(code)["main"](url / "chat"), TIMEOUT)
    *heard, left = await amy.catch_up()
    assert [body["action"] for body in heard] == ["joined", "nick_changed", *["chat_message"] * 3]
    assert left == {"action": "left", "room": "garden", "user": "Eve", "shame": False}


async def test_your_tests_and_an_action_of_your_own(start_script: StartScript, tmp_path: Path) -> None:
    """On a copy of the server, with the solution put where the text says."""
    for name, place, kind in (
        ("server.py", '        case {"action": action}:\n', "handle_request"),
        ("utils.py", '    "user_list": {"room"', "REQUESTS"),
    ):
        before, after = (ROOT / name).read_text().split(place)
        (tmp_path / name).write_text("".join([before, *blocks(f"python {kind}"), place, after]))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in zip(
        ("my_client", "test_my_client", "test_whisper"), [CLIENT, *blocks("python test")], strict=True
    ):
        (tmp_path / f"{name}.py").write_text(text)
    command = f"cd {shlex.quote(str(tmp_path))};"
    script = await start_script("-m", "pytest", "-q", "-n0", "test_my_client.py", "test_whisper.py", shell=command)
    code, output, _ = await script.end()
    assert (code, output.splitlines()[-1].split(" in ")[0]) == (0, "2 passed"), output


async def test_naive_echo_and_loop(serve: Serve) -> None:
    """They work while everybody reads."""
    app = web.Application()
    app.router.add_get("/", run(*blocks("python plain"))["echo"])
    async with aiohttp.ClientSession() as session, session.ws_connect(await serve(app)) as websocket:
        await websocket.send_json([1, None])
        assert await websocket.receive_json(timeout=TIMEOUT) == {"echo": [1, None]}
    room = {"Amy": AsyncMock(), "Bob": AsyncMock()}
    (loop,) = blocks("python naive")
    await run("async def loop(room, body):\n" + textwrap.indent(loop, "    "))["loop"](room, 1)
    assert all(websocket.send_json.await_args_list == [((1,),)] for websocket in room.values())


@pytest.mark.needs("browser")
async def test_page_of_your_own(serve: Serve, join: Join, chromium: str) -> None:
    from playwright.async_api import async_playwright

    async def serve_page(request: web.Request) -> web.Response:
        return web.Response(text=blocks("html")[0].replace(ADDRESS, f"{chat}chat"), content_type="text/html")

    pages = web.Application()
    pages.router.add_get("/my_page.html", serve_page)
    origin: URL = await serve(pages)
    chat = await serve(await init_app(["--allow-origin", str(origin)]))
    amy = await join(chat)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium)
        page = await browser.new_page()
        await page.goto(str(origin / "my_page.html"))
        assert (await amy.hear())["action"] == "joined"
        await amy.ask(action="chat_message", message="hello")
        await page.get_by_text(f"{amy.user}: hello").wait_for()
        await page.keyboard.type("<b>hi\n")
        await page.get_by_text("You: <b>hi").wait_for()
        await browser.close()


async def test_bodies_of_echo(url: URL) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url / "echo") as websocket:
        for sent, received in table("you send"):
            await websocket.send_str(sent)
            assert await websocket.receive_json(timeout=TIMEOUT) == json.loads(received)


@pytest.mark.parametrize("row", table("Bob sends"), ids=lambda row: row[0])
async def test_bodies_of_chat(url: URL, join: Join, row: list[str]) -> None:
    sent, received, heard = row
    amy, bob = await join(url, "Amy", "math"), await join(url, "Bob", "math")
    await amy.catch_up()
    await bob.websocket.send_str(sent)
    assert await bob.hear() == json.loads(received)
    assert await amy.catch_up() == ([] if heard == "nothing" else [json.loads(heard)])
    assert await bob.catch_up() == []


async def test_bodies_of_coming_and_going(url: URL, join: Join) -> None:
    amy = await join(url, "Amy", "math")
    (connecting,) = map(json.loads, blocks("json"))
    (joined, _), *ends = table("Amy hears")
    for (left, _), leave in zip(ends, (Member.leave, Member.vanish), strict=True):
        bob = await join(url)
        assert connecting == {"action": "connecting", "room": bob.room, "user": "User1234"}
        await bob.ask(action="set_nick", nick="Bob")
        await bob.ask(action="join_room", room="math")
        assert await amy.hear() == json.loads(joined)
        if goodbye := leave(bob):
            await goodbye
        assert await amy.hear() == json.loads(left)


@functools.cache
def help_of(*arguments: str) -> str:
    """Return what a script or module says about its options; asked for only once, as some take their time."""
    environment = os.environ | {"REDIS_URL": "redis://localhost"}
    return subprocess.check_output([sys.executable, *arguments, "--help"], cwd=ROOT, env=environment, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str) -> None:
    """The scripts, modules, groups and options that a command names are there."""
    assert COMMANDS[:2] == ["pip install uv && uv run server.py", "pip install uv && uv run pytest"]
    for group in re.findall(r"--group (\w+)", command):
        assert group in GROUPS
        if not all(map(importlib.util.find_spec, PACKAGES.get(group, ()))):
            pytest.skip(f"it needs `uv run --group {group} pytest`")
    words = shlex.split(command.rpartition("&& ")[2].rpartition("| ")[2])
    while words[0] in ("uv", "poetry", "run", "--group", "--all-groups", "python", *GROUPS) or "=" in words[0]:
        words.pop(0)
    if "install" not in words[:2]:
        script = words[:1] if words[0].endswith(".py") else ["-m", words[words[0] == "-m"]]
        shown = set(re.findall(r"(?<![\w-])--?\w[\w-]*", help_of(*script)))
        assert {word for word in words if word.startswith("-")} - {"-m"} <= shown


async def test_pipe(url: URL, start_script: StartScript) -> None:
    """A command with a pipe is run as it stands, but for the address."""
    (command,) = [command for command in COMMANDS if "|" in command]
    source, _, words = command.partition("| uv run ")
    script = await start_script(*shlex.split(words), "--url", url / "chat", shell=f"{source} |")
    code, output, errors = await script.end()
    assert (code, errors) == (0, "")
    assert [line.split(": ")[1] for line in output.splitlines()[-3:]] == ["one", "two", "three"]


async def test_output_of_the_echo_example(url: URL, start_script: StartScript) -> None:
    script = await start_script("client_echo_example.py", "--url", url / "echo")
    assert await script.line() + await script.line() == blocks("text")[0]


@pytest.mark.parametrize("link", [link for link in LINKS if "://" not in link])
def test_links(link: str) -> None:
    heads = [re.sub(r"[^\w -]", "", head.lower()) for head in re.findall(r"^#+ (.+)$", README, re.MULTILINE)]
    assert link in [f"#{head.replace(' ', '-')}" for head in heads] or (ROOT / link).exists()


def test_figures_of_the_files() -> None:
    """They are rounded, and may be a quarter off."""
    rows = [(link.split("`")[1], int(lines)) for link, _, lines in table("file") if lines.isdecimal()]
    sizes = {name: (ROOT / name).read_text().count("\n") for name, _ in rows}
    assert [name for name, lines in rows if not 0.75 < lines / sizes[name] < 1.25] == []


def test_figures_of_the_code() -> None:
    text = " ".join(README.split())
    for sentence in (
        f"1 to {utils.MAX_NAME} visible characters",
        f"at most {utils.MAX_MESSAGE // 1024} KiB",
        f"more than {utils.MAX_BACKLOG // 1024**2} MiB unread is dropped",
        f"{utils.MAX_RATE // 1024**2} MiB a second, after a burst of {utils.MAX_RATE // 1024**2} MiB",
        f"counts at least {utils.MIN_COST} bytes",
        f"a ping after {utils.HEARTBEAT:.0f} seconds, and has {utils.HEARTBEAT / 2:.0f} to answer",
        f"reads on for {utils.CLOSE_TIMEOUT:.0f} seconds",
        f"{utils.CLOSE_TIMEOUT:.0f} seconds later",
        f"sends a message every {client_echo_example.INTERVAL} seconds",
    ):
        assert sentence in text
