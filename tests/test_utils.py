"""The functions that work on the rooms: a model of ten lines must agree with them, whatever happens in which order."""

import json
from collections import defaultdict
from typing import Any, cast

import pytest
from aiohttp import WSMessage, WSMsgType
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import utils
from utils import BadRequest, Rooms


class FakeTransport:
    """A connection that keeps what is sent, unless it is gone."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.size = 0
        self.gone = False

    def is_closing(self) -> bool:
        return self.gone

    def write(self, data: bytes) -> None:
        assert not self.gone
        self.bodies.append(json.loads(data[2:] if data[1] < 126 else data[4:]))

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.gone = True


class FakeSocket:
    """As much of a WebSocket as the functions use."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.dropped = 0


names = st.sampled_from(["amy", "bob", "carol"])
rooms = st.sampled_from(["default", "math", "art"])
which = st.integers(0, 1_000)


class Chat(RuleBasedStateMachine):
    """Users come, rename, move, talk and go; the model is a list of (room, name, socket)."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms: Rooms = defaultdict(dict)
        self.model: list[tuple[str, str, FakeSocket]] = []

    def pick(self, number: int) -> tuple[str, str, FakeSocket]:
        return self.model[number % len(self.model)]

    def hears(self, room: str, skip: FakeSocket, body: dict[str, Any]) -> None:
        """Let everyone in a room but one hear a body, and then nobody anything else."""
        for member_room, _, socket in self.model:
            if member_room == room and socket is not skip and not socket.transport.gone:
                assert socket.transport.bodies.pop(0) == body

    @rule()
    def connect(self) -> None:
        name = utils.pick_name(self.rooms["default"])
        assert ("default", name) not in [(room, taken) for room, taken, _ in self.model]
        socket = FakeSocket()
        self.rooms["default"][name] = cast(utils.ClientSocket, socket)
        self.model.append(("default", name, socket))

    @precondition(lambda self: self.model)
    @rule(number=which, nick=names)
    def rename(self, number: int, nick: str) -> None:
        room, user, socket = self.pick(number)
        free = all((room, nick) != (taken_room, taken) for taken_room, taken, _ in self.model)
        assert utils.change_nick(self.rooms, room, user, nick) is free
        if free:
            self.model[self.model.index((room, user, socket))] = (room, nick, socket)
            body = {"action": "nick_changed", "room": room, "from_user": user, "to_user": nick}
            self.hears(room, socket, body)

    @precondition(lambda self: self.model)
    @rule(number=which, new_room=rooms)
    def move(self, number: int, new_room: str) -> None:
        room, user, socket = self.pick(number)
        free = all((new_room, user) != (taken_room, taken) for taken_room, taken, _ in self.model)
        assert utils.change_room(self.rooms, room, user, new_room) is free
        if free:
            self.model.remove((room, user, socket))
            self.hears(room, socket, {"action": "left", "room": room, "user": user, "shame": False})
            self.model.append((new_room, user, socket))
            self.hears(new_room, socket, {"action": "joined", "room": new_room, "user": user})

    @precondition(lambda self: self.model)
    @rule(number=which, text=st.text())
    def talk(self, number: int, text: str) -> None:
        room, user, socket = self.pick(number)
        body = {"action": "chat_message", "message": text, "user": user}
        utils.broadcast(self.rooms, room, body, skip=cast(utils.ClientSocket, socket))
        self.hears(room, socket, body)

    @rule(room=rooms | st.just("a room that nobody is in"))
    def ask(self, room: str) -> None:
        listed = utils.retrieve_users(self.rooms, room)
        assert sorted(listed) == sorted(user for its_room, user, _ in self.model if its_room == room)

    @precondition(lambda self: self.model)
    @rule(number=which)
    def break_off(self, number: int) -> None:
        """The client is gone, but its view has not noticed yet."""
        self.pick(number)[2].transport.gone = True

    @precondition(lambda self: self.model)
    @rule(number=which)
    def leave(self, number: int) -> None:
        room, user, socket = self.pick(number)
        utils.remove_user(self.rooms, room, user)
        self.model.remove((room, user, socket))

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        known: list[Any] = [
            (room, user, socket) for room, users in self.rooms.items() for user, socket in users.items()
        ]
        assert sorted(known, key=lambda entry: entry[:2]) == sorted(self.model, key=lambda entry: entry[:2])
        assert all(self.rooms.values()), "an empty room is left"

    @invariant()
    def nobody_hears_anything_else(self) -> None:
        assert not any(socket.transport.bodies for _, _, socket in self.model)


TestChat = Chat.TestCase
TestChat.settings = settings(max_examples=100, stateful_step_count=30, deadline=None, database=None)


@pytest.mark.parametrize("count", [0, 1, 9_000, 20_000])
def test_pick_name_however_many_are_taken(count: int) -> None:
    taken = {f"User{number}" for number in range(1000, 1000 + count)}
    name = utils.pick_name(taken)
    assert name not in taken
    assert name.startswith("User")
    assert name.removeprefix("User").isdecimal()


@pytest.mark.parametrize(
    ("text", "good"),
    [("x", True), ("n" * 32, True), ("a b", True), ("é", True), ("\N{GRINNING FACE}", True)]
    + [(text, False) for text in ("", " ", " x", "x ", "n" * 33, "a\nb", "\x1b", "\x7f", "\u200b", "\u202e", "\ud800")],
)
def test_is_name(text: str, good: bool) -> None:
    assert utils.is_name(text) is good


def test_read_request_keeps_what_else_it_holds() -> None:
    text = '{"action": "set_nick", "nick": "Bob", "more": 1}'
    assert utils.read_request(WSMessage(WSMsgType.TEXT, text, "")) == json.loads(text)


@pytest.mark.parametrize("data", ["[]", "{", '{"action": "dance"}', '{"action": "set_nick"}'])
def test_read_request_names_the_action_where_there_is_one(data: str) -> None:
    with pytest.raises(BadRequest) as caught:
        utils.read_request(WSMessage(WSMsgType.TEXT, data, ""))
    assert caught.value.action == (json.loads(data)["action"] if data != "{" and data != "[]" else None)


def test_encode_refuses_what_a_browser_could_not_read() -> None:
    for body in (float("inf"), float("nan"), [float("-inf")]):
        with pytest.raises(BadRequest):
            utils.encode(body)
    assert utils.encode("é\ud800") == b'\x81\x0e"\\u00e9\\ud800"'


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, "8100"), (125, "817d"), (126, "817e007e"), (65535, "817effff"), (65536, "817f0000000000010000")],
)
def test_frame(size: int, head: str) -> None:
    assert utils.frame(b"x" * size) == bytes.fromhex(head) + b"x" * size
    assert utils.frame(b"x" * size, WSMsgType.PONG)[0] == 0x8A


def test_client_with_too_large_a_backlog_is_dropped_and_told_nothing_more() -> None:
    socket = FakeSocket()
    websocket = cast(utils.ClientSocket, socket)
    socket.transport.size = utils.MAX_BACKLOG
    utils.send(websocket, utils.encode(1))
    assert (socket.transport.gone, socket.dropped) == (False, 0)
    socket.transport.size += 1
    utils.send(websocket, utils.encode(2))
    assert (socket.transport.gone, socket.dropped) == (True, utils.MAX_BACKLOG + 1)
    utils.send(websocket, utils.encode(3))
    assert socket.transport.bodies == [1, 2]
