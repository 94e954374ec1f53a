"""What the README shows is true: snippets run, bodies are what the server sends, commands and links exist."""

import asyncio
import contextlib
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server import init_app
from tests.conftest import ROOT, TIMEOUT, UNWANTED, Member, Server

Join = Callable[..., Awaitable[Member]]

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# (what stands behind the backquotes, the text of the block)
BLOCKS = re.findall(r"^```(\S.*)\n((?:.*\n)*?)^```$", README, re.MULTILINE)


def blocks(info: str) -> list[str]:
    return [text for its_info, text in BLOCKS if its_info == info]


def table(first_cell: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a cell, without the head."""
    (found,) = re.findall(rf"^\| {first_cell} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in found.splitlines()]


def test_every_block_is_known() -> None:
    known = {"shell", "text", "json", "python", "python naive"}
    assert {info for info, _ in BLOCKS} - known == {f"python {name}" for name in ("server.py", "utils.py", CLIENT)}
    assert README.count("```") == 2 * len(BLOCKS)


# The code


CLIENT = "client_echo_example.py"


@pytest.mark.parametrize(("info", "text"), [block for block in BLOCKS if block[0].endswith(".py")])
def test_quoted_lines_stand_in_the_source(info: str, text: str) -> None:
    assert f"\n{text}" in (ROOT / info.removeprefix("python ")).read_text()


@pytest.fixture
async def url(aiohttp_server: Any) -> Any:
    return (await aiohttp_server(await init_app())).make_url("/")


async def run(code: str, url: Any, directory: Path) -> asyncio.subprocess.Process:
    """Start a snippet as a file of its own, against this server."""
    assert code.count("ws://localhost:8080/") == 1
    script = directory / "my_client.py"
    script.write_text(code.replace("ws://localhost:8080/", str(url).replace("http", "ws")))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-W", "error", str(script)), cwd=directory, stdout=subprocess.PIPE
    )


STEPS = [text for text in blocks("python") if "asyncio.run" not in text]
PRINTED = [text for text in blocks("text") if text.startswith("{")]


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
async def test_each_step_of_your_own_client(url: Any, join: Join, tmp_path: Path, count: int) -> None:
    witness = await join(url)
    first = blocks("python")[0]
    place = first.index("\n\n\nasyncio.run")
    process = await run(first[:place] + "\n" + "".join(STEPS[:count]) + first[place:], url, tmp_path)
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert process.returncode == 0
    user = (await witness.hear())["user"]
    assert output.decode() == "".join(PRINTED[: count + 1]).replace("User1234", user)
    left = [body for body in await witness.catch_up() if body["action"] == "left"]
    assert [body["shame"] for body in left] == [False]


async def test_client_that_reads_all_the_time(url: Any, join: Join, tmp_path: Path) -> None:
    amy = await join(url, "Amy", "garden")
    process = await run(blocks("python")[-1], url, tmp_path)
    assert process.stdout
    try:
        assert await asyncio.wait_for(process.stdout.readline(), TIMEOUT) == b"In the room: Amy, Eve\n"
        while (body := await amy.hear())["action"] != "chat_message":
            pass
        assert body == {"action": "chat_message", "message": "Is anybody here?", "user": "Eve"}
        await amy.ask(action="chat_message", message="I am \x1b[2J")
        assert await asyncio.wait_for(process.stdout.readline(), TIMEOUT) == rb"Amy says 'I am \x1b[2J'" + b"\n"
        carol = await join(url, "Carol", "garden")
        carol.vanish()
        assert await asyncio.wait_for(process.stdout.readline(), TIMEOUT) == b"Carol left without a goodbye\n"
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), TIMEOUT) == 0
        heard = await amy.catch_up()
        assert heard[-1] == {"action": "left", "room": "garden", "user": "Eve", "shame": False}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_client_that_is_refused(url: Any, join: Join, tmp_path: Path) -> None:
    await join(url, "Eve", "garden")
    process = await run(blocks("python")[-1], url, tmp_path)
    assert process.stdout
    try:
        line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT)
        assert line == b"Refused: Nickname is already in use\n"
    finally:
        process.kill()
        await process.communicate()


async def test_naive_loop() -> None:
    """It works while everybody reads."""

    class Socket:
        async def send_json(self, body: Any) -> None:
            heard.append((self, body))

    heard: list[Any] = []
    members = [Socket(), Socket()]
    (text,) = blocks("python naive")
    names = {"room": {"Amy": members[0], "Bob": members[1]}, "body": 1}
    exec("async def loop():\n" + textwrap.indent(text, "    "), names)
    await names["loop"]()  # type: ignore[operator]
    assert heard == [(members[0], 1), (members[1], 1)]


# The bodies


async def test_bodies_of_echo(url: Any) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url / "echo") as websocket:
        rows = table("you send")
        assert len(rows) == 2
        for sent, received in rows:
            await websocket.send_str(sent)
            assert await websocket.receive_json(timeout=TIMEOUT) == json.loads(received)


@pytest.mark.parametrize("row", table("Bob sends"), ids=lambda row: row[0])
async def test_bodies_of_chat(url: Any, join: Join, row: list[str]) -> None:
    sent, received, heard = row
    amy, bob = await join(url, "Amy", "math"), await join(url, "Bob", "math")
    await amy.catch_up()
    await bob.websocket.send_str(sent)
    assert await bob.hear() == json.loads(received)
    assert await amy.catch_up() == ([] if heard == "nothing" else [json.loads(heard)])
    assert await bob.catch_up() == []


async def test_bodies_of_coming_and_going(url: Any, join: Join) -> None:
    amy = await join(url, "Amy", "math")
    (connecting,) = map(json.loads, blocks("json"))
    (joined, _), (left, _), (left_in_shame, _) = table("Amy hears")
    for body in (left, left_in_shame):
        bob = await join(url)
        assert connecting == {"action": "connecting", "room": bob.room, "user": "User1234"}
        await bob.ask(action="set_nick", nick="Bob")
        await bob.ask(action="join_room", room="math")
        assert await amy.hear() == json.loads(joined)
        if body == left:
            await bob.leave()
        else:
            bob.vanish()
        assert await amy.hear() == json.loads(body)


# The commands

COMMANDS = [line for text in blocks("shell") for line in text.splitlines()]


def test_first_two_commands() -> None:
    assert COMMANDS[:2] == ["pip install uv && uv run server.py", "pip install uv && uv run pytest"]


@functools.cache
def output_of(*arguments: str) -> str:
    """Return what Python prints for these arguments; asked for only once, as some take their time."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str) -> None:
    """The scripts, modules, groups and options that a command names are there."""
    words = shlex.split(command.rpartition("&& ")[2].rpartition("| ")[2])
    while words[0] in ("uv", "poetry", "run"):
        words.pop(0)
        while words[0] in ("--group", "--all-groups"):
            if words.pop(0) == "--group":
                assert words.pop(0) in PROJECT["dependency-groups"]
    if words == ["install"]:
        return
    if words[:2] == ["pip", "install"]:
        assert sorted(words[2:-2]) == sorted(PROJECT["project"]["dependencies"])
        assert words[-2] == "--group"
        assert words[-1] in PROJECT["dependency-groups"]
        return
    if words[0] == "python":
        words.pop(0)
    if words[0].endswith(".py"):
        arguments = [words[0], "--help"]
    elif words[0] == "-m":
        arguments = ["-m", words[1], "--help"]
    else:
        arguments = ["-m", words[0], "--help"]
    if words[0] == "gunicorn":
        pytest.importorskip("gunicorn", reason="gunicorn comes with `uv run --group bench pytest`")
    shown = output_of(*arguments)
    for word in words:
        if word.startswith("-") and word not in ("-m", "--help"):
            assert re.search(rf"(?<![\w-]){word}(?![\w-])", shown), word


def test_pipe(server: Server) -> None:
    """A command with a pipe is run as it stands, but for the address."""
    (command,) = [command for command in COMMANDS if "|" in command]
    command = command.replace("uv run", shlex.quote(sys.executable)) + f" --url {server.url}/chat"
    ended = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.split(": ")[1] for line in ended.stdout.splitlines()[-3:]] == ["one", "two", "three"]


def test_output_of_the_echo_example(server: Server) -> None:
    text = blocks("text")[0]
    command = [sys.executable, "client_echo_example.py", "--url", f"{server.url}/echo"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = process.stdout.readline() + process.stdout.readline()
        process.kill()
    assert lines == text


# The rest


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)\s]+)\)", README))))
def test_links(link: str) -> None:
    if link.startswith("#"):
        heads = [head.lower() for head in re.findall(r"^#+ (.+)$", README, re.MULTILINE)]
        assert link[1:] in [re.sub(r"[^\w -]", "", head).replace(" ", "-") for head in heads]
    elif not link.startswith("https://"):
        assert (ROOT / link).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([a-z_]+\.[a-z]+)`", README))))
def test_names_of_files_and_attributes(name: str) -> None:
    """`server.py` is a file, `asyncio.run` is something in the sources."""
    sources = " ".join(path.read_text() for path in [*ROOT.glob("*.py"), *ROOT.glob("examples/*.py")])
    assert (ROOT / name).exists() or name in sources or name in "".join(blocks("text")) or name == "my_client.py"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([a-z_]+_[a-z_]+|[A-Z][A-Za-z]+Error|BadRequest)`", README))))
def test_names_in_the_code(name: str) -> None:
    """A function that is renamed has to be renamed here, too."""
    sources = " ".join(path.read_text() for path in ROOT.glob("*.py"))
    assert re.search(rf"\b{name}\b", sources) or name in sources


def test_limits() -> None:
    """The figures in the text are those in the code."""
    import client_echo_example
    import server
    import utils

    text = " ".join(README.split())
    assert f"1 to {utils.MAX_NAME} printable characters" in text
    assert f"Past {utils.MAX_BACKLOG // 1024 // 1024} MiB, the member is dropped" in text
    assert f"has {server.MAX_MESSAGE // 1024} KiB at most" in text
    assert f"After {server.HEARTBEAT:.0f} seconds of silence the server sends a ping" in text
    assert f"`close` waits {server.CLOSE_TIMEOUT:.0f} seconds at the most" in text
    assert f"sends a message every {client_echo_example.INTERVAL} seconds" in text


@pytest.mark.parametrize("first_cell", ["a room +", "members of a room"])
def test_tables_of_the_benchmark(first_cell: str) -> None:
    """They have the columns and the rows that the benchmark prints, and ratios that fit."""
    source = (ROOT / "benchmarks" / "fan_out.py").read_text().replace("{OURS}", "server.py").replace("{FLOOR}", "floor")
    (head,) = re.findall(rf"^\| {first_cell} \|.*$", README, re.MULTILINE)
    assert all(f'"{cell.strip()}"' in source for cell in head.strip("|").split("|"))
    for row in table(first_cell):
        if row[0][0].isdecimal():
            assert abs(float(row[1]) / float(row[2]) - float(row[3])) < 0.01
        else:
            assert f'"{row[0].strip()}"' in source


def test_nothing_but_the_readme_needs_to_be_read() -> None:
    assert not re.search(r"TODO|FIXME|XXX", README)
    assert not UNWANTED.search(README)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
