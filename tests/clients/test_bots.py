"""The bot that answers sums and the one that asks. How they end is in test_ends.py."""

import asyncio
import importlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from yarl import URL

from tests.clients.conftest import RunScript
from tests.helpers import TIMEOUT, Join, Member

math_client: Any = importlib.import_module("examples.math_client")
math_student: Any = importlib.import_module("examples.math_student")
StartBot = Callable[[Any], Awaitable[str]]

SUMS = {
    "1 + 1": "2",
    "44 -14": "30",
    "-3 * 2": "-6",
    "3--2": "5",
    "+3 + +2": "5",
    "  7/2  ": "3.5",
    "-8 / 2": "-4",
    "007 + 1": "8",
    "300000000000000000003 / -3": "-100000000000000000001",
    "9" * 50 + " * " + "9" * 50: "9" * 49 + "8" + "0" * 49 + "1",
    "9" * 50 + " / 2": "5e+49",
    "0 / -0": "Sorry, nobody can divide by zero.",
}
NO_SUMS = (  # each between two bars
    "| |2|2 + two|9**9**9|9 ** 9|9 // 9|9 % 9|1 + 1; quit()|1 + 1 + 1|1 + 1?|what is 1 + 1|(1 + 1)"
    "|1 1|1 +|+ 1|1 + - 1|1 - --1|1.0 + 1|1e3 + 1|0x10 + 1|1_000 + 1|1\n+\n1|1 + 1\n|1 +\u00a01"
    "|\u0663 + 1|\u00b2 + 1|1 + \uff11|1 \u2212 1|\ud800 + 1|@Bob: 2|Bob: 1 + 1"
    f"|{'9' * 51} + 1|1 + {'9' * 51}|{'9' * 5000} * {'9' * 5000}|__import__('os').getpid()"
).split("|")


@pytest.fixture
async def zoe(url: URL, join: Join) -> Member:
    """A member who sees the bots."""
    return await join(url.origin(), nick="Zoë", room="math")


@pytest.fixture
async def start_bot(url: URL, zoe: Member) -> AsyncIterator[StartBot]:
    """Start bots with `nick = await start_bot(math_client)`; Zoë has seen them enter then."""
    tasks = []

    async def start(module: Any) -> str:
        tasks.append(asyncio.create_task(module.main(str(url))))
        assert (await zoe.receive())["action"] == "joined"
        return str((await zoe.receive())["to_user"])

    yield start
    for task in tasks:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_solves_one_sum_of_two_integers() -> None:
    assert {text: math_client.solve(text) for text in SUMS} == SUMS
    assert {text: math_client.solve(text) for text in NO_SUMS} == dict.fromkeys(NO_SUMS)


async def test_bot_that_answers(
    url: URL, join: Join, zoe: Member, start_bot: StartBot, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes the next name that is free, prints what is said, and does not answer bots."""
    await join(url.origin(), nick="MathBot", room="math")
    await zoe.catch_up()
    assert await start_bot(math_client) == "MathBot2"
    heading, *users = capsys.readouterr().out.splitlines()
    assert heading == "In the room are:"
    assert {"  'MathBot'", r"  'Zo\xeb'"} < set(users)
    assert await start_bot(math_client) == "MathBot3"
    for text in ("What is 1 + 1? \x1b[2J é", "1 + 1"):
        await zoe.ask(action="chat_message", message=text)
    bodies = [await zoe.receive() for _ in range(2)]
    assert sorted(body["user"] for body in bodies) == ["MathBot2", "MathBot3"]
    assert {body["message"] for body in bodies} == {"@Zoë: 2"}
    assert await zoe.catch_up() == []
    assert r"'Zo\xeb': 'What is 1 + 1? \x1b[2J \xe9'" in capsys.readouterr().out.splitlines()


async def test_bot_that_asks(
    url: URL, join: Join, zoe: Member, start_bot: StartBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks what the other bot answers, with all signs, and laughs when a user vanishes."""
    monkeypatch.setattr(math_student, "INTERVAL", 0.001)
    bob, carol, asa = [await join(url.origin(), name, "math") for name in ("Bob", "Carol", "Åsa")]
    await zoe.catch_up()
    assert await start_bot(math_student) == "MathStudent"
    await bob.leave()
    await carol.ask(action="join_room", room="physics")
    asa.vanish()
    laughs: list[str] = []
    signs: set[str] = set()
    async with asyncio.timeout(TIMEOUT):
        while signs != set("+-*/") or not laughs:
            body = await zoe.receive()
            if body["action"] == "chat_message" and body["message"].startswith("Ha ha, "):
                laughs.append(body["message"])
            elif body["action"] == "chat_message":
                assert re.fullmatch(r"[0-9]{1,2} [-+*/] [0-9]{1,2}", body["message"])
                assert math_client.solve(body["message"])
                signs.add(body["message"].split()[1])
    assert laughs == ["Ha ha, Åsa left without a goodbye!"]


@pytest.mark.parametrize("script", ["examples/math_student.py"])
async def test_does_not_share_its_name(url: URL, join: Join, run_script: RunScript) -> None:
    await join(url.origin(), nick="MathStudent", room="math")
    refusal = "ConnectionError: The server refuses: Nickname is already in use"
    assert await run_script(url) == refusal
