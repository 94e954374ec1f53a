"""The bot that answers. How it ends is in test_clients.py."""

import importlib
import json
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pytest_aiohttp import AiohttpServer
from yarl import URL

from tests.conftest import Script
from tests.test_math_student import NEVER, Join, fails, hear_sum, math_student, odd_chat, running, see_enter, url

__all__ = ["url"]  # the fixture

math_client: Any = importlib.import_module("examples.math_client")

SORRY = "Sorry, nobody can divide by zero."
SUMS = {
    "1 + 1": "2",
    "44 -14": "30",
    "-3 * 2": "-6",
    "3 - -2": "5",
    "3--2": "5",
    "+3 + +2": "5",
    "  7/2  ": "3.5",
    "10 / 5": "2",
    "10 / 4": "2.5",
    "-7 / 2": "-3.5",
    "-8 / 2": "-4",
    "7 / -7": "-1",
    "0 / 5": "0",
    "0 / -5": "0",
    "-0 * 5": "0",
    "1 / 3": "0.3333333333333333",
    "007 + 1": "8",
    "100000000000000000001 / 1": "100000000000000000001",
    "300000000000000000003 / -3": "-100000000000000000001",
    "99999999999999999999 + 1": "100000000000000000000",
    "9" * 50 + " * " + "9" * 50: "9" * 49 + "8" + "0" * 49 + "1",
    "9" * 50 + " / 2": "5e+49",
    "2 / " + "9" * 50: "2e-50",
    "1 / 0": SORRY,
    "0 / -0": SORRY,
}
NO_SUMS = (  # each between two bars
    "| |2|2 + two|9**9**9|9 ** 9|9 // 9|9 % 9|1 + 1; quit()|1 + 1 + 1|1 + 1?|what is 1 + 1|(1 + 1)|1 1|1 +|+ 1|1 + - 1"
    "|1 - --1|1.0 + 1|1e3 + 1|0x10 + 1|1_000 + 1|1\n+\n1|1 + 1\n|1 +\u00a01|\u0663 + \u0663|\u00b2 + 1|\uff11 + 1"
    f"|1 \u2212 1|\ud800 + 1|{'9' * 51} + 1|1 + {'9' * 51}|{'9' * 5000} * {'9' * 5000}|@Bob: 2|Bob: 1 + 1"
    "|__import__('os').getpid()"
).split("|")


def say(user: str, message: str) -> dict[str, Any]:
    """Return the body that tells the others what somebody said."""
    return {"action": "chat_message", "message": message, "user": user}


def test_solves_one_sum_of_two_integers() -> None:
    assert {text: math_client.solve(text) for text in SUMS} == SUMS
    assert {text: math_client.solve(text) for text in NO_SUMS} == dict.fromkeys(NO_SUMS)


async def test_as_a_process(url: URL, join: Join, start_script: Callable[..., Awaitable[Script]]) -> None:
    zoe = await join(url.origin(), nick="Zoë", room="math")
    client = await start_script("examples/math_client.py", "--url", url)
    await see_enter(zoe, "MathBot")
    assert [await client.line() for _ in range(3)] == ["In the room are:\n", "  'Zo\\xeb'\n", "  'MathBot'\n"]
    await zoe.ask(action="chat_message", message="\x1b[2J\x9b\u202e\n\ud800 é")
    assert await client.line() == r"'Zo\xeb': '\x1b[2J\x9b\u202e\n\ud800 \xe9'" + "\n"
    await zoe.ask(action="chat_message", message="6 * 7")
    assert [await client.line() for _ in range(2)] == ["'Zo\\xeb': '6 * 7'\n", "> '@Zo\\xeb: 42'\n"]
    assert await zoe.hear() == say("MathBot", "@Zoë: 42")
    client.process.send_signal(signal.SIGINT)
    assert await zoe.hear() == {"action": "left", "room": "math", "user": "MathBot", "shame": False}
    assert await client.end() == (0, "", "")


async def test_answers_sums_and_nothing_else(url: URL, join: Join) -> None:
    alice = await join(url.origin(), nick="Alice", room="math")
    async with running(math_client.run(url, "MathBot")):
        await see_enter(alice, "MathBot")
        for text, result in SUMS.items():
            await alice.ask(action="chat_message", message=text)
            assert await alice.hear() == say("MathBot", f"@Alice: {result}")
        for text in filter(None, NO_SUMS):
            confirmation = await alice.ask(action="chat_message", message=text)
            assert confirmation == {"action": "chat_message", "success": True, "message": text}
        await alice.ask(action="chat_message", message="6 * 7")  # a result of those would come before this one
        assert await alice.hear() == say("MathBot", "@Alice: 42")


async def test_answers_the_student(url: URL, join: Join) -> None:
    alice = await join(url.origin(), nick="Alice", room="math")
    async with running(math_client.run(url, "MathBot")):
        await see_enter(alice, "MathBot")
        async with running(math_student.run(url, NEVER)):
            await see_enter(alice, "MathStudent")
            result = math_client.solve(await hear_sum(alice))
            assert await alice.hear() == say("MathBot", f"@MathStudent: {result}")


async def test_takes_the_next_name_that_is_free(url: URL, join: Join) -> None:
    for nick in ("MathBot", *(f"MathBot{number}" for number in range(2, 10)), "L" * 32):
        await join(url.origin(), nick=nick, room="math")
    alice = await join(url.origin(), nick="Alice", room="math")
    async with running(math_client.run(url, "MathBot")):
        await see_enter(alice, "MathBot10")
        async with running(math_client.run(url, "L" * 32)):
            await see_enter(alice, "L" * 31 + "2")
            await alice.ask(action="chat_message", message="1 + 1")
            heard = [await alice.hear() for _ in range(2)]  # both answer Alice, and neither answers the other
            assert sorted(body["user"] for body in heard) == ["L" * 31 + "2", "MathBot10"]
            assert await alice.catch_up() == []


async def test_odd_values(aiohttp_server: AiohttpServer, capsys: pytest.CaptureFixture[str]) -> None:
    requests: list[Any] = []
    users = {"action": "user_list", "success": True, "users": ["\x1b[2J", 7, None]}
    frames = [{"action": "set_nick", "success": True}, users, say("\x1b[2JBob", "6 * 7")]
    await math_client.run(await odd_chat(aiohttp_server, requests, *map(json.dumps, frames)), "MathBot")
    assert [request["action"] for request in requests] == ["join_room", "set_nick", "user_list", "chat_message"]
    assert requests[3]["message"] == "@\x1b[2JBob: 42"
    output = capsys.readouterr().out
    assert output == "In the room are:\n  '\\x1b[2J'\n  7\n  None\n'\\x1b[2JBob': '6 * 7'\n"


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        ('{"echo": {"action": "join_room", "room": "math"}}', "/echo instead of /chat"),
        ('{"action": "join_room", "success": false, "message": "No \\u001b[2J."}', r"'No \x1b[2J.'"),
        ("not JSON", "Expecting value"),
        ("[" * 100_000, "recursion"),
    ],
)
@pytest.mark.parametrize("bot", [(math_client.run, "MathBot"), (math_student.run, NEVER)])
async def test_what_is_no_chat(aiohttp_server: AiohttpServer, bot: Any, frame: str, problem: str) -> None:
    run, argument = bot
    assert problem in str(await fails(run(await odd_chat(aiohttp_server, [], frame), argument)))
