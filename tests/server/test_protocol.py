"""The wire protocol, row by row, over real sockets: what each client receives, and no more."""

import asyncio
import itertools
import json
import random
import socket
import struct
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import WSMsgType

import utils
from tests.helpers import TIMEOUT, Join, Member, Server, StartServer, eventually
from tests.helpers import joined, left, listed, refused, said, succeeded
from tests.server.helpers import Chat, frame, renamed, see_visit

JSON = ['{"message": "Hello world!"}', "[]", "null", "true", "-1.5", '""', '"\\ud800"']
JSON += ['{"a": [{"b": null}]}', "[" * 99 + "]" * 99]
# Where the head of a response's frame changes, and the longest message.
JSON += ['"' + "x" * length + '"' for length in (113, 114, 65_523, 65_524, 65_534)]
BROKEN = ["", "nope", "{", "NaN", "-Infinity", '{"a": Infinity}', "1e999", "'a'", "\ufeff1"]
BROKEN += ["[" * 60_000, "1" * 6_000]


async def test_echo(chat: Chat) -> None:
    """It sends back any JSON value; what is none, in a sentence; and a pong between fragments."""
    client = await chat.join(path="echo", autoping=False)
    for opcode, data in ((WSMsgType.TEXT, b"NaN"), (WSMsgType.BINARY, b"1")):
        await client.websocket.send_frame(data, opcode)
        response = await client.receive()
        assert response == {"error": response["error"]}
        assert len(response["error"].split()) > 3
    for value in JSON:
        await client.websocket.send_str(value)
        assert await client.receive() == {"echo": json.loads(value)}
    fragments = frame(1, b'["a', first_bits=0), frame(0, b'b"]')
    client.transport.write(frame(9, b"are you there").join(fragments))
    pong = await client.websocket.receive(TIMEOUT)
    assert pong[:2] == (WSMsgType.PONG, b"are you there")
    assert await client.receive() == {"echo": ["ab"]}


NAMES = ["Bob", "bOB", "\uff22\uff4f\uff42", "\U0001d401ob", "B\u00f6b", "Bo\u0308b"]
NAMES += ["x", "n" * 32, "\U0001f600" * 32, "a b", "<b>", "日本"]
ROOMS = ["default", "math", "../../etc", '"users":{}']
TEXTS = [" ", "\n", "\x1b[2J", "\ud83d", "\u202e", "0", "日本", "x" * 60_000]
TEXTS += ['"users":{}', "/\\\0\x7f", "{}", "1e5"]  # Lua could change these


def canonical(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


async def test_members_do_anything(chat: Chat) -> None:
    """Members come and go, and send what they like. All receive what this says, and no more."""
    choose = random.Random(1)
    members: list[Member] = []
    ways = ["come", "leave", "vanish", *["set_nick", "join_room", "chat_message", "user_list"] * 4]

    def is_right() -> bool:
        places = [(room, user) for room, users in chat.who().items() for user in users]
        return sorted(places) == sorted((member.room, member.user) for member in members)

    for _ in range(600):
        way = choose.choice(ways) if len(members) > 3 else "come"
        random.seed(1)  # so that the server chooses a name that it has chosen before
        member = await chat.join() if way == "come" else choose.choice(members)
        nick, room, text = choose.choice(NAMES), choose.choice(ROOMS), choose.choice(TEXTS)
        taken = {(other.room, canonical(other.user)) for other in members}
        here, user, response = member.room, member.user, None
        news: list[tuple[str, Any]] = []
        match way:
            case "come":
                assert canonical(user) not in {name for _, name in taken}
                members.append(member)
                news = [(here, joined(here, user))]
            case "leave" | "vanish":
                members.remove(member)
                await member.leave() if way == "leave" else member.vanish()
                news = [(here, left(here, user, shame=way == "vanish"))]
            case "set_nick" if (here, canonical(nick)) in taken:
                response = refused(way, "Nickname is already in use")
            case "set_nick":
                response, member.user = succeeded(way), nick
                news = [(here, renamed(here, user, nick))]
            case "join_room" if (room, canonical(user)) in taken:
                response = refused(way, "Name already in use in this room.")
            case "join_room":
                response, member.room = succeeded(way), room
                news = [(here, left(here, user, shame=False)), (room, joined(room, user))]
            case "chat_message":
                response = succeeded(way, text)
                news = [(here, said(user, text))]
            case "user_list":
                response = listed(room, *[other.user for other in members if other.room == room])
        if response:
            received = await member.ask(action=way, nick=nick, room=room, message=text)
            for body in (received, response):
                body.get("users", []).sort()
            assert received == response
        await eventually(is_right)
        for other in members:
            expected = [body for place, body in news if place == other.room and other is not member]
            assert [await other.receive() for _ in expected] == expected
            assert await other.catch_up() == []
    assert len(chat.app[utils.NAMES]) <= len(members)  # no name stays for ever


# Too short, too long, with a space at an end, not printable, or invisible.
BAD_NAMES = ["", " ", " x", "x ", "n" * 33, "a\nb", "\x1b[31m", "\x7f", "\u200b", "\u202ex"]
BAD_NAMES += ["a\u00a0b", "\u3164", "\u2800", "x\ufe0f", "x\U000e0100", "x\u034f", "\ud800"]
NOT_TEXT: list[Any] = ["", None, 5, ["x"], {"x": 1}]
FIELDS = {"set_nick": "nick", "join_room": "room", "user_list": "room", "chat_message": "message"}


def bad_requests() -> Iterator[tuple[str | None, str]]:
    """Yield requests that are refused, each after the action that the refusal names."""
    for text in (*BROKEN, *JSON, '"set_nick"', "{}", '{"action": 5}', '{"action": ["set_nick"]}'):
        yield None, text
    for action in ("", "dance", "SET_NICK", "\x1b[2J", "\ud800", *FIELDS):
        yield action, json.dumps({"action": action})
    for action, field in FIELDS.items():
        for value in NOT_TEXT + (BAD_NAMES if field != "message" else []):
            yield action, json.dumps({"action": action, field: value})


async def test_anything_else_is_refused(chat: Chat) -> None:
    bob, amy = await chat.join("Bob", "math"), await chat.join("Amy", "math")
    await bob.catch_up()
    for action, text in bad_requests():
        await bob.websocket.send_str(text)
        response = await bob.receive()
        assert response == refused(action, response["message"]), text[:99]
        assert len(response["message"].split()) > 3
    await bob.websocket.send_bytes(b'{"action": "set_nick", "nick": "x"}')
    response = await bob.receive()
    assert response == refused(None, response["message"])
    assert await bob.catch_up() == await amy.catch_up() == []
    assert chat.who() == {"math": ["Amy", "Bob"]}


ENDS = [(frame(8, b""), 1000), (frame(8, (4999).to_bytes(2) + b"bye"), 1000)]
ENDS += [(frame(1, b"x" * (64 * 1024 + 1)), 1009), (frame(1, b"\xff\xfe"), 1007)]
ENDS += [(frame(3, b"reserved opcode"), 1002), (frame(1, b"compressed", first_bits=0xC0), 1002)]


@pytest.mark.parametrize(("last_frame", "code"), ENDS)
async def test_close_code(chat: Chat, last_frame: bytes, code: int) -> None:
    """The response to a close frame is 1000; to an invalid frame, an error, which is shame."""
    witness = await chat.join()
    for path in ("echo", "chat"):
        client = await chat.join(path=path, autoclose=False)
        client.transport.write(last_frame)
        assert await client.close_code() == code
        if code == 1000:
            await eventually(client.transport.is_closing)
    await see_visit(witness, client.user, shame=code != 1000)


async def test_client_that_hangs_up(chat: Chat) -> None:
    """With a close frame, it has left, and all that it said is delivered."""
    witness, client = await chat.join(), await chat.join()
    messages = [str(number) for number in range(200)]
    for message in messages:
        await client.send(action="chat_message", message=message)
    client.transport.write(frame(8, b""))
    client.transport.close()
    await see_visit(witness, client.user, *messages, shame=False)


async def test_close_frame_before_a_reset(chat: Chat) -> None:
    """If a write fails first, a close frame counts all the same, and so does what came before."""
    witness, client = await chat.join(), await chat.join()
    reset_at_once = socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    client.transport.get_extra_info("socket").setsockopt(*reset_at_once)
    await client.send(action="chat_message", message="last")
    client.transport.write(frame(8, b""))
    client.vanish()
    websocket = chat.app["websockets"]["default"][client.user]
    utils.send(utils.encode("what meets the reset"), [websocket])
    await see_visit(witness, client.user, "last", shame=False)


async def test_pings(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that responds to pings stays; one that does not leaves with shame."""
    monkeypatch.setattr(utils, "HEARTBEAT", 0.5)
    witness, dead = await chat.join(), await chat.join()  # the witness responds while it waits
    await see_visit(witness, dead.user, shame=True)


async def test_one_order(start: StartServer, join: Join) -> None:
    """Some talk and change their names, others come and go: all who stay receive one history."""
    urls = itertools.cycle([start().url for _ in range(3 if "-m" in Server.script else 1)])
    members = [await join(next(urls), f"member {number}", "math") for number in range(12)]
    users = {member.user for member in members}
    for member in members:
        await member.catch_up()

    async def live(member: Member, is_staying: bool) -> list[Any]:
        """Return what happened in the room, with the member's own part at its place."""
        history: list[Any] = []

        async def ask(action: str, **fields: str) -> Any:
            await member.send(action=action, **fields)
            while "success" not in (body := await member.receive()):
                assert (body.get("room") or body["message"].split()[0]) == member.room
                assert member.user not in body.values()
                history.append(body)
            return body

        for number in range(20):
            text = f"{member.room} {number}"
            await ask("chat_message", message=text)
            history.append(said(member.user, text))
            if not is_staying:
                room = "math" if member.room == "art" else "art"
                await ask("join_room", room=room)
                member.room = room
            elif number % 4:
                history.append(await ask("user_list", room="math"))
            elif (await ask("set_nick", nick=f"winner {number}"))["success"]:
                history.append(renamed("math", member.user, f"winner {number}"))
                member.user = f"winner {number}"
        return history

    histories = await asyncio.gather(*(live(member, member in members[:6]) for member in members))
    for member, history in zip(members[:6], histories, strict=False):
        history += await member.catch_up()
        present = set(users)
        for body in history:
            assert {*body.get("users", present)} == present
            if "users" not in body and "message" not in body:
                present ^= {body[key] for key in ("user", "from_user", "to_user") if key in body}
    stories = [[body for body in history if "users" not in body] for history in histories[:6]]
    renames = [body for body in stories[0] if "to_user" in body]
    assert len(renames) >= 5  # a name may be taken again when its winner has the next one
    assert len(stories[0]) == 6 * 20 + len(renames) + 6 * (20 + 10)
    assert stories == [stories[0]] * 6
