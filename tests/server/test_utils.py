"""The rooms against a model that has to agree with them whatever happens in which order; frames, and the outbox."""

import asyncio
import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import WSMessage, WSMsgType
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

import utils
from utils import InvalidRequest, User


class Chat(RuleBasedStateMachine):
    """Users come, rename, move, talk and go; the model knows each one's room and name, and what it was told."""

    members = Bundle("members")

    def __init__(self) -> None:
        super().__init__()
        self.rooms: utils.Rooms = defaultdict(dict)
        self.model: list[Any] = []

    def is_taken(self, room: str, name: str) -> bool:
        return any(
            member.room == room and member.name.lower() == name.lower() for member in self.model
        )

    def tell_others(self, member: Any, action: str, **fields: Any) -> None:
        for other in self.model:
            if other.room == member.room and other is not member:
                other.told.append({"action": action, **fields})

    @rule(target=members)
    def connect(self) -> Any:
        name = utils.pick_name(self.rooms)
        assert not any(self.is_taken(room, name) for room in self.rooms)
        heard: list[Any] = []
        socket: Any = SimpleNamespace(send=lambda frame: heard.append(json.loads(frame[2:])))
        member = SimpleNamespace(
            user=User(self.rooms, socket, name), room="default", name=name, heard=heard, told=[]
        )
        utils.enter(member.user)
        self.model.append(member)
        self.tell_others(member, "joined", room="default", user=name)
        return member

    @rule(member=members, nick=st.sampled_from(["amy", "bob", "BOB", "carol"]))
    def rename(self, member: Any, nick: str) -> None:
        if self.is_taken(member.room, nick):
            with pytest.raises(InvalidRequest):
                utils.change_nick(member.user, nick)
        else:
            utils.change_nick(member.user, nick)
            self.tell_others(
                member, "nick_changed", room=member.room, from_user=member.name, to_user=nick
            )
            member.name = nick

    @rule(member=members, room=st.sampled_from(["default", "math", "art"]))
    def move(self, member: Any, room: str) -> None:
        if self.is_taken(room, member.name):
            with pytest.raises(InvalidRequest):
                utils.change_room(member.user, room)
        else:
            utils.change_room(member.user, room)
            self.tell_others(member, "left", room=member.room, user=member.name, shame=False)
            member.room = room
            self.tell_others(member, "joined", room=room, user=member.name)

    @rule(member=consumes(members), shame=st.booleans())
    def leave(self, member: Any, shame: bool) -> None:
        utils.leave(member.user, shame)
        self.tell_others(member, "left", room=member.room, user=member.name, shame=shame)
        self.model = [other for other in self.model if other is not member]

    @invariant()
    def model_agrees(self) -> None:
        known = {
            (room, name): socket
            for room, users in self.rooms.items()
            for name, socket in users.items()
        }
        assert known == {(member.room, member.name): member.user.websocket for member in self.model}
        assert all(self.rooms.values()), "an empty room is left"
        assert all(
            utils.retrieve_users(self.rooms, room) == list(users)
            for room, users in self.rooms.items()
        )
        assert all(member.heard == member.told for member in self.model)


TestChat = Chat.TestCase
TestChat.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, database=None)


def test_random_name_where_all_of_four_digits_are_taken() -> None:
    rooms: Any = defaultdict(
        dict, {"math": {f"user{number}": None for number in range(1000, 10_000)}}
    )
    name = utils.pick_name(rooms)
    assert name.removeprefix("User").isdecimal()
    assert name.lower() not in rooms["math"]


def test_action_with_several_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(utils.REQUESTS, "whisper", {"user": utils.NAME, "message": utils.TEXT})
    request = {"action": "whisper", "user": "Amy", "message": "psst", "more": 1}
    assert utils.read_request(WSMessage(WSMsgType.TEXT, json.dumps(request), "")) == request
    with pytest.raises(InvalidRequest, match="whisper needs the field message"):
        utils.read_request(WSMessage(WSMsgType.TEXT, json.dumps({**request, "message": ""}), ""))


def test_encode() -> None:
    assert utils.encode("é\ud800\x7f") == b'\x81\x0b"\xc3\xa9\\ud800\x7f"', (
        "no more bytes than needed"
    )
    for body in (float("inf"), float("nan"), [float("-inf")]):
        with pytest.raises(InvalidRequest):  # a browser could not read it
            utils.encode(body)


def test_frame() -> None:
    assert utils.frame(b"", WSMsgType.PONG) == bytes.fromhex("8a00")
    sizes = {
        0: "8100",
        125: "817d",
        126: "817e007e",
        65535: "817effff",
        65536: "817f0000000000010000",
    }
    for size, head in sizes.items():
        assert utils.frame(b"x" * size) == bytes.fromhex(head) + b"x" * size


async def test_outbox(caplog: pytest.LogCaptureFixture) -> None:
    """All of a turn of the event loop is one write; a backlog that is too large ends the connection."""
    transport = Mock(
        is_closing=Mock(return_value=False), get_write_buffer_size=Mock(return_value=0)
    )
    request = Mock(transport=transport, app={utils.UNFLUSHED: []}, remote="x", path="/chat")
    websocket = utils.ClientSocket(request)

    async def send(text: str) -> list[str]:
        """Send each character in one turn, and return all writes so far."""
        for character in text:
            websocket.send(character.encode())
        assert text.encode() not in [call.args[0] for call in transport.write.call_args_list]
        await asyncio.sleep(0)
        return [call.args[0].decode() for call in transport.write.call_args_list]

    await send("123")
    assert await send("4") == ["123", "4"]
    transport.get_write_buffer_size.return_value = utils.MAX_BACKLOG
    await send("5")
    assert not websocket.dropped
    transport.get_write_buffer_size.return_value += 1
    await send("6")
    assert websocket.dropped
    transport.abort.assert_called_once_with()
    assert caplog.messages == [
        f"Dropped x, of /chat, as too slow: {utils.MAX_BACKLOG + 1} bytes unsent"
    ]
    transport.is_closing.return_value = True
    assert await send("7") == ["123", "4", "5", "6"]
