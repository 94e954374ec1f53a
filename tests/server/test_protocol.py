"""The wire protocol, row by row, over real sockets: what each client receives, and no more."""

import asyncio
import json
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

import utils
from server import init_app
from tests.helpers import HANDSHAKE, TIMEOUT, Member, RawClient, eventually, request
from tests.helpers import joined, left, listed, refused, said, succeeded
from tests.server.chat import Chat, see_visit


# /echo


JSON = ['{"message": "Hello world!"}', "[]", "null", "true", "-1.5", '""', '"\\ud800"']
JSON += ['{"a": [{"b": null}]}']
JSON += ["[" * 99 + "]" * 99, '"' + "x" * (64 * 1024 - 2) + '"']
BROKEN = ["", "nope", "{", "NaN", "-Infinity", '{"a": Infinity}', "1e999", "'a'", "\ufeff1"]
BROKEN += ["[" * 60_000, "1" * 6_000]


async def test_echo(chat: Chat) -> None:
    raw, _ = await chat.connect("/echo")
    for opcode, text in [*((1, text) for text in BROKEN), (2, "1")]:
        raw.writer.write(raw.frame(opcode, text.encode()))
        response = await raw.receive()
        assert response == {"error": response["error"]}
        assert len(response["error"].split()) > 3
    for text in JSON:
        raw.writer.write(raw.frame(1, text.encode()))
        assert await raw.receive() == {"echo": json.loads(text)}


async def test_message_in_parts_with_a_ping_between(chat: Chat) -> None:
    raw, _ = await chat.connect("/echo")
    raw.writer.write(
        raw.frame(1, b'["a', first_bits=0) + raw.frame(9, b"are you there") + raw.frame(0, b'b"]')
    )
    assert await raw.next_frame() == (10, b"are you there")
    assert await raw.receive() == {"echo": ["ab"]}


# /chat: connecting


async def test_connecting(chat: Chat) -> None:
    first = await chat.connect_raw()
    connecting = await first.receive()
    assert connecting == {"action": "connecting", "room": "default", "user": connecting["user"]}
    assert re.fullmatch(r"User\d+", connecting["user"])
    _, user = await chat.connect()
    assert await first.receive() == joined("default", user)
    assert chat.who() == {"default": sorted({connecting["user"], user})}


# /chat: requests


async def test_set_nick(chat: Chat) -> None:
    bob, carol, amy = [await chat.join(nick, "math") for nick in ("Bob", "Carol", "Amy")]
    dan = await chat.join("Dan", "art")
    assert await carol.catch_up() == [joined("math", "Amy")]
    assert await bob.catch_up() == [joined("math", "Carol"), joined("math", "Amy")]
    assert await amy.ask(action="set_nick", nick="Ann", room=5, more=[]) == succeeded("set_nick")
    changed = {"action": "nick_changed", "room": "math", "from_user": "Amy", "to_user": "Ann"}
    assert await bob.catch_up() == await carol.catch_up() == [changed]
    assert await amy.catch_up() == await dan.catch_up() == []
    assert chat.who() == {"math": ["Ann", "Bob", "Carol"], "art": ["Dan"]}


async def test_set_nick_that_is_in_use(chat: Chat) -> None:
    """A name is in use if one with the same canonical form is."""
    amy, bob, zoe = [await chat.join(nick, "math") for nick in ("Amy", "Bob", "Zo\u00eb")]
    assert await bob.catch_up() == [joined("math", "Zo\u00eb")]
    await amy.catch_up()
    for nick in (
        "Amy",
        "Bob",
        "bOB",
        "\uff22\uff4f\uff42",
        "\N{MATHEMATICAL BOLD CAPITAL B}ob",
        "Zoe\u0308",
    ):
        assert await amy.ask(action="set_nick", nick=nick) == refused(
            "set_nick", "Nickname is already in use"
        )
    assert [await member.catch_up() for member in (amy, bob, zoe)] == [[], [], []]
    for nick in ("Bobo", "B\u00f6b", "Zoe"):
        assert await amy.ask(action="set_nick", nick=nick) == succeeded("set_nick")
    assert chat.who() == {"math": ["Bob", "Zoe", "Zo\u00eb"]}


async def test_join_room(chat: Chat) -> None:
    amy, bob = await chat.join("Amy", "math"), await chat.join("Bob", "math")
    carol, dan = await chat.join("Carol", "art"), await chat.join("Dan", "tea")
    await amy.catch_up()
    assert await bob.ask(action="join_room", room="art") == succeeded("join_room")
    assert await amy.catch_up() == [left("math", "Bob", shame=False)]
    assert await carol.catch_up() == [joined("art", "Bob")]
    assert await bob.catch_up() == await dan.catch_up() == []
    assert chat.who() == {"math": ["Amy"], "art": ["Bob", "Carol"], "tea": ["Dan"]}
    assert await amy.ask(action="join_room", room="art") == succeeded("join_room")
    assert chat.who() == {"art": ["Amy", "Bob", "Carol"], "tea": ["Dan"]}


async def test_join_room_where_the_name_is_in_use(chat: Chat) -> None:
    """The room where the user already is counts, too."""
    bob, other_bob = await chat.join("Bob", "math"), await chat.join("Bob", "art")
    for room in ("art", "math"):
        refusal = refused("join_room", "Name already in use in this room.")
        assert await bob.ask(action="join_room", room=room) == refusal
    assert await bob.catch_up() == await other_bob.catch_up() == []
    assert chat.who() == {"math": ["Bob"], "art": ["Bob"]}


async def test_response_comes_before_the_broadcasts_of_the_new_room(chat: Chat) -> None:
    bob, amy = await chat.join("Bob", "math"), await chat.join("Amy", "art")
    for _ in range(10):
        # Amy talks all the time while Bob joins.
        for _ in range(20):
            await amy.send(action="chat_message", message="again")
        assert await bob.ask(action="join_room", room="art") == succeeded("join_room")
        received = await bob.catch_up()
        assert received == [said("Amy", "again")] * len(received)
        await bob.send(action="join_room", room="math")
        while await bob.receive() != succeeded("join_room"):
            pass
        assert await bob.catch_up() == []


async def test_chat_message(chat: Chat) -> None:
    amy, carol, bob = [await chat.join(nick, "math") for nick in ("Amy", "Carol", "Bob")]
    dan = await chat.join("Dan", "art")
    for member in (amy, carol):
        await member.catch_up()
    for text in ("hi", " ", "\n", "\x1b[2J", "\ud83d", "\u202e", "0", "日本", "x" * 60_000):
        assert await bob.ask(action="chat_message", message=text) == succeeded("chat_message", text)
        assert await amy.catch_up() == await carol.catch_up() == [said("Bob", text)]
    assert await bob.catch_up() == await dan.catch_up() == []


async def test_user_list(chat: Chat) -> None:
    amy, bob = await chat.join("Amy", "math"), await chat.join("Bob", "math")
    await chat.join("Carol", "art")
    await amy.catch_up()
    for room, users in [
        ("math", ["Amy", "Bob"]),
        ("art", ["Carol"]),
        ("nobody here", []),
        ("default", []),
    ]:
        response = await bob.ask(action="user_list", room=room)
        response["users"].sort()
        assert response == listed(room, *users)
    assert await amy.catch_up() == []
    assert list(chat.app["websockets"]) == ["math", "art"]


# /chat: anything else


# Too short, too long, with a space at an end, not printable, or invisible.
BAD_NAMES = ["", " ", " x", "x ", "n" * 33, "a\nb", "\x1b[31m", "\x7f", "\u200b", "\u202ex"]
BAD_NAMES += ["a\u00a0b", "\u3164", "\u2800", "x\ufe0f", "\u115f", "x\U000e0100", "x\u034f"]
BAD_NAMES += ["\ud800"]
ACTIONS = ("set_nick", "join_room", "chat_message", "user_list")
NOT_TEXT: list[Any] = ["", None, 5, ["x"], {"x": 1}]


def bad_requests() -> Iterator[tuple[str | None, str]]:
    """Yield requests that are refused, each after the action that the refusal names."""
    for text in (*BROKEN, *JSON, '"set_nick"', "{}"):
        yield None, text
    for constant in ("NaN", "Infinity", "-Infinity"):
        yield None, f'{{"action": "chat_message", "message": "x", "more": {constant}}}'
    for no_action in (None, 5, True, ["set_nick"], {"set_nick": 1}):
        yield None, json.dumps({"action": no_action, "nick": "x"})
    for action in ("", "dance", "SET_NICK", "\x1b[2J", "\ud800", *ACTIONS):
        yield action, json.dumps({"action": action})
    for action, field in (("set_nick", "nick"), ("join_room", "room"), ("user_list", "room")):
        for name in BAD_NAMES + NOT_TEXT:
            yield action, json.dumps({"action": action, field: name})
    for message in NOT_TEXT:
        yield "chat_message", json.dumps({"action": "chat_message", "message": message})


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


async def test_names_within_the_limits(chat: Chat) -> None:
    names = ["x", "n" * 32, "\N{GRINNING FACE}" * 32, "a b", "é", "<b>", "../../etc/passwd", "日本"]
    members = [await chat.join(name, name) for name in names]
    assert chat.who() == {name: [name] for name in names}
    assert not any([await member.catch_up() for member in members])


# /chat: leaving


FAILURES = (1002, 1007, 1009)  # a protocol error, invalid UTF-8, a message that is too large


@pytest.mark.parametrize(
    ("last_frame", "code"),
    [
        (RawClient.frame(8, b""), 1000),
        (RawClient.frame(8, (1000).to_bytes(2)), 1000),
        (RawClient.frame(8, (4999).to_bytes(2) + b"bye"), 1000),
        (RawClient.frame(1, b"x" * (64 * 1024 + 1)), 1009),
        (RawClient.frame(1, b"\xff\xfe"), 1007),
        (RawClient.frame(1, b"\xed\xa0\x80"), 1007),
        (RawClient.frame(3, b"reserved opcode"), 1002),
        (RawClient.frame(1, b"reserved bits", first_bits=0xF0), 1002),
        (RawClient.frame(0, b"continues nothing"), 1002),
        (RawClient.frame(9, b"x" * 126), 1002),
        (RawClient.frame(9, b"a ping in parts", first_bits=0), 1002),
        (RawClient.frame(8, b"\x03"), 1002),
        (RawClient.frame(8, (999).to_bytes(2)), 1002),
        (RawClient.frame(1, b"compressed", first_bits=0xC0), 1002),
    ],
)
async def test_close_code(chat: Chat, last_frame: bytes, code: int) -> None:
    """The response to a close frame is 1000; to an invalid frame, an error, which is shame."""
    witness = await chat.join()
    for path in ("/echo", "/chat"):
        raw, user = await chat.connect(path)
        raw.writer.write(last_frame)
        assert await raw.close_code() == code
        if code not in FAILURES:
            assert await asyncio.wait_for(raw.reader.read(), TIMEOUT) == b""
        if path == "/chat":
            await see_visit(witness, user, shame=code in FAILURES)


async def test_close_frame(chat: Chat) -> None:
    """A client may hang up right after its close frame: everything before it is delivered."""
    witness, (raw, user) = await chat.join(), await chat.connect()
    messages = [str(number) for number in range(300)]
    requests = [raw.text(action="chat_message", message=message) for message in messages]
    raw.writer.write(b"".join(requests) + raw.frame(8, b""))
    raw.writer.close()
    await see_visit(witness, user, *messages, shame=False)


async def test_no_close_frame(chat: Chat) -> None:
    witness = await chat.join()
    for is_reset in (True, False):
        raw, user = await chat.connect()
        raw.writer.transport.abort() if is_reset else raw.writer.write_eof()
        await see_visit(witness, user, shame=True)
    assert chat.who() == {"default": [witness.user]}


async def test_close_frame_before_a_reset(chat: Chat) -> None:
    """If a write fails first, a close frame counts all the same, and so does what came before."""
    witness = await chat.join()
    plain = socket.create_connection((chat.url.host, chat.url.port))
    # With this option, closing the socket resets the connection.
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.sendall(request("chat", HANDSHAKE))
    await eventually(lambda: len(chat.who()["default"]) == 2)
    (user,) = {*chat.who()["default"]} - {witness.user}
    plain.sendall(RawClient.text(action="chat_message", message="last") + RawClient.frame(8, b""))
    plain.close()
    websocket = chat.app["websockets"]["default"][user]
    utils.send(utils.encode("what meets the reset"), [websocket])
    await see_visit(witness, user, "last", shame=False)


async def test_pings(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that responds to pings stays; one that does not leaves with shame."""
    witness = await chat.join()
    monkeypatch.setattr(utils, "HEARTBEAT", 0.8)
    alive, _ = await chat.connect("/echo")
    dead, user = await chat.connect()
    leaving = asyncio.create_task(see_visit(witness, user, shame=True))
    while not leaving.done():  # by then it has responded to more than one
        opcode, _ = await alive.next_frame()
        assert opcode == 9
        alive.writer.write(alive.frame(10, b""))
    await leaving
    assert await dead.next_frame() == (9, b"")
    alive.writer.write(alive.frame(1, b"1"))
    while (received := await alive.next_frame()) == (9, b""):
        alive.writer.write(alive.frame(10, b""))
    assert received == (1, b'{"echo": 1}')


async def test_nothing_follows_a_close_frame(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        utils, "CLOSE_TIMEOUT", 0.1
    )  # this client does not respond to the close frame
    speaker, (raw, _) = await chat.join(), await chat.connect()
    for number in range(200):
        if number == 100:
            raw.writer.write(raw.frame(3, b"reserved opcode"))
        await speaker.send(action="chat_message", message="x")
    while (await raw.next_frame())[0] == 1:
        pass
    assert await asyncio.wait_for(raw.reader.read(), TIMEOUT) == b""


# A client that does not read, at the end of its connection


Stalled = tuple[RawClient, asyncio.Transport]


@pytest.fixture
async def stalled(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Stalled:
    """A member with 100,000 bytes of unread responses, and the server's end of its connection."""
    monkeypatch.setattr(utils, "CLOSE_TIMEOUT", 0.2)
    monkeypatch.setattr(utils, "MAX_BACKLOG", 200_000)
    raw, user = await chat.connect(receive_buffer=4096)
    raw.stop_reading()
    transport = chat.app["websockets"]["default"][user].transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while transport.get_write_buffer_size() < 100_000:
        raw.writer.write(raw.text(action="chat_message", message="x" * 10_000))
        await asyncio.sleep(0.001)
    return raw, transport


def is_gone(transport: asyncio.Transport) -> bool:
    return bool(transport.get_extra_info("socket").fileno() == -1)


@pytest.mark.parametrize("last_frame", [RawClient.frame(8, b""), RawClient.frame(3, b"broken")])
async def test_end_of_a_client_that_does_not_read(
    chat: Chat, stalled: Stalled, last_frame: bytes
) -> None:
    """It has left at once, and what it will never read does not stay in memory."""
    raw, transport = stalled
    raw.writer.write(last_frame)
    await eventually(lambda: not chat.app["websockets"])
    await eventually(lambda: is_gone(transport))


async def test_shutdown(chat: Chat, stalled: Stalled) -> None:
    """It ends although a view is just closing, and clients that connect meanwhile get 1001."""
    raw, transport = stalled
    raw.writer.write(raw.frame(8, b""))
    await eventually(lambda: not chat.app["websockets"])
    slow, _ = await chat.connect("/echo")  # it does not respond to its close frame at once
    ending = asyncio.create_task(chat.app.shutdown())
    late, _ = await chat.connect("/echo")
    assert await late.close_code() == await slow.close_code() == 1001
    await asyncio.wait_for(ending, TIMEOUT)
    await eventually(lambda: is_gone(transport))


# All together


async def test_everybody_talks_at_once(chat: Chat) -> None:
    """Each of 20 receives all messages in one order, with the responses at their places."""
    members = [await chat.join(f"member {number}", "math") for number in range(20)]
    for member in members:
        await member.catch_up()

    async def talk(member: Member) -> list[str]:
        """Send each message after the response to the last one; return all messages in order."""
        messages = iter([f"{number} of {member.user}" for number in range(25)])
        await member.send(action="chat_message", message=next(messages))
        received = list[str]()
        while len(received) < 500:
            body = await member.receive()
            received.append(body["message"])
            if "success" in body and (message := next(messages, None)):
                await member.send(action="chat_message", message=message)
        return received

    orders = await asyncio.gather(*map(talk, members))
    assert sorted(orders[0]) == sorted(
        f"{number} of {member.user}" for number in range(25) for member in members
    )
    assert all(order == orders[0] for order in orders)


async def test_too_much_at_once(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends too much waits for its next response; nobody else does."""
    clock = asyncio.get_running_loop().time
    bob, amy = await chat.join("Bob", "math"), await chat.join("Amy", "math")
    assert await bob.receive() == joined("math", "Amy")
    monkeypatch.setattr(utils, "MAX_RATE", 4 * utils.MIN_COST)
    start = clock()
    for message in ("x" * 2_000, "short", "last"):
        await bob.send(action="chat_message", message=message)
    # The first 2,048 bytes are free. The short message counts 512: the last one waits 0.25 s.
    assert [await amy.receive(), await amy.receive()] == [
        said("Bob", "x" * 2_000),
        said("Bob", "short"),
    ]
    assert await amy.ask(action="user_list", room="math") == listed("math", "Bob", "Amy")
    assert await amy.receive() == said("Bob", "last")
    assert clock() - start > 0.24


async def test_view_that_is_cancelled_when_its_client_hangs_up(aiohttp_client: Any) -> None:
    """aiohttp has an option for it, and its test server sets it: nothing must be left behind."""
    app = await init_app()
    client = await aiohttp_client(app)
    async with client.ws_connect("/chat") as websocket:
        await websocket.send_json({"action": "join_room", "room": "math"})
        assert (await websocket.receive_json())["action"] == "connecting"
        assert await websocket.receive_json() == succeeded("join_room")
        websocket._response.connection.transport.abort()
        await eventually(lambda: not app["websockets"])
