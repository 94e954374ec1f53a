"""The rooms against a model that has to agree with them whatever happens in which order; names, frames, the outbox."""

import asyncio
import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import WSMessage, WSMsgType
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import utils
from utils import InvalidRequest, Rooms, User


class FakeSocket:
    """As much of a client's WebSocket as the rooms use: it keeps what is sent."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []

    def send(self, data: bytes) -> None:
        self.bodies.append(json.loads(data[2:] if data[1] < 126 else data[4:]))


names = st.sampled_from(["amy", "bob", "BOB", "carol"])
rooms = st.sampled_from(["default", "math", "art"])
which = st.integers(0, 1_000)


class Chat(RuleBasedStateMachine):
    """Users come, rename, move, talk and go; the model is a list of [room, name, user]."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms: Rooms = defaultdict(dict)
        self.model: list[list[Any]] = []

    def is_free(self, room: str, name: str) -> bool:
        return not any(its_room == room and its_name.lower() == name.lower() for its_room, its_name, _ in self.model)

    def hears(self, room: str, skip: User, body: dict[str, Any]) -> None:
        """Let everyone in a room but one hear a body, and nobody anything else."""
        for its_room, _, user in self.model:
            if its_room == room and user is not skip:
                assert user.websocket.bodies.pop(0) == body
            assert user.websocket.bodies == []

    @rule()
    def connect(self) -> None:
        name = utils.pick_name(self.rooms)
        assert name not in [taken for _, taken, _ in self.model]
        user = User(self.rooms, cast(utils.ClientSocket, FakeSocket()), name)
        utils.enter(user)
        self.hears("default", user, {"action": "joined", "room": "default", "user": name})
        self.model.append(["default", name, user])

    @precondition(lambda self: self.model)
    @rule(number=which, nick=names)
    def rename(self, number: int, nick: str) -> None:
        entry = room, name, user = self.model[number % len(self.model)]
        if not self.is_free(room, nick):
            with pytest.raises(InvalidRequest):
                utils.change_nick(user, nick)
            return
        utils.change_nick(user, nick)
        entry[1] = nick
        self.hears(room, user, {"action": "nick_changed", "room": room, "from_user": name, "to_user": nick})

    @precondition(lambda self: self.model)
    @rule(number=which, new_room=rooms)
    def move(self, number: int, new_room: str) -> None:
        entry = room, name, user = self.model[number % len(self.model)]
        if not self.is_free(new_room, name):
            with pytest.raises(InvalidRequest):
                utils.change_room(user, new_room)
            return
        utils.change_room(user, new_room)
        entry[0] = None
        heard = {"left": (room, {"shame": False}), "joined": (new_room, {})}
        for its_room, _, other in self.model:
            for action, (place, more) in heard.items():
                if its_room == place:
                    assert other.websocket.bodies.pop(0) == {"action": action, "room": place, "user": name, **more}
        entry[0] = new_room

    @precondition(lambda self: self.model)
    @rule(number=which, shame=st.booleans())
    def leave(self, number: int, shame: bool) -> None:
        room, name, user = self.model.pop(number % len(self.model))
        utils.leave(user, shame)
        self.hears(room, user, {"action": "left", "room": room, "user": name, "shame": shame})

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        known = {(room, name): socket for room, users in self.rooms.items() for name, socket in users.items()}
        assert known == {(room, name): user.websocket for room, name, user in self.model}
        assert all(self.rooms.values()), "an empty room is left"
        assert all(utils.retrieve_users(self.rooms, room) == list(users) for room, users in self.rooms.items())

    @invariant()
    def nobody_hears_anything_else(self) -> None:
        assert not any(user.websocket.bodies for _, _, user in self.model)


TestChat = Chat.TestCase
TestChat.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, database=None)


@pytest.mark.parametrize("count", [0, 1, 9_000])
def test_random_name_is_free_in_every_room(count: int) -> None:
    socket = cast(utils.ClientSocket, None)
    rooms = defaultdict(dict, {"math": {f"user{number}": socket for number in range(1000, 1000 + count)}})
    name = utils.pick_name(rooms)
    assert name.lower() not in rooms["math"]
    assert name.removeprefix("User").isdecimal()


BAD_NAMES = ["", " ", " x", "x ", "n" * 33, "a\nb", "\x1b", "\x7f", "\u200b", "\u202e", "\ud800", "a\u00a0b"]
INVISIBLE = ["\u3164", "\u2800", "x\ufe0f", "\u115f", "x\U000e0100", "x\u034f"]


@pytest.mark.parametrize("text", ["x", "n" * 32, "a b", "é", "\N{GRINNING FACE}", "日本"])
def test_names(text: str) -> None:
    assert utils.is_name(text)


@pytest.mark.parametrize("text", BAD_NAMES + INVISIBLE)
def test_no_names(text: str) -> None:
    assert not utils.is_name(text)


@pytest.mark.parametrize("name", ["bob", "BOB", "\uff22\uff4f\uff42", "\N{MATHEMATICAL BOLD CAPITAL B}ob"])
def test_names_that_look_alike(name: str) -> None:
    assert utils.is_taken(name, ["Amy", "Bob"])
    assert utils.is_taken("Zo\u00eb", ["Zoe\u0308"])
    assert not utils.is_taken(name, ["Bobo", "B\u00f6b"])


@pytest.mark.parametrize("data", ["[]", "{", '{"action": "dance"}', '{"action": "set_nick"}'])
def test_invalid_request_names_the_action_where_there_is_one(data: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        utils.read_request(WSMessage(WSMsgType.TEXT, data, ""))
    assert caught.value.action == (json.loads(data)["action"] if "action" in data else None)


def test_action_with_several_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(utils.REQUESTS, "whisper", {"user": utils.NAME, "message": utils.TEXT})
    request = {"action": "whisper", "user": "Amy", "message": "psst", "more": 1}
    assert utils.read_request(WSMessage(WSMsgType.TEXT, json.dumps(request), "")) == request
    with pytest.raises(InvalidRequest, match="whisper needs the field message"):
        utils.read_request(WSMessage(WSMsgType.TEXT, json.dumps({**request, "message": ""}), ""))


def test_encode() -> None:
    assert utils.encode("é\ud800\x7f") == b'\x81\x0b"\xc3\xa9\\ud800\x7f"', "no more bytes than needed"
    for body in (float("inf"), float("nan"), [float("-inf")]):
        with pytest.raises(InvalidRequest):  # a browser could not read it
            utils.encode(body)


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, "8100"), (125, "817d"), (126, "817e007e"), (65535, "817effff"), (65536, "817f0000000000010000")],
)
def test_frame(size: int, head: str) -> None:
    assert utils.frame(b"x" * size) == bytes.fromhex(head) + b"x" * size
    assert utils.frame(b"x" * size, WSMsgType.PONG)[0] == 0x8A


class FakeTransport:
    """A connection that keeps what is written, takes nothing of it when it is told so, and may be closing."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.size = 0
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.closing = True


async def test_outbox(caplog: pytest.LogCaptureFixture) -> None:
    """All of a turn of the event loop is one write; a backlog that is too large ends the connection."""
    transport, app = FakeTransport(), dict[Any, Any]({utils.UNFLUSHED: []})
    websocket = utils.ClientSocket(cast(Any, SimpleNamespace(transport=transport, app=app, remote="x", path="/chat")))
    for turn in ([b"1", b"2", b"3"], [b"4"], [b"5", b"6"]):
        for data in turn:
            websocket.send(data)
        assert b"".join(turn) not in transport.writes
        await asyncio.sleep(0)
    assert transport.writes == [b"123", b"4", b"56"]
    for transport.size in (utils.MAX_BACKLOG, utils.MAX_BACKLOG + 1):
        assert not websocket.dropped
        websocket.send(b"7")
        await asyncio.sleep(0)
    assert websocket.dropped
    assert transport.closing
    assert caplog.messages == [f"Dropped x, of /chat, as too slow: {utils.MAX_BACKLOG + 1} bytes unsent"]
    websocket.send(b"nobody is told any more")
    await asyncio.sleep(0)
    assert transport.writes == [b"123", b"4", b"56", b"7", b"7"]
