"""The echo example: what it sends and prints. How it ends is in test_clients.py."""

import asyncio

import pytest
from aiohttp import web

from tests.clients.test_ends import CLOSED, Output, RunMain, Serve, output, run_main, serve
from tests.helpers import TIMEOUT

__all__ = ["output", "run_main", "serve"]  # the fixtures

ECHO = """{"echo": {"message": "Hello world!"}}"""


@pytest.fixture
def script() -> str:
    return "client_echo_example.py"


async def test_sends_at_every_interval_and_shows_what_comes(
    run_main: RunMain, serve: Serve, output: Output
) -> None:
    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        assert ">" in output()  # it has been flushed
        await websocket.send_str(ECHO)
        assert await websocket.receive_json(timeout=TIMEOUT) == {"message": "Hello world!"}
        await websocket.send_str("not JSON \x1b[2J\u202e é")
        await websocket.receive_json(timeout=TIMEOUT)
        await websocket.send_bytes(b"\xff\x00")
        await websocket.close()

    assert await run_main(await serve(talk), INTERVAL=0.01) == CLOSED
    lines = output().splitlines()
    assert [line for line in lines if line[0] == ">"][:3] == ["> {'message': 'Hello world!'}"] * 3
    echoes = [f"< '{ECHO}'", r"< 'not JSON \x1b[2J\u202e \xe9'", r"< b'\xff\x00'"]
    assert [line for line in lines if line[0] != ">"][1:] == echoes  # after the greeting
