"""The bot that asks. How it ends is in test_ends.py."""

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


@pytest.fixture
def script() -> str:
    return "examples/math_student.py"


async def next_question(member: Member) -> str:
    """Return what the student asks next."""
    body = await member.hear()
    assert body == said("MathStudent", body["message"])
    assert re.fullmatch(r"[0-9]{1,2} [-+*/] [0-9]{1,2}", body["message"])
    return str(body["message"])


async def test_asks_what_the_other_bot_answers(url: URL, join: Join, start_bot: StartBot) -> None:
    alice = await join(url.origin(), nick="Alice", room="math")
    await start_bot(math_client, "MathBot", alice)
    await start_bot(math_student, "MathStudent", alice)
    result = math_client.solve(await next_question(alice))
    assert await alice.hear() == said("MathBot", f"@MathStudent: {result}")


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
    shames = [(body["user"], body["shame"]) for body in [await alice.hear() for _ in range(3)]]
    assert sorted(shames) == [("Bob", False), ("Carol", False), ("Zoë", True)]
    assert await alice.hear() == said("MathStudent", "Ha ha, Zoë left without a goodbye!")


async def test_does_not_share_its_name(url: URL, join: Join, run_script: RunScript) -> None:
    other = await join(url.origin(), nick="MathStudent", room="math")
    refusal = "ConnectionError: The server refuses: Nickname is already in use"
    assert await run_script(str(url)) == refusal
    assert [(await other.hear())["action"] for _ in range(2)] == ["joined", "left"]
