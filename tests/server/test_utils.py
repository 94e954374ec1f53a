"""The rooms agree with a model, whatever happens in which order; and the outbox."""

import asyncio
import json
import random
from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
from aiohttp import WSMsgType
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

import utils
from utils import InvalidRequest, User


def receive_at_once(data: bytes, websockets: list[Any]) -> None:
    for websocket in websockets:
        websocket.received.append(json.loads(data[2:]))


class Rooms(RuleBasedStateMachine):
    """Users come, rename, move and leave. The model knows what each of them receives."""

    users = Bundle("users")

    def __init__(self) -> None:
        super().__init__()
        self.app: Any = {"websockets": defaultdict(dict), utils.NAMES: defaultdict(set)}
        self.model: list[Any] = []
        patch("utils.send", receive_at_once).start()

    def teardown(self) -> None:
        patch.stopall()

    def is_taken(self, room: str, name: str) -> bool:
        return any(user.room == room and user.name.lower() == name.lower() for user in self.model)

    def expect(self, user: Any, action: str, /, **fields: Any) -> None:
        for other in self.model:
            if other.room == user.room and other is not user:
                other.expected.append({"action": action, **fields})

    @rule(target=users)
    def connect(self) -> Any:
        socket: Any = SimpleNamespace(received=[], pay=lambda seconds: None)
        user = User(self.app, socket)
        assert not any(self.is_taken(room, user.name) for room in ("default", "math", "art"))
        user.enter()
        modelled = SimpleNamespace(user=user, room="default", name=user.name, expected=[])
        self.model.append(modelled)
        self.expect(modelled, "joined", room="default", user=user.name)
        return modelled

    @rule(user=users, nick=st.sampled_from(["amy", "bob", "BOB", "carol"]))
    def rename(self, user: Any, nick: str) -> None:
        if self.is_taken(user.room, nick):
            with pytest.raises(InvalidRequest):
                user.user.change_nick(nick)
        else:
            user.user.change_nick(nick)
            old, user.name = user.name, nick
            self.expect(user, "nick_changed", room=user.room, from_user=old, to_user=nick)

    @rule(user=users, room=st.sampled_from(["default", "math", "art"]))
    def move(self, user: Any, room: str) -> None:
        if self.is_taken(room, user.name):
            with pytest.raises(InvalidRequest):
                user.user.change_room(room)
        else:
            user.user.change_room(room)
            self.expect(user, "left", room=user.room, user=user.name, shame=False)
            user.room = room
            self.expect(user, "joined", room=room, user=user.name)

    @rule(user=consumes(users), shame=st.booleans())
    def leave(self, user: Any, shame: bool) -> None:
        user.user.leave(shame)
        self.expect(user, "left", room=user.room, user=user.name, shame=shame)
        self.model = [other for other in self.model if other is not user]

    @invariant()
    def model_agrees(self) -> None:
        rooms, names = self.app["websockets"], self.app[utils.NAMES]
        known = {(room, name): users[name] for room, users in rooms.items() for name in users}
        assert known == {(user.room, user.name): user.user.websocket for user in self.model}
        assert all(rooms.values()), "an empty room remains"
        places = {(name, room) for name, its_rooms in names.items() for room in its_rooms}
        assert places == {(user.name.lower(), user.room) for user in self.model}
        assert all(names.values()), "a name remains"
        assert all(user.user.websocket.received == user.expected for user in self.model)


TestRooms = Rooms.TestCase
TestRooms.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, database=None)


def test_random_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is free in every room, whatever its case."""
    numbers = iter([1111, 1111, 2222])
    monkeypatch.setattr(random, "randrange", lambda *_: next(numbers))
    app: Any = {"websockets": {}, utils.NAMES: {"user1111": {"math"}}}
    assert User(app, Mock()).name == "User2222"


def test_encode() -> None:
    expected = b'\x81\x0b"\xc3\xa9\\ud800\x7f"'
    assert utils.encode("é\ud800\x7f") == expected, "no more bytes than needed"
    for body in (float("inf"), float("nan"), [float("-inf")]):
        with pytest.raises(ValueError, match="not JSON compliant"):  # a browser could not read it
            utils.encode(body)


def test_frame() -> None:
    assert utils.frame(b"", WSMsgType.PONG) == bytes.fromhex("8a00")
    heads = {0: "8100", 125: "817d", 126: "817e007e", 65535: "817effff"}
    for size, head in (heads | {65536: "817f0000000000010000"}).items():
        assert utils.frame(b"x" * size) == bytes.fromhex(head) + b"x" * size


def mock_socket() -> tuple[Any, Any]:
    """Return a client's WebSocket, and its transport, which takes everything."""
    transport = Mock()
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 0
    transport.get_extra_info.return_value = "address"
    return utils.ClientSocket(Mock(transport=transport)), transport


def written(transport: Any) -> list[bytes]:
    return [call.args[0] for call in transport.write.call_args_list]


async def test_outbox(caplog: pytest.LogCaptureFixture) -> None:
    """One iteration of the event loop is one write; a backlog that is too large is the end."""
    websocket, transport = mock_socket()
    for iteration in (b"123", b"4"):
        for number in iteration:
            utils.send(bytes([number]), [websocket])
        assert iteration not in written(transport)
        await asyncio.sleep(0)
    assert written(transport) == [b"123", b"4"]
    transport.get_write_buffer_size.return_value = utils.MAX_BACKLOG
    utils.send(b"5", [websocket])
    await asyncio.sleep(0)
    assert not transport.abort.called
    transport.get_write_buffer_size.return_value += 1
    utils.send(b"6", [websocket])
    await asyncio.sleep(0)
    transport.abort.assert_called_once_with()
    assert caplog.messages == [f"Dropped address as too slow: {utils.MAX_BACKLOG + 1} bytes unsent"]
    transport.is_closing.return_value = True
    utils.send(b"7", [websocket])
    await asyncio.sleep(0)
    assert written(transport) == [b"123", b"4", b"5", b"6"]


async def test_write_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The other clients receive this message and the next one."""
    (first, _), (bad, bad_transport), (last, last_transport) = [mock_socket() for _ in range(3)]
    bad_transport.write.side_effect = ZeroDivisionError
    bad_transport.abort.side_effect = lambda: bad_transport.is_closing.configure_mock(
        return_value=True
    )
    for data in (b"1", b"2"):
        utils.send(data, [first, bad, last])
        await asyncio.sleep(0)
    assert written(last_transport) == [b"1", b"2"]
    bad_transport.abort.assert_called_once_with()
    assert caplog.text.count("Traceback") == caplog.text.count("ZeroDivisionError") == 1
