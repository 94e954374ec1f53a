"""A client pays for what it sends, and for what that causes; nobody else waits."""

import asyncio
import time
from typing import Any

import pytest

import utils
from server import init_app
from tests.helpers import ConnectRaw, Join, RawClient, eventually


@pytest.mark.parametrize(
    "request_body",
    [
        {"action": "chat_message", "message": "x"},
        {"action": "set_nick", "nick": "Bobby"},
        {"action": "join_room", "room": "art"},
        {"action": "user_list", "room": "math"},
    ],
)
async def test_request_is_paid_for_by_its_deliveries(
    serve: Any, join: Join, monkeypatch: pytest.MonkeyPatch, request_body: dict[str, str]
) -> None:
    """Bob's next request waits. Amy's does not, though she is in the same room."""
    app = await init_app()
    url = await serve(app)
    bob, amy = await join(url, "Bob", "math"), await join(url, "Amy", "math")
    await bob.catch_up()
    account = app["websockets"]["math"]["Bob"]
    monkeypatch.setattr(utils, "DELIVERY_RATE", utils.MIN_COST / 100)  # 100 s for a delivery
    assert (await bob.ask(**request_body))["success"] is True
    assert account.paid_until > time.monotonic() + 90
    waiting = asyncio.create_task(bob.ask(action="user_list", room="empty"))
    await amy.catch_up()
    assert await amy.catch_up() == []
    assert not waiting.done()
    waiting.cancel()


async def test_fragments_without_end(serve: Any, join: Join, connect_raw: ConnectRaw) -> None:
    """They arrive as fast as the client can send, and others are served all the time."""
    url = await serve(await init_app())
    bob, raw = await join(url), await connect_raw(url)
    raw.writer.write(RawClient.frame(1, b"", first_bits=0))

    async def flood() -> None:
        while True:
            raw.writer.write(RawClient.frame(0, b"", first_bits=0) * 10_000)
            await raw.writer.drain()

    flooding = asyncio.create_task(flood())
    for _ in range(100):
        await bob.catch_up()
    assert not flooding.done()
    flooding.cancel()
    await eventually(flooding.done)
