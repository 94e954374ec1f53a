"""What the README shows is true: snippets run, bodies are what the server sends, commands and links exist."""

import asyncio
import functools
import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest
from aiohttp import web

import client_echo_example
import utils
from server import init_app
from tests.helpers import PACKAGES, ROOT, TIMEOUT, Join, Member

Start = Callable[..., Awaitable[Any]]

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BLOCKS = re.findall(r"^```(\S.*)\n((?:.*\n)*?)^```$", README, re.MULTILINE)


def blocks(info: str) -> list[str]:
    return [text for its_info, text in BLOCKS if its_info == info]


def table(first_cell: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a cell, without the head."""
    (found,) = re.findall(
        rf"^\| {first_cell} +\|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", README, re.MULTILINE
    )
    return [
        [cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in found.splitlines()
    ]


COMMANDS = "".join(blocks("shell")).splitlines()
FIRST, *STEPS, CLIENT = blocks("python")


@pytest.fixture
async def url(serve: Start) -> Any:
    return await serve(await init_app())


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "my_client", "web": web}
    exec(code, names)
    return names


def test_blocks_are_known_and_quoted_lines_stand_in_the_source() -> None:
    assert README.count("```") == 2 * len(BLOCKS)
    for info, text in BLOCKS:
        _, _, name = info.partition(" ")
        if "." in name:
            assert f"\n{text}" in (ROOT / name).read_text()
        else:
            assert name in ("", "naive", "plain", "test", "REQUESTS", "handle_request"), info


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
async def test_steps_of_your_own_client(
    url: Any, join: Join, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    witness = await join(url)
    main, end = FIRST.split("\n\n\nif __name__")
    await run("\n".join([main, *STEPS[:count]]) + "\n\nif __name__" + end)["main"](url / "chat")
    joined, left = await witness.catch_up()
    assert left == {"action": "left", "room": "default", "user": joined["user"], "shame": False}
    printed = [text for text in blocks("text") if text.startswith("{'action'")]
    assert capsys.readouterr().out == "".join(printed[: count + 1]).replace(
        "User1234", joined["user"]
    )


async def test_client_that_reads_all_the_time(
    url: Any, join: Join, start_script: Start, tmp_path: Path
) -> None:
    eve = await join(url, "Eve", "garden")
    (tmp_path / "my_client.py").write_text(CLIENT.replace("ws://localhost:8080", str(url.origin())))
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


async def test_client_that_stops_on_purpose(url: Any, join: Join) -> None:
    amy = await join(url, "Amy", "garden")
    code = CLIENT.replace("while True", "for _ in range(3)").replace("sleep(60)", "sleep(0)")
    await asyncio.wait_for(run(code)["main"](url / "chat"), TIMEOUT)
    heard = await amy.catch_up()
    assert [body["action"] for body in heard] == [
        "joined",
        "nick_changed",
        *["chat_message"] * 3,
        "left",
    ]
    assert heard[-1]["shame"] is False


async def test_your_tests_and_an_action_of_your_own(start_script: Start, tmp_path: Path) -> None:
    """On a copy of the server, with the solution put where the text says."""
    for name, place, kind in (
        ("server.py", '        case {"action": action}:\n', "handle_request"),
        ("utils.py", '    "user_list": {"room"', "REQUESTS"),
    ):
        (tmp_path / name).write_text(
            (ROOT / name).read_text().replace(place, blocks(f"python {kind}")[0] + place)
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    names = "my_client.py", "test_my_client.py", "test_whisper.py"
    for name, text in zip(names, [CLIENT, *blocks("python test")], strict=True):
        (tmp_path / name).write_text(text)
    command = "-m", "pytest", "-q", "-n0", *names[1:]
    code, output, _ = await (
        await start_script(*command, shell=f"cd {shlex.quote(str(tmp_path))};")
    ).end()
    assert (code, output.splitlines()[-1].split(" in ")[0]) == (0, "2 passed"), output


async def test_naive_echo_and_loop(serve: Start) -> None:
    app = web.Application()
    app.router.add_get("/", run(*blocks("python plain"))["echo"])
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(await serve(app)) as websocket,
    ):
        await websocket.send_json([1, None])
        assert await websocket.receive_json(timeout=TIMEOUT) == {"echo": [1, None]}
    member, loop = AsyncMock(), re.sub("^", "    ", blocks("python naive")[0], flags=re.MULTILINE)
    await run(f"async def tell(room, body):\n{loop}")["tell"]({"Amy": member}, 1)
    member.send_json.assert_awaited_once_with(1)


@pytest.mark.needs("browser")
async def test_page_of_your_own(serve: Start, join: Join, chromium: str) -> None:
    from playwright.async_api import async_playwright

    async def serve_page(request: web.Request) -> web.Response:
        text = blocks("html")[0].replace("ws://localhost:8080", str(chat.origin()))
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
        await page.keyboard.type("<b>hi\n")
        await page.get_by_text("You: <b>hi").wait_for()


async def test_bodies_of_echo(url: Any, start_script: Start) -> None:
    script = await start_script("client_echo_example.py", "--url", url / "echo")
    assert await script.line() + await script.line() == blocks("text")[0]
    async with aiohttp.ClientSession() as session, session.ws_connect(url / "echo") as websocket:
        for sent, received in table("you send"):
            await websocket.send_str(sent)
            assert await websocket.receive_json(timeout=TIMEOUT) == json.loads(received)


@pytest.mark.parametrize(("sent", "received", "heard"), table("Bob sends"))
async def test_bodies_of_chat(url: Any, join: Join, sent: str, received: str, heard: str) -> None:
    amy, bob = await join(url, "Amy", "math"), await join(url, "Bob", "math")
    await amy.catch_up()
    await bob.websocket.send_str(sent)
    assert await bob.hear() == json.loads(received)
    assert await amy.catch_up() == ([] if heard == "nothing" else [json.loads(heard)])
    assert await bob.catch_up() == []


async def test_bodies_of_coming_and_going(url: Any, join: Join) -> None:
    amy = await join(url, "Amy", "math")
    connecting = {"action": "connecting", "room": (await join(url)).room, "user": "User1234"}
    assert [connecting] == [json.loads(text) for text in blocks("json")]
    (joined, _), *ends = table("Amy hears")
    for (left, _), leave in zip(ends, (Member.leave, Member.vanish), strict=True):
        bob = await join(url, "Bob", "math")
        assert await amy.hear() == json.loads(joined)
        await (leave(bob) or asyncio.sleep(0))
        assert await amy.hear() == json.loads(left)


output_of = functools.cache(subprocess.check_output)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str) -> None:
    assert COMMANDS[:2] == ["pip install uv && uv run server.py", "pip install uv && uv run pytest"]
    for group in re.findall(r"--group (\w+)", command):
        assert group in PROJECT["dependency-groups"]
        if not all(map(importlib.util.find_spec, PACKAGES.get(group, ()))):
            pytest.skip(f"it needs `uv run --group {group} pytest`")
    command = command.rpartition("&& ")[2].rpartition("| ")[2]
    words = shlex.split(
        re.sub(
            r"^\w+=\S+ |(uv|poetry) run |--group \w+ |--all-groups |(^|(?<=run ))python ",
            "",
            command,
        )
    )
    if words[:2] == ["pip", "install"]:
        assert words[2:-2] == PROJECT["project"]["dependencies"]
    elif words != ["poetry", "install"]:
        script = words[:1] if words[0].endswith(".py") else ["-m", words[words[0] == "-m"]]
        shown = output_of((sys.executable, *script, "--help"), cwd=ROOT, text=True)
        options = {word for word in words if word.startswith("-")} - {"-m"}
        assert options <= set(re.findall(r"(?<![\w-])--?\w[\w-]*", shown))


async def test_pipe(url: Any, start_script: Start) -> None:
    ((source, words),) = [command.split("| uv run ") for command in COMMANDS if "|" in command]
    command = *shlex.split(words), "--url", url / "chat"
    code, output, errors = await (await start_script(*command, shell=f"{source} |")).end()
    said = [line.split(": ")[1] for line in output.splitlines()[-3:]]
    assert (code, said, errors) == (0, ["one", "two", "three"], "")


def test_links() -> None:
    heads = [
        re.sub(r"[^\w -]", "", head.lower())
        for head in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    ]
    for link in re.findall(r"\]\(([^)\s]+)\)", README):
        assert (
            link in [f"#{head.replace(' ', '-')}" for head in heads]
            or "://" in link
            or (ROOT / link).exists()
        )


def test_figures() -> None:
    """The lines of the files are rounded, and may be a quarter off."""
    for link, lines in [(row[0], row[2]) for row in table("file") if row[2]]:
        assert 0.75 < int(lines) / (ROOT / link.split("`")[1]).read_text().count("\n") < 1.25, link
    for sentence in (
        f"1 to {utils.MAX_NAME} visible characters",
        f"at most {utils.MAX_MESSAGE // 1024} KiB",
        f"more than {utils.MAX_BACKLOG // 1024**2} MiB unread is dropped",
        f"{utils.MAX_RATE // 1024**2} MiB a second, after a burst of {utils.MAX_RATE // 1024**2} MiB",
        f"counts at least {utils.MIN_COST} bytes",
        f"a ping after {utils.HEARTBEAT:.0f} seconds, and has {utils.HEARTBEAT / 2:.0f} to answer",
        f"reads on for {utils.CLOSE_TIMEOUT:.0f} seconds",
        f"sends a message every {client_echo_example.INTERVAL} seconds",
    ):
        assert sentence in " ".join(README.split())
