"""The bot that answers sums and the one that asks. How they end is in test_ends.py."""

import asyncio
import importlib
import re
from typing import Any

import pytest
from yarl import URL

from tests.clients.conftest import RunScript, StartBot
from tests.helpers import TIMEOUT, Join, Member, said

math_client: Any = importlib.import_module("examples.math_client")
math_student: Any = importlib.import_module("examples.math_student")

SORRY = "Sorry, nobody can divide by zero."
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
    "0 / -0": SORRY,
}
NO_SUMS = (  # each between two bars
    "| |2|2 + two|9**9**9|9 ** 9|9 // 9|9 % 9|1 + 1; quit()|1 + 1 + 1|1 + 1?|what is 1 + 1|(1 + 1)"
    "|1 1|1 +|+ 1|1 + - 1|1 - --1|1.0 + 1|1e3 + 1|0x10 + 1|1_000 + 1|1\n+\n1|1 + 1\n|1 +\u00a01"
    "|\u0663 + 1|\u00b2 + 1|1 + \uff11|1 \u2212 1|\ud800 + 1|@Bob: 2|Bob: 1 + 1"
    f"|{'9' * 51} + 1|1 + {'9' * 51}|{'9' * 5000} * {'9' * 5000}|__import__('os').getpid()"
).split("|")


# The bot that answers


def test_solves_one_sum_of_two_integers() -> None:
    assert {text: math_client.solve(text) for text in SUMS} == SUMS
    assert {text: math_client.solve(text) for text in NO_SUMS} == dict.fromkeys(NO_SUMS)


async def test_takes_the_next_name_that_is_free(url: URL, join: Join, start_bot: StartBot) -> None:
    await join(url.origin(), nick="MathBot", room="math")
    alice = await join(url.origin(), nick="Alice", room="math")
    await start_bot(math_client, "MathBot2", alice)
    await start_bot(math_client, "MathBot3", alice)
    await alice.ask(action="chat_message", message="What is 1 + 1?")
    await alice.ask(action="chat_message", message="1 + 1")
    heard = [await alice.receive() for _ in range(2)]  # neither bot answers the other
    assert sorted(body["user"] for body in heard) == ["MathBot2", "MathBot3"]
    assert {body["message"] for body in heard} == {"@Alice: 2"}
    assert await alice.catch_up() == []


async def test_prints_the_users_and_what_is_said(
    url: URL, join: Join, start_bot: StartBot, capsys: pytest.CaptureFixture[str]
) -> None:
    zoe = await join(url.origin(), nick="Zoë", room="math")
    await start_bot(math_client, "MathBot", zoe)
    await zoe.ask(action="chat_message", message="\x1b[2J")
    await zoe.ask(action="chat_message", message="6 * 7")
    assert await zoe.receive() == said("MathBot", "@Zoë: 42")
    heading, *users, odd, question = capsys.readouterr().out.splitlines()
    assert heading == "In the room are:"
    assert set(users) == {r"  'Zo\xeb'", "  'MathBot'"}
    assert (odd, question) == (r"'Zo\xeb': '\x1b[2J'", r"'Zo\xeb': '6 * 7'")


# The bot that asks


async def next_question(member: Member) -> str:
    """Return what the student asks next."""
    body = await member.receive()
    assert body == said("MathStudent", body["message"])
    assert re.fullmatch(r"[0-9]{1,2} [-+*/] [0-9]{1,2}", body["message"])
    return str(body["message"])


async def test_asks_what_the_other_bot_answers(url: URL, join: Join, start_bot: StartBot) -> None:
    alice = await join(url.origin(), nick="Alice", room="math")
    await start_bot(math_client, "MathBot", alice)
    await start_bot(math_student, "MathStudent", alice)
    result = math_client.solve(await next_question(alice))
    assert await alice.receive() == said("MathBot", f"@MathStudent: {result}")


async def test_asks_again_at_every_interval(
    url: URL, join: Join, start_bot: StartBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(math_student, "INTERVAL", 0.001)
    alice = await join(url.origin(), nick="Alice", room="math")
    await start_bot(math_student, "MathStudent", alice)
    signs: set[str] = set()
    async with asyncio.timeout(TIMEOUT):
        while signs != set("+-*/"):
            signs.add((await next_question(alice)).split()[1])


async def test_laughs_only_when_a_user_vanishes(url: URL, join: Join, start_bot: StartBot) -> None:
    bob, carol, zoe, alice = [
        await join(url.origin(), nick=name, room="math") for name in ("Bob", "Carol", "Zoë", "A")
    ]
    await start_bot(math_student, "MathStudent", alice)
    await next_question(alice)
    await bob.leave()
    await carol.ask(action="join_room", room="physics")
    zoe.vanish()
    shames = [(body["user"], body["shame"]) for body in [await alice.receive() for _ in range(3)]]
    assert sorted(shames) == [("Bob", False), ("Carol", False), ("Zoë", True)]
    assert await alice.receive() == said("MathStudent", "Ha ha, Zoë left without a goodbye!")


@pytest.mark.parametrize("script", ["examples/math_student.py"])
async def test_does_not_share_its_name(url: URL, join: Join, run_script: RunScript) -> None:
    other = await join(url.origin(), nick="MathStudent", room="math")
    refusal = "ConnectionError: The server refuses: Nickname is already in use"
    assert await run_script(str(url)) == refusal
    assert [(await other.receive())["action"] for _ in range(2)] == ["joined", "left"]
