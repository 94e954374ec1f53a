"""What the echo example sends and prints. How it ends is in test_ends.py."""

import pytest
from aiohttp import web

import client_echo_example
from tests.clients.conftest import Serve
from tests.helpers import TIMEOUT

ECHO = '{"echo": {"message": "Hello world!"}}'


async def test_sends_at_every_interval_and_shows_what_comes(
    serve_websocket: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def talk(websocket: web.WebSocketResponse) -> None:
        await websocket.send_str(ECHO)
        assert await websocket.receive_json(timeout=TIMEOUT) == {"message": "Hello world!"}
        await websocket.send_str("not JSON \x1b[2J\u202e é")
        await websocket.receive_json(timeout=TIMEOUT)
        await websocket.send_bytes(b"\xff\x00")

    monkeypatch.setattr(client_echo_example, "INTERVAL", 0.01)
    with pytest.raises(ConnectionError):
        await client_echo_example.main(await serve_websocket(talk))
    lines = capsys.readouterr().out.splitlines()
    sent, received = ([line for line in lines if line[0] == sign] for sign in "><")
    assert sent[:3] == ["> {'message': 'Hello world!'}"] * 3
    assert received == [f"< '{ECHO}'", r"< 'not JSON \x1b[2J\u202e \xe9'", r"< b'\xff\x00'"]
