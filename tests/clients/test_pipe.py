"""client.py without a terminal: it reads and prints plain lines."""

import argparse
import asyncio
import io
import json
import sys
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web
from yarl import URL

import client
from tests.clients.conftest import ServeWebSocket
from tests.helpers import TIMEOUT, Join, StartScript, left, said, succeeded

# What is typed, and what is shown. Input that is not UTF-8 is escaped.
LINES = {
    "one": "Zoë: one",
    "//shrug": "Zoë: /shrug",
    "   ": None,
    "/dance now": "! Unknown command /dance; /help lists the commands",
    "/nick Amy": "! Nickname is already in use",
    "/join lounge": "! Name already in use in this room.",
    "/nick  Robert Two ": "* You are now known as Robert Two",
    "/users": "* In lounge: Amy, Robert Two",
    "/users art": "* In art: nobody",
    "/join art": "* You are now in art\n* In art: Robert Two",
    "/help": "\n".join(f"* {row}" for row in client.HELP.splitlines()),
    "z" * 200_000: "! Too long: 200041 bytes; the limit is 65536",
    "\udcff": r"Robert Two: \xff",
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
async def test_lines_and_commands(
    url: URL, join: Join, start_script: StartScript, tmp_path: Path, encoding: str
) -> None:
    """It joins the room, then takes the nickname, then shows the users, then does what is typed.

    It does so in pipes, and with files, in which it escapes what is not in their encoding.
    """
    files = f'cat >{tmp_path}/in && "$@" <{tmp_path}/in >{tmp_path}/out && cat {tmp_path}/out'
    settings = {"shell": files, "PYTHONIOENCODING": "ascii"} if encoding == "ascii" else {}
    options = ("--url", url / "chat", "--room", "lounge", "--nick", "Zoë")
    amy = await join(url, "Amy", "lounge")
    script = await start_script("client.py", *options, **settings)
    code, output, errors = await script.end("\r\n".join(LINES).encode(errors="surrogateescape"))
    assert (code, errors) == (0, "")
    shown = ["* You are now in lounge", "* You are now known as Zoë", "* In lounge: Amy, Zoë"]
    text = "\n".join([*shown, *filter(None, LINES.values()), ""])
    assert output.encode() == text.encode(encoding, "backslashreplace")
    bodies = await amy.catch_up()
    assert bodies[2:4] == [said("Zoë", "one"), said("Zoë", "/shrug")]
    assert bodies[-1] == left("lounge", "Robert Two", shame=False)


async def test_unread_output(serve_websocket: ServeWebSocket, start_script: StartScript) -> None:
    """The client goes on responding to pings, and prints everything when somebody reads."""
    has_responded = asyncio.Event()

    async def talk(websocket: web.WebSocketResponse) -> None:
        body = {"action": "chat_message", "user": "Amy", "message": "x" * 600_000}
        await websocket.send_json(body)
        await websocket.ping()
        while (await websocket.receive()).type is not WSMsgType.PONG:
            pass
        has_responded.set()

    script = await start_script("client.py", "--url", await serve_websocket(talk))
    await asyncio.wait_for(has_responded.wait(), TIMEOUT)
    assert (await script.end())[1] == "Amy: " + "x" * 600_000 + "\n"


async def test_idle(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its streams say that they are a terminal, but are not files."""

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Stream("hello\n"))
    monkeypatch.setattr(sys, "stdout", output := Stream())
    options = {"nick": "Bob", "room": "math", "verbose": True, "reconnect": False}
    await client.main(argparse.Namespace(url=url / "chat", **options))
    shown = [line[6:] for line in output.getvalue().splitlines()]  # without the times
    assert shown[-3] == '> {"action": "chat_message", "message": "hello"}'
    assert shown[-2:] == [f"< {json.dumps(succeeded('chat_message', 'hello'))!r}", "Bob: hello"]


@pytest.mark.needs("lint")
async def test_closed_streams(start_script: StartScript) -> None:
    sentence = "client.py needs standard input and output (/dev/null is enough).\n"
    for redirect in ("<&-", ">&-"):
        script = await start_script("client.py", shell=f'exec "$@" {redirect}')
        assert await script.end() == (1, "", sentence)


async def test_output_that_closes(start_script: StartScript, busy_room: URL) -> None:
    script = await start_script("client.py", "--url", busy_room, shell='"$@" | head -n 3')
    assert (await script.end())[2] == ""
