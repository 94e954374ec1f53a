"""The bot that answers sums and the one that asks. How they end is in test_ends.py."""

import asyncio
import importlib
from typing import Any

import pytest
from yarl import URL

from tests.helpers import TIMEOUT, Join, StartScript, said

math_client: Any = importlib.import_module("examples.math_client")
math_student: Any = importlib.import_module("examples.math_student")

SUMS = {
    "44 -14": "30",
    "+3 + +2": "5",
    "  7/2  ": "3.5",
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


def test_solves_one_sum_of_two_integers() -> None:
    assert {text: math_client.solve(text) for text in SUMS} == SUMS
    assert {text: math_client.solve(text) for text in NO_SUMS} == dict.fromkeys(NO_SUMS)


async def test_bot_that_answers(url: URL, join: Join, start_script: StartScript) -> None:
    """It takes the next name that is free, and prints the users and what is said."""
    names = ["Zoë", "MathBot", "MathBot2"]
    zoe, *_ = [await join(url, name, "math") for name in names]
    bot = await start_script("examples/math_client.py", "--url", url / "chat")
    lines = ["In the room are:", *(f"  {name!a}" for name in names)]
    assert [await bot.line() for _ in lines] == [f"{line}\n" for line in lines]
    assert (await bot.line()).startswith("  'User")
    while (await zoe.receive()).get("to_user") != "MathBot3":
        pass
    for text in ("What is 1 + 1? \x1b[2J é", "1 + 1"):
        await zoe.ask(action="chat_message", message=text)
    assert await zoe.receive() == said("MathBot3", "@Zoë: 2")
    assert await bot.line() == r"'Zo\xeb': 'What is 1 + 1? \x1b[2J \xe9'" + "\n"


async def test_bot_that_asks(url: URL, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks sums with all signs, laughs when a user vanishes, and does not share its name."""
    monkeypatch.setattr(math_student, "INTERVAL", 0.001)
    names = ("Zoë", "Bob", "Carol", "Åsa")
    zoe, bob, carol, asa = [await join(url, name, "math") for name in names]
    bot = asyncio.create_task(math_student.main(str(url / "chat")))
    while (await zoe.receive()).get("to_user") != "MathStudent":
        pass
    await bob.leave()
    await carol.send(action="join_room", room="physics")
    asa.vanish()
    laugh = "Ha ha, Åsa left without a goodbye!"
    texts: list[str] = []
    async with asyncio.timeout(TIMEOUT):
        while laugh not in texts or len(texts) < 100:
            texts += filter(None, [(await zoe.receive()).get("message")])
    texts.remove(laugh)
    assert all(map(math_client.solve, texts))
    assert {text.split()[1] for text in texts} == set("+-*/")
    with pytest.raises(ConnectionError, match="The server refuses: Nickname is already in use"):
        await math_student.main(str(url / "chat"))
    bot.cancel()
