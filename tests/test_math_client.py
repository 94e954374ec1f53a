"""The bot that answers: as a process of its own, in a room of the real server."""

import runpy
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_aiohttp import AiohttpServer

from server import init_app
from tests.conftest import ROOT, Member, Server
from tests.test_math_student import NEVER, Bot, bots, odd_chat, see_enter

Join = Callable[..., Awaitable[Member]]

solve: Callable[[str], str | None] = runpy.run_path(str(ROOT / "examples/math_client.py"))["solve"]

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
NO_SUMS = [
    " ",
    "2",
    "2 + two",
    "9**9**9",
    "9 ** 9",
    "9 // 9",
    "9 % 9",
    "1 + 1; quit()",
    "1 + 1 + 1",
    "1 + 1?",
    "what is 1 + 1",
    "(1 + 1)",
    "1 1",
    "1 +",
    "+ 1",
    "1 + - 1",
    "1 - --1",
    "1.0 + 1",
    "1e3 + 1",
    "0x10 + 1",
    "1_000 + 1",
    "1\n+\n1",
    "1 + 1\n",
    "1 +\u00a01",
    "٣ + ٣",
    "² + 1",
    "１ + 1",  # noqa: RUF001
    "1 \u2212 1",
    "\ud800 + 1",
    "9" * 51 + " + 1",
    "1 + " + "9" * 51,
    "9" * 5000 + " * " + "9" * 5000,
    "@Bob: 2",
    "Bob: 1 + 1",
    "__import__('os').getpid()",
]


@pytest.fixture
def start_client(tmp_path: Path) -> Iterator[Callable[..., Bot]]:
    """Start clients with `start_client(url, *options)`; they are gone after the test."""
    with bots("math_client.py", tmp_path / "clients") as start:
        yield start


@pytest.fixture
async def chat(aiohttp_server: AiohttpServer) -> str:
    """The address of the real server, here not as a process of its own, which starts faster."""
    return str((await aiohttp_server(await init_app())).make_url("/"))


def say(user: str, message: str) -> dict[str, Any]:
    """Return the body that tells the others what somebody said."""
    return {"action": "chat_message", "message": message, "user": user}


def test_solves_one_sum_of_two_integers() -> None:
    assert {text: solve(text) for text in SUMS} == SUMS
    assert {text: solve(text) for text in (*NO_SUMS, "")} == dict.fromkeys((*NO_SUMS, ""))


async def test_answers_sums_and_nothing_else(server: Server, join: Join, start_client: Callable[..., Bot]) -> None:
    alice = await join(server.url, nick="Alice", room="math")
    client = start_client(server.url)
    await see_enter(alice, "MathBot")
    for text, result in SUMS.items():
        await alice.ask(action="chat_message", message=text)
        assert await alice.hear() == say("MathBot", f"@Alice: {result}")
    for text in NO_SUMS:
        confirmation = await alice.ask(action="chat_message", message=text)
        assert confirmation == {"action": "chat_message", "success": True, "message": text}
    # An answer to one of these would come before this one.
    await alice.ask(action="chat_message", message="6 * 7")
    assert await alice.hear() == say("MathBot", "@Alice: 42")
    await client.prints("Alice: 6 * 7\n> @Alice: 42\n")


async def test_answers_the_student(server: Server, start_client: Callable[..., Bot], tmp_path: Path) -> None:
    client = start_client(server.url)
    await client.prints("MathBot\n")
    with bots("math_student.py", tmp_path / "students") as start_student:
        student = start_student(server.url, *NEVER)
        await student.prints("MathBot: @MathStudent: ")
        await client.prints("> @MathStudent: ")
    question = student.output.splitlines()[0].removeprefix("MathStudent: ")
    answer = f"@MathStudent: {solve(question)}"
    assert student.output == f"MathStudent: {question}\nMathBot: {answer}\n"
    assert client.output == f"In the room are:\n  MathBot\nMathStudent: {question}\n> {answer}\n"


async def test_takes_the_next_name_that_is_free(chat: str, join: Join, start_client: Callable[..., Bot]) -> None:
    longest = "L" * 32
    for nick in ("MathBot", *(f"MathBot{number}" for number in range(2, 10)), longest):
        await join(chat, nick=nick, room="math")
    alice = await join(chat, nick="Alice", room="math")
    nicks = ["MathBot10", "L" * 31 + "2"]
    start_client(chat)
    await see_enter(alice, nicks[0])
    start_client(chat, "--nick", longest)
    await see_enter(alice, nicks[1])

    # Both answer Alice, and neither answers the other.
    for text, result in (("1 + 1", "2"), ("2 + 2", "4"), ("3 + 3", "6")):
        await alice.ask(action="chat_message", message=text)
        answers = [await alice.hear(), await alice.hear()]
        assert sorted(answers, key=lambda body: nicks.index(body["user"])) == [
            say(nick, f"@Alice: {result}") for nick in nicks
        ]


async def test_prints_who_is_there_and_what_they_say_but_lets_nobody_drive_the_terminal(
    chat: str, join: Join, start_client: Callable[..., Bot]
) -> None:
    zoe = await join(chat, nick="Zoë", room="math")
    clients = [start_client(chat)]
    await see_enter(zoe, "MathBot")
    clients.append(start_client(chat, shell="PYTHONIOENCODING=ascii"))
    await see_enter(zoe, "MathBot2")
    for client in clients:
        await client.prints("In the room are:")  # from here on it prints what is said
    await zoe.ask(action="chat_message", message="\x1b[2J\x9b2J\u202eevil\n> @Zoë: \ud800 é")
    await zoe.ask(action="chat_message", message="The end.")
    for client in clients:
        await client.prints("The end.\n")
    assert clients[0].output.splitlines() == [
        "In the room are:",
        "  Zoë",
        "  MathBot",
        r"Zoë: \x1b[2J\x9b2J\u202eevil\n> @Zoë: \ud800 é",
        "Zoë: The end.",
    ]
    assert clients[1].output.splitlines() == [
        "In the room are:",
        r"  Zo\xeb",
        "  MathBot",
        "  MathBot2",
        r"Zo\xeb: \x1b[2J\x9b2J\u202eevil\n> @Zo\xeb: \ud800 \xe9",
        r"Zo\xeb: The end.",
    ]


async def test_says_goodbye_on_ctrl_c_and_sigterm(chat: str, join: Join, start_client: Callable[..., Bot]) -> None:
    alice = await join(chat, nick="Alice", room="math")
    # A shell script lets what it runs in the background ignore Ctrl+C; there, too, SIGTERM has to end it.
    signals = [(signal.SIGINT, ""), (signal.SIGTERM, "trap '' INT;")]
    clients = [start_client(chat, "--nick", number.name, shell=shell) for number, shell in signals]
    heard = [await alice.hear() for _ in range(4)]
    assert sorted(body["action"] for body in heard) == ["joined", "joined", "nick_changed", "nick_changed"]
    for client, (number, _) in zip(clients, signals, strict=True):
        client.process.send_signal(number)
        assert await alice.hear() == {"action": "left", "room": "math", "user": number.name, "shame": False}
        assert await client.ends() == 0
        assert client.errors == ""


async def test_ends_with_the_server(server: Server, start_client: Callable[..., Bot]) -> None:
    client = start_client(server.url)
    await client.prints("MathBot\n")
    with server.process:  # closes the pipe
        server.process.kill()
    assert await client.ends() == 1
    assert client.errors == f"ws://127.0.0.1:{server.port}/chat: the server closed the connection.\n"


async def test_skips_odd_frames(aiohttp_server: AiohttpServer, start_client: Callable[..., Bot]) -> None:
    received: list[Any] = []
    server = await aiohttp_server(odd_chat(received, say("\x1b[2JBob", "6 * 7")))
    client = start_client(str(server.make_url("/")))
    assert await client.ends() == 1
    assert client.errors == f"ws://127.0.0.1:{server.port}/chat: the server closed the connection.\n"
    assert received == [
        {"action": "join_room", "room": "math"},
        {"action": "set_nick", "nick": "MathBot"},
        {"action": "user_list", "room": "math"},
        {"action": "chat_message", "message": "@\x1b[2JBob: 42"},
    ]
    assert client.output.splitlines() == [
        "In the room are:",
        r"  \x1b[2J",
        "  7",
        "  None",
        r"\x1b[2JBob: 6 * 7",
        r"> @\x1b[2JBob: 42",
    ]


@pytest.mark.parametrize("action", ["join_room", "set_nick"])
async def test_says_that_it_may_not_enter(
    action: str, aiohttp_server: AiohttpServer, start_client: Callable[..., Bot]
) -> None:
    server = await aiohttp_server(odd_chat([], {}, refused=action))
    client = start_client(str(server.make_url("/")))
    assert await client.ends() == 1
    assert client.errors == f"ws://127.0.0.1:{server.port}/chat: No \\x1b[2J.\n"
