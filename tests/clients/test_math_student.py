"""The bot that asks. How it ends is in test_clients.py."""

import asyncio
import importlib
import re
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer
from yarl import URL

from server import init_app
from tests.clients.test_ends import CLOSED, Output, RunMain, Serve, Talk, output, run_main, serve
from tests.helpers import TIMEOUT, Join, Member, joined, said

__all__ = ["output", "run_main", "serve"]  # the fixtures

math_student: Any = importlib.import_module("examples.math_student")

NEVER = 3600.0
# What no server should send, and what may not harm a client.
ODD_FRAMES = """\
[]; null; 1; "chat_message"; {}; {"success": true}; {"action": ["join_room"]}; {"success": "no", "message": "odd"}
{"action": "user_list", "success": true, "users": "odd"}; {"action": "user_list", "success": true, "users": {}}
{"action": "chat_message", "user": "odd", "message": ["1 + 1"]}; {"action": "chat_message", "user": "odd", "message": 2}
{"action": "left", "room": "math", "user": "odd", "shame": 1}; {"action": "left", "room": "art", "shame": true}
{"action": "left", "room": "art", "user": "odd", "shame": true}""".replace("\n", ";").split(";")


@asynccontextmanager
async def running(bot: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let a bot run, and then let it say goodbye."""
    task = asyncio.create_task(bot)
    yield
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def odd_chat(requests: list[Any], *frames: str) -> Talk:
    """Return a server's side: it sends odd values and some frames, and notes three requests before it leaves."""

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        for frame in [*ODD_FRAMES, *frames]:
            await websocket.send_str(frame)
        async for message in websocket:
            requests.append(message.json())
            if len(requests) == 3:
                await websocket.close()

    return talk


@pytest.fixture
def script() -> str:
    return "examples/math_student.py"


@pytest.fixture
async def url(aiohttp_server: AiohttpServer) -> URL:
    """The address of the chat."""
    return URL((await aiohttp_server(await init_app())).make_url("/chat"))


async def see_enter(member: Member, name: str) -> None:
    """Hear how a bot comes in and takes its name."""
    body = await member.hear()
    assert body == joined("math", body["user"])
    renamed = {"action": "nick_changed", "room": "math", "from_user": body["user"], "to_user": name}
    assert await member.hear() == renamed


async def hear_sum(member: Member) -> str:
    """Return the sum that the student asks next."""
    body = await member.hear()
    assert body == said("MathStudent", body["message"])
    assert re.fullmatch(r"[0-9]{1,2} [-+*/] [0-9]{1,2}", body["message"])
    return str(body["message"])


async def test_asks_at_once_and_again_at_every_interval(url: URL, join: Join) -> None:
    alice = await join(url.origin(), nick="Alice", room="math")
    async with running(math_student.run(url, 0.001)), asyncio.timeout(TIMEOUT):
        await see_enter(alice, "MathStudent")
        signs: set[str] = set()
        while signs != set("+-*/"):
            signs.add((await hear_sum(alice)).split()[1])


async def test_laughs_only_at_those_who_leave_without_a_goodbye(url: URL, join: Join) -> None:
    bob, carol, zoe, alice = [
        await join(url.origin(), nick=name, room="math") for name in ("Bob", "Carol", "Zoë", "A")
    ]
    async with running(math_student.run(url, NEVER)):
        await see_enter(alice, "MathStudent")
        await hear_sum(alice)
        await bob.leave()
        await carol.ask(action="join_room", room="physics")
        zoe.vanish()
        shames = [(body["user"], body["shame"]) for body in [await alice.hear() for _ in range(3)]]
        assert sorted(shames) == [("Bob", False), ("Carol", False), ("Zoë", True)]
        laugh = "Ha ha, Zoë left without a goodbye!"
        assert await alice.hear() == said("MathStudent", laugh)


async def test_does_not_share_its_name(url: URL, join: Join, run_main: RunMain) -> None:
    other = await join(url.origin(), nick="MathStudent", room="math")
    assert await run_main(str(url)) == "URL: the server refuses: 'Nickname is already in use'"
    assert [(await other.hear())["action"] for _ in range(2)] == ["joined", "left"]


async def test_odd_values(run_main: RunMain, serve: Serve, output: Output) -> None:
    requests: list[Any] = []
    frames = (
        '{"action": "set_nick", "success": true}',
        '{"action": "left", "room": "math", "user": 1, "shame": true}',
    )
    assert await run_main(await serve(odd_chat(requests, *frames))) == CLOSED
    assert [request["action"] for request in requests] == [
        "set_nick",
        "chat_message",
        "chat_message",
    ]
    assert requests[2]["message"] == "Ha ha, 1 left without a goodbye!"
    assert output() == "'odd': ['1 + 1']\n'odd': 2\n"


@pytest.mark.parametrize("interval", ["0", "nan"])
async def test_asks_for_an_interval_that_passes(
    run_main: RunMain, interval: str, capsys: Any
) -> None:
    assert await run_main("ws://localhost/chat", "--interval", interval) == "2"
    assert capsys.readouterr().err.endswith("the interval has to be more than 0 seconds\n")
