"""The bot that answers. How it ends is in test_clients.py."""

import importlib
import json
from typing import Any

import pytest
from yarl import URL

from tests.clients.test_ends import CLOSED, Output, RunMain, Serve, output, run_main, serve
from tests.clients.test_math_student import (
    NEVER,
    hear_sum,
    math_student,
    odd_chat,
    running,
    see_enter,
    url,
)
from tests.helpers import Join, said, succeeded

__all__ = ["output", "run_main", "serve", "url"]  # the fixtures

math_client: Any = importlib.import_module("examples.math_client")

SORRY = "Sorry, nobody can divide by zero."
SUMS = {
    "1 + 1": "2",
    "44 -14": "30",
    "-3 * 2": "-6",
    "3--2": "5",
    "+3 + +2": "5",
    "  7/2  ": "3.5",
    "-8 / 2": "-4",
    "0 / -5": "0",
    "007 + 1": "8",
    "300000000000000000003 / -3": "-100000000000000000001",
    "9" * 50 + " * " + "9" * 50: "9" * 49 + "8" + "0" * 49 + "1",
    "9" * 50 + " / 2": "5e+49",
    "2 / " + "9" * 50: "2e-50",
    "0 / -0": SORRY,
}
NO_SUMS = (  # each between two bars
    "| |2|2 + two|9**9**9|9 ** 9|9 // 9|9 % 9|1 + 1; quit()|1 + 1 + 1|1 + 1?|what is 1 + 1|(1 + 1)|1 1|1 +|+ 1|1 + - 1"
    "|1 - --1|1.0 + 1|1e3 + 1|0x10 + 1|1_000 + 1|1\n+\n1|1 + 1\n|1 +\u00a01|\u0663 + 1|\u00b2 + 1|1 + \uff11"
    f"|1 \u2212 1|\ud800 + 1|{'9' * 51} + 1|1 + {'9' * 51}|{'9' * 5000} * {'9' * 5000}|@Bob: 2|Bob: 1 + 1"
    "|__import__('os').getpid()"
).split("|")


@pytest.fixture
def script() -> str:
    return "examples/math_client.py"


def test_solves_one_sum_of_two_integers() -> None:
    assert {text: math_client.solve(text) for text in SUMS} == SUMS
    assert {text: math_client.solve(text) for text in NO_SUMS} == dict.fromkeys(NO_SUMS)


async def test_answers_the_student(url: URL, join: Join) -> None:
    alice = await join(url.origin(), nick="Alice", room="math")
    async with running(math_client.run(url, "MathBot")):
        await see_enter(alice, "MathBot")
        async with running(math_student.run(url, NEVER)):
            await see_enter(alice, "MathStudent")
            result = math_client.solve(await hear_sum(alice))
            assert await alice.hear() == said("MathBot", f"@MathStudent: {result}")


async def test_takes_the_next_name_that_is_free(url: URL, join: Join) -> None:
    for nick in ("MathBot", *(f"MathBot{number}" for number in range(2, 10)), "L" * 32):
        await join(url.origin(), nick=nick, room="math")
    alice = await join(url.origin(), nick="Alice", room="math")
    async with running(math_client.run(url, "MathBot")):
        await see_enter(alice, "MathBot10")
        async with running(math_client.run(url, "L" * 32)):
            await see_enter(alice, "L" * 31 + "2")
            await alice.ask(action="chat_message", message="What is 1 + 1?")
            await alice.ask(action="chat_message", message="1 + 1")
            heard = [
                await alice.hear() for _ in range(2)
            ]  # both answer Alice's sum, and neither answers the other
            assert sorted(body["user"] for body in heard) == ["L" * 31 + "2", "MathBot10"]
            assert {body["message"] for body in heard} == {"@Alice: 2"}
            assert await alice.catch_up() == []


async def test_odd_values(run_main: RunMain, serve: Serve, output: Output) -> None:
    requests: list[Any] = []
    users = {"action": "user_list", "success": True, "users": ["\x1b[2Jé", 7, None]}
    frames = [{"action": "set_nick", "success": True}, users, said("\x1b[2JBobé", "6 * 7")]
    frames.append(succeeded("chat_message", "\x1bé"))
    assert (
        await run_main(await serve(odd_chat(requests, *map(json.dumps, frames))), "--nick", "Euler")
        == CLOSED
    )
    assert requests == [
        {"action": "set_nick", "nick": "Euler"},
        {"action": "user_list", "room": "math"},
        {"action": "chat_message", "message": "@\x1b[2JBobé: 42"},
    ]
    lines = [
        "In the room are:",
        r"  '\x1b[2J\xe9'",
        "  7",
        "  None",
        r"'\x1b[2JBob\xe9': '6 * 7'",
        r"> '\x1b\xe9'",
    ]
    assert output().splitlines() == lines


@pytest.mark.parametrize("script", ["examples/math_client.py", "examples/math_student.py"])
@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (
            '{"echo": {"action": "join_room", "room": "math"}}',
            "this is not a chat: /echo instead of /chat",
        ),
        (
            '{"action": "set_nick", "success": false, "message": "No\\u001b\\u00e9"}',
            r"the server refuses: 'No\x1b\xe9'",
        ),
        ("not JSON", "this is not a chat: Expecting value"),
        ("[" * 100_000, "this is not a chat: maximum recursion"),
    ],
)
async def test_what_is_no_chat(run_main: RunMain, serve: Serve, frame: str, problem: str) -> None:
    assert (await run_main(await serve(odd_chat([], frame)))).startswith(f"URL: {problem}")
