"""The wire protocol, row by row, over real sockets: what each one hears, whole, and what nobody may hear."""

import asyncio
import functools
import importlib
import json
import logging
import random
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

import utils
from server import init_app
from tests.conftest import TIMEOUT, Member, RawClient, eventually
from utils import MAX_BACKLOG

Join = Callable[..., Awaitable[Member]]
ConnectRaw = Callable[..., Awaitable[RawClient]]


@pytest.fixture(params=["server", pytest.param("redis", marks=pytest.mark.needs("redis"))])
async def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> web.Application:
    """The plain server, and the one whose rooms are in Redis: it is the same chat."""
    if request.param == "server":
        return await init_app()
    from redis import Redis

    address: str = request.getfixturevalue("engine")
    monkeypatch.setenv("REDIS_URL", address)
    with Redis.from_url(address) as redis:
        redis.flushall()
    redis_app: web.Application = await importlib.import_module("examples.server_redis").init_app()
    return redis_app


@pytest.fixture
async def url(app: web.Application, serve: Any, caplog: pytest.LogCaptureFixture) -> Any:
    """The address of the app, served in this process; whatever happens to it, it logs no error."""
    yield await serve(app)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def succeeded(action: str, message: str = "") -> dict[str, Any]:
    return {"action": action, "success": True, "message": message}


def refused(action: str | None, message: str) -> dict[str, Any]:
    return {"action": action, "success": False, "message": message}


def joined(room: str, user: str) -> dict[str, Any]:
    return {"action": "joined", "room": room, "user": user}


def left(room: str, user: str, shame: bool) -> dict[str, Any]:
    return {"action": "left", "room": room, "user": user, "shame": shame}


def who(app: web.Application) -> dict[str, list[str]]:
    """Return the shared dictionary, with names for the sockets."""
    return {room: sorted(users) for room, users in app["websockets"].items()}


# /echo


JSON = [
    '{"message": "Hello world!"}',
    "[]",
    "null",
    "true",
    "-1.5",
    '""',
    '"\\ud800"',
    '{"a": [{"b": null}]}',
    "[" * 99 + "]" * 99,
]
BROKEN = ["", "nope", "{", "NaN", "-Infinity", '{"a": Infinity}', "1e999", "[" * 60_000, "1" * 6_000, "'a'", "\ufeff1"]


async def test_echo(url: Any) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url / "echo") as websocket:
        for text in JSON:
            await websocket.send_str(text)
            assert await websocket.receive_json(timeout=TIMEOUT) == {"echo": json.loads(text)}
        for text in BROKEN:
            await websocket.send_str(text)
            response = await websocket.receive_json(timeout=TIMEOUT)
            assert response == {"error": response["error"]}
            assert len(response["error"].split()) > 3
        await websocket.send_bytes(b"1")
        assert "binary" in (await websocket.receive_json(timeout=TIMEOUT))["error"]
        await websocket.send_json("still here")
        assert await websocket.receive_json(timeout=TIMEOUT) == {"echo": "still here"}


# /chat: connecting


async def test_connecting(url: Any, app: web.Application, connect_raw: ConnectRaw) -> None:
    first = await connect_raw(url)
    connecting = await first.hear()
    assert connecting == {"action": "connecting", "room": "default", "user": connecting["user"]}
    assert re.fullmatch(r"User\d+", connecting["user"])
    second = await connect_raw(url)
    user = (await second.hear())["user"]
    assert user != connecting["user"]
    assert await first.hear() == joined("default", user)
    assert who(app) == {"default": sorted([connecting["user"], user])}


async def test_random_name_is_free_in_every_room(url: Any, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([1111, 1111, 1111, 2222])
    monkeypatch.setattr(random, "randrange", lambda *_: next(numbers))
    first = await join(url, room="math")
    second = await join(url, room="math")
    assert [first.user, second.user] == ["User1111", "User2222"]


# /chat: requests


async def test_set_nick(url: Any, join: Join, app: web.Application) -> None:
    bob, carol, amy = [await join(url, nick, "math") for nick in ("Bob", "Carol", "Amy")]
    dan = await join(url, "Dan", "art")
    assert await carol.catch_up() == [joined("math", "Amy")]
    assert await bob.catch_up() == [joined("math", "Carol"), joined("math", "Amy")]
    assert await amy.ask(action="set_nick", nick="Ann") == succeeded("set_nick")
    for member in (bob, carol):
        assert await member.catch_up() == [
            {"action": "nick_changed", "room": "math", "from_user": "Amy", "to_user": "Ann"}
        ]
    assert await amy.catch_up() == await dan.catch_up() == []
    assert who(app) == {"math": ["Ann", "Bob", "Carol"], "art": ["Dan"]}


@pytest.mark.parametrize("nick", ["Bob", "Amy", "bOB", "\uff22ob"])
async def test_set_nick_that_is_in_use(url: Any, join: Join, app: web.Application, nick: str) -> None:
    amy, bob = await join(url, "Amy", "math"), await join(url, "Bob", "math")
    await amy.catch_up()
    assert await amy.ask(action="set_nick", nick=nick) == refused("set_nick", "Nickname is already in use")
    assert await amy.catch_up() == await bob.catch_up() == []
    assert who(app) == {"math": ["Amy", "Bob"]}


async def test_nick_is_unique_in_its_room_only(url: Any, join: Join, app: web.Application) -> None:
    await join(url, "Bob", "math")
    await join(url, "Bob", "art")
    assert who(app) == {"math": ["Bob"], "art": ["Bob"]}


async def test_join_room(url: Any, join: Join, app: web.Application) -> None:
    amy, bob = await join(url, "Amy", "math"), await join(url, "Bob", "math")
    carol, dan = await join(url, "Carol", "art"), await join(url, "Dan", "tea")
    await amy.catch_up()
    assert await bob.ask(action="join_room", room="art") == succeeded("join_room")
    assert await amy.catch_up() == [left("math", "Bob", shame=False)]
    assert await carol.catch_up() == [joined("art", "Bob")]
    assert await bob.catch_up() == await dan.catch_up() == []
    assert who(app) == {"math": ["Amy"], "art": ["Bob", "Carol"], "tea": ["Dan"]}
    assert await amy.ask(action="join_room", room="art") == succeeded("join_room")
    assert who(app) == {"art": ["Amy", "Bob", "Carol"], "tea": ["Dan"]}


@pytest.mark.parametrize("room", ["art", "math"])
async def test_join_room_where_the_name_is_in_use(url: Any, join: Join, app: web.Application, room: str) -> None:
    members = [await join(url, "Bob", "math"), await join(url, "Bob", "art")]
    refusal = refused("join_room", "Name already in use in this room.")
    assert await members[0].ask(action="join_room", room=room) == refusal
    assert [await member.catch_up() for member in members] == [[], []]
    assert who(app) == {"math": ["Bob"], "art": ["Bob"]}


async def test_answer_comes_before_the_broadcasts_of_the_new_room(url: Any, join: Join) -> None:
    bob, amy = await join(url, "Bob", "math"), await join(url, "Amy", "art")
    for _ in range(50):
        # The room talks all the time while Bob comes in.
        for _ in range(20):
            await amy.websocket.send_json({"action": "chat_message", "message": "again"})
        assert await bob.ask(action="join_room", room="art") == succeeded("join_room")
        heard = await bob.catch_up()
        assert heard == [{"action": "chat_message", "message": "again", "user": "Amy"}] * len(heard)
        await bob.websocket.send_json({"action": "join_room", "room": "math"})
        while await bob.hear() != succeeded("join_room"):
            pass
        assert await bob.catch_up() == []


async def test_chat_message(url: Any, join: Join) -> None:
    amy, bob, carol = [await join(url, nick, "math") for nick in ("Amy", "Bob", "Carol")]
    dan = await join(url, "Dan", "art")
    for member in (amy, bob):
        await member.catch_up()
    for text in ("hi", " ", "\n", "\x1b[2J", "\ud83d", "\u202e", "0", "日本", "x" * 60_000):
        assert await bob.ask(action="chat_message", message=text) == succeeded("chat_message", text)
        for member in (amy, carol):
            assert await member.catch_up() == [{"action": "chat_message", "message": text, "user": "Bob"}]
    assert await bob.catch_up() == await dan.catch_up() == []


async def test_user_list(url: Any, join: Join, app: web.Application) -> None:
    amy, bob = await join(url, "Amy", "math"), await join(url, "Bob", "math")
    await join(url, "Carol", "art")
    await amy.catch_up()
    for room, users in [("math", ["Amy", "Bob"]), ("art", ["Carol"]), ("nobody here", []), ("default", [])]:
        answer = await bob.ask(action="user_list", room=room)
        assert sorted(answer.pop("users")) == users
        assert answer == {"action": "user_list", "success": True, "room": room}
    assert await amy.catch_up() == []
    assert list(app["websockets"]) == ["math", "art"]


async def test_extra_fields_are_ignored(url: Any, join: Join) -> None:
    bob = await join(url, "Bob", "math")
    assert await bob.ask(action="set_nick", nick="Rob", room=5, x=[]) == succeeded("set_nick")


# /chat: anything else

BAD_NAMES: list[Any] = [
    "",
    " x",
    "n" * 33,
    "a\nb",
    "\x1b[31m",
    "\u202ex",
    "\ud800",
    "a\ufe0f",
    "\u3164",
    None,
    5,
    ["x"],
]
BAD_REQUESTS: list[tuple[str, str | None]] = [
    *[(text, None) for text in BROKEN if text != "1e999"],
    *[(text, None) for text in ["[]", "5", "null", '"set_nick"', "{}", "1e999"]],
    *[(json.dumps({"action": action, "nick": "x"}), None) for action in (None, 5, True, ["set_nick"], {"set_nick": 1})],
    *[
        (json.dumps({"action": action, "nick": "x"}), action)
        for action in ("", "dance", "SET_NICK", "\x1b[2J", "\ud800")
    ],
    *[(json.dumps({"action": action}), action) for action in ("set_nick", "join_room", "chat_message", "user_list")],
    *[(json.dumps({"action": "set_nick", "nick": name}), "set_nick") for name in BAD_NAMES],
    *[(json.dumps({"action": "join_room", "room": name}), "join_room") for name in BAD_NAMES],
    *[(json.dumps({"action": "user_list", "room": name}), "user_list") for name in BAD_NAMES],
    *[
        (f'{{"action": "chat_message", "message": "x", "more": {more}}}', None)
        for more in ("NaN", "Infinity", "-Infinity")
    ],
    *[(json.dumps({"action": "chat_message", "message": m}), "chat_message") for m in ("", None, 5, ["x"], {"x": 1})],
]


async def test_anything_else_is_refused(url: Any, join: Join, app: web.Application) -> None:
    bob, amy = await join(url, "Bob", "math"), await join(url, "Amy", "math")
    await bob.catch_up()
    for text, action in BAD_REQUESTS:
        await bob.websocket.send_str(text)
        answer = await bob.hear()
        assert answer == refused(action, answer["message"]), text[:99]
        assert len(answer["message"].split()) > 3
    await bob.websocket.send_bytes(b'{"action": "set_nick", "nick": "x"}')
    answer = await bob.hear()
    assert answer == refused(None, answer["message"])
    assert await bob.catch_up() == await amy.catch_up() == []
    assert who(app) == {"math": ["Amy", "Bob"]}


@pytest.mark.parametrize("name", ["n" * 32, "\N{GRINNING FACE}" * 32, "<b>", "../../etc/passwd", "日本"])
async def test_names_within_the_limits(url: Any, join: Join, app: web.Application, name: str) -> None:
    bob = await join(url, name, name)
    assert await bob.catch_up() == []
    assert who(app) == {name: [name]}


@pytest.mark.parametrize("path", ["/echo", "/chat"])
async def test_frame_of_64_kib_and_a_larger_one(url: Any, join: Join, connect_raw: ConnectRaw, path: str) -> None:
    witness = await join(url)
    raw = await connect_raw(url, path)
    text = '"' + "x" * (64 * 1024 - 2) + '"'
    raw.writer.write(raw.frame(1, text.encode()))
    if path == "/echo":
        assert await raw.hear() == {"echo": json.loads(text)}
    else:
        user = (await raw.hear())["user"]
        assert (await raw.hear())["success"] is False
    raw.writer.write(raw.frame(1, text.encode() + b" "))
    opcode, payload = await raw.next_frame()
    assert (opcode, int.from_bytes(payload[:2])) == (8, 1009)
    if path == "/chat":
        assert await witness.hear() == joined("default", user)
        assert await witness.hear() == left("default", user, shame=True)
    assert await witness.catch_up() == []


BROKEN_FRAMES = [
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
]


@pytest.mark.parametrize(("data", "close_code"), BROKEN_FRAMES)
async def test_broken_frames(url: Any, join: Join, connect_raw: ConnectRaw, data: bytes, close_code: int) -> None:
    witness, raw = await join(url), await connect_raw(url)
    user = (await raw.hear())["user"]
    raw.writer.write(data)
    opcode, payload = await raw.next_frame()
    assert (opcode, int.from_bytes(payload[:2])) == (8, close_code)
    assert [await witness.hear(), await witness.hear()] == [joined("default", user), left("default", user, shame=True)]
    assert await witness.catch_up() == []


async def test_nothing_follows_a_close_frame(
    url: Any, join: Join, connect_raw: ConnectRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "CLOSE_TIMEOUT", 0.2)  # that it waits for this client to hang up
    speaker, raw = await join(url), await connect_raw(url)
    for text in map(str, range(200)):
        if text == "100":
            raw.writer.write(raw.frame(3, b"reserved opcode"))
        await speaker.websocket.send_json({"action": "chat_message", "message": text})
    opcode = 1
    while opcode == 1:
        opcode, _ = await raw.next_frame()
    assert opcode == 8
    assert await asyncio.wait_for(raw.reader.read(), TIMEOUT) == b""


async def test_message_in_parts_with_a_ping_between(url: Any, connect_raw: ConnectRaw) -> None:
    raw = await connect_raw(url, "/echo")
    raw.writer.write(raw.frame(1, b'["a', first_bits=0) + raw.frame(9, b"are you there") + raw.frame(0, b'b"]'))
    assert await raw.next_frame() == (10, b"are you there")
    assert await raw.hear() == {"echo": ["ab"]}


# /chat: leaving


@pytest.mark.parametrize(
    ("payload", "said_before"), [(b"", 0), ((1000).to_bytes(2), 1000), ((1006).to_bytes(2), 1), (b"\x13\x87bye", 20)]
)
async def test_goodbye(url: Any, join: Join, connect_raw: ConnectRaw, payload: bytes, said_before: int) -> None:
    witness, raw = await join(url), await connect_raw(url)
    user = (await raw.hear())["user"]
    said = [raw.text(action="chat_message", message=str(number)) for number in range(said_before)]
    raw.writer.write(b"".join([*said, raw.frame(8, payload)]))
    # It may hang up at once: what it said has arrived, and the goodbye counts.
    raw.writer.close()
    assert await witness.hear() == joined("default", user)
    for number in range(said_before):
        assert await witness.hear() == {"action": "chat_message", "message": str(number), "user": user}
    assert await witness.hear() == left("default", user, shame=False)
    assert await witness.catch_up() == []


async def test_goodbye_is_answered(url: Any, connect_raw: ConnectRaw) -> None:
    for path in ("/chat", "/echo"):
        raw = await connect_raw(url, path)
        if path == "/chat":
            await raw.hear()
        raw.writer.write(raw.frame(8, (1000).to_bytes(2)))
        opcode, payload = await raw.next_frame()
        assert (opcode, int.from_bytes(payload[:2])) == (8, 1000)
        assert await asyncio.wait_for(raw.reader.read(), TIMEOUT) == b""


@pytest.mark.parametrize("how", ["reset", "end of file"])
async def test_no_goodbye(url: Any, join: Join, app: web.Application, connect_raw: ConnectRaw, how: str) -> None:
    witness, raw = await join(url), await connect_raw(url)
    user = (await raw.hear())["user"]
    if how == "reset":
        raw.vanish()
    else:
        raw.writer.write_eof()
    assert [await witness.hear(), await witness.hear()] == [joined("default", user), left("default", user, shame=True)]
    assert await witness.catch_up() == []
    assert who(app) == {"default": [witness.user]}


async def test_client_that_does_not_answer_a_ping(
    url: Any, join: Join, connect_raw: ConnectRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = await join(url)
    monkeypatch.setattr(utils, "HEARTBEAT", 0.1)
    raw = await connect_raw(url)
    user = (await raw.hear())["user"]
    assert await raw.next_frame() == (9, b"")
    assert [await witness.hear(), await witness.hear()] == [joined("default", user), left("default", user, shame=True)]


async def test_client_that_answers_pings_stays(
    url: Any, connect_raw: ConnectRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "HEARTBEAT", 0.3)
    raw = await connect_raw(url, "/echo")
    for _ in range(2):
        assert await raw.next_frame() == (9, b"")
        raw.writer.write(raw.frame(10, b""))
    raw.writer.write(raw.frame(1, b"1"))
    opcode, payload = await raw.next_frame()
    while opcode == 9:
        opcode, payload = await raw.next_frame()
    assert json.loads(payload) == {"echo": 1}


# A client that does not read, at the end of its connection


@pytest.fixture
async def stalled(
    url: Any, app: web.Application, connect_raw: ConnectRaw, monkeypatch: pytest.MonkeyPatch
) -> tuple[RawClient, asyncio.Transport]:
    """A member with half a megabyte of unread confirmations, and the server's end of its connection."""
    monkeypatch.setattr(utils, "CLOSE_TIMEOUT", 0.2)
    raw = await connect_raw(url, receive_buffer=4096)
    user = (await raw.hear())["user"]
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    transport = app["websockets"]["default"][user].transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while transport.get_write_buffer_size() < MAX_BACKLOG / 2:
        raw.writer.write(raw.text(action="chat_message", message="x" * 10_000))
        await asyncio.sleep(0.001)
    return raw, transport


def is_gone(transport: asyncio.Transport) -> bool:
    return bool(transport.get_extra_info("socket").fileno() == -1)


@pytest.mark.parametrize("last_frame", [RawClient.frame(8, b""), RawClient.frame(3, b"broken")])
async def test_end_of_a_client_that_does_not_read(
    app: web.Application, stalled: tuple[RawClient, asyncio.Transport], last_frame: bytes
) -> None:
    """It has left at once, and what it will never read does not stay in memory."""
    raw, transport = stalled
    raw.writer.write(last_frame)
    await eventually(lambda: not app["websockets"])
    await eventually(lambda: is_gone(transport))


async def test_nothing_counts_that_comes_after_a_drop(
    url: Any, join: Join, stalled: tuple[RawClient, asyncio.Transport]
) -> None:
    """Neither what a member said before it was dropped, if the server reads it only then, nor its goodbye."""
    witness, (raw, transport) = await join(url), stalled
    message = raw.text(action="chat_message", message="x" * 10_000)
    while transport.get_write_buffer_size() < MAX_BACKLOG - 15_000:
        more = transport.get_write_buffer_size() + 1
        raw.writer.write(message)
        await eventually(functools.partial(lambda size: transport.get_write_buffer_size() >= size, more))
    # All of this arrives together.
    raw.writer.write(message * 3 + raw.text(action="chat_message", message="afterwards") + raw.frame(8, b""))
    while (body := await witness.hear())["action"] == "chat_message":
        assert body["message"] == "x" * 10_000
    assert body == left("default", body["user"], shame=True)
    assert await witness.catch_up() == []


async def test_shutdown_with_a_client_that_does_not_read(
    app: web.Application, stalled: tuple[RawClient, asyncio.Transport]
) -> None:
    _, transport = stalled
    # It gets two seconds; the rest is patience with a busy machine.
    await asyncio.wait_for(app.shutdown(), 8)
    assert is_gone(transport)


# The handshake


@pytest.mark.parametrize("path", ["echo", "chat"])
async def test_plain_get(url: Any, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url / path) as response:
        assert (response.status, response.reason) == (426, "Upgrade Required")
        assert response.headers["Upgrade"] == "websocket"
        assert response.headers["Sec-WebSocket-Version"] == "13"
        assert len((await response.text()).split()) > 3


async def handshake(url: Any, path: str, origin: str | None, host: str | None) -> tuple[int, str]:
    """Return the status of a handshake from a page of an origin, to a name of this machine, and the text."""
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers |= {"Sec-WebSocket-Key": "A" * 22 + "=="} | ({"Origin": origin} if origin else {})
    headers |= {"Host": host} if host else {}
    async with aiohttp.ClientSession() as session, session.get(url / path, headers=headers) as response:
        return response.status, "" if response.status == 101 else await response.text()


OWN_NAME = socket.gethostname()


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "x.example"),  # no browser
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("https://[::1]", "[::1]:443"),  # a proxy may add the port
        ("http://[::1]:8080", "[::1]:8080"),
        ("HTTP://LOCALHOST:8080", "localhost:8080"),
        ("http://192.168.1.7", "192.168.1.7:80"),
        (f"http://{OWN_NAME}:8080", f"{OWN_NAME}:8080"),
        (f"http://{OWN_NAME}.local", f"{OWN_NAME}.local"),
        ("https://one.example", "chat.example"),
        ("https://two.example:8443", "two.example:8443"),
    ],
)
@pytest.mark.parametrize("path", ["echo", "chat"])
async def test_page_that_is_let_in(serve: Any, path: str, origin: str | None, host: str) -> None:
    app = await init_app(["--allow-origin", "https://One.example", "--allow-origin", "https://two.example:8443/"])
    assert await handshake(await serve(app), path, origin, host) == (101, "")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.example", None),
        ("null", None),
        ("http://127.0.0.1:1", None),
        ("http://", None),
        ("ftp://localhost", "localhost"),
        ("http://localhost/", "localhost"),
        ("http://localhost.evil.example", "localhost"),
        ("http://attacker.example", "attacker.example"),  # whose name leads to this machine: DNS rebinding
        ("http://attacker.example:8080", "attacker.example:8080"),
        ("http://localhost.attacker.example", "localhost.attacker.example"),
        ("http://127.0.0.1.attacker.example", "127.0.0.1.attacker.example"),
        ("http://" + "x" * 1000, None),
    ],
)
async def test_page_that_is_refused(url: Any, app: web.Application, caplog: Any, origin: str, host: str | None) -> None:
    caplog.set_level(logging.INFO)
    for path in ("echo", "chat"):
        status, text = await handshake(url, path, origin, host)
        assert status == 403
        assert f"--allow-origin {origin[:100]} lets them" in text
    assert caplog.messages == [f"Refused a page of {origin!r:.100}"] * 2
    assert who(app) == {}


async def test_origin_that_is_no_text(url: Any) -> None:
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(HANDSHAKE.format("GET", "A" * 22 + "==", "13\r\nOrigin: http://\xff").encode("latin-1"))
    assert await asyncio.wait_for(reader.readline(), TIMEOUT) == b"HTTP/1.1 403 Forbidden\r\n"
    writer.close()
    await writer.wait_closed()


async def test_headers_of_the_page(url: Any) -> None:
    async with aiohttp.ClientSession() as session:
        for path, content_type in (("/", "text/html"), ("/chat.js", "javascript"), ("/chat.css", "text/css")):
            async with session.get(url.join(URL(path))) as response:
                assert response.content_type.endswith(content_type)  # with nosniff, a browser takes nothing else
                policy = response.headers["Content-Security-Policy"]
                assert re.match("default-src 'none'(?!.*unsafe).*frame-ancestors 'none'", policy)
                names = ("X-Content-Type-Options", "Cache-Control")
                assert [response.headers[name] for name in names] == ["nosniff", "no-cache"]
                etag = response.headers["ETag"]
            async with session.get(url.join(URL(path)), headers={"If-None-Match": etag}) as response:
                assert response.status == 304


HANDSHAKE = (
    "{} /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: {}\r\nSec-WebSocket-Version: {}\r\n\r\n"
)


@pytest.mark.parametrize(
    ("method", "key", "version"),
    [
        ("GET", "\xff" * 24, "13"),
        ("GET", "", "13"),
        ("GET", "short", "13"),
        ("GET", "A" * 22 + "==", "99"),
        ("HEAD", "A" * 22 + "==", "13"),
    ],
)
async def test_invalid_handshake(url: Any, app: web.Application, method: str, key: str, version: str) -> None:
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(HANDSHAKE.format(method, key, version).encode("latin-1"))
    status = await asyncio.wait_for(reader.readline(), TIMEOUT)
    assert status.startswith((b"HTTP/1.1 426 ", b"HTTP/1.1 400 "))
    writer.close()
    await writer.wait_closed()
    assert who(app) == {}


# All together


async def test_one_order_for_a_room(url: Any, join: Join) -> None:
    members = [await join(url, f"member {number}", "math") for number in range(8)]
    for member in members:
        await member.catch_up()

    async def talk(member: Member) -> None:
        for number in range(100):
            await member.websocket.send_json({"action": "chat_message", "message": f"{number} of {member.user}"})

    async def listen(member: Member) -> list[str]:
        """Return the messages in the order in which this member learns of them, its own included."""
        return [(await member.hear())["message"] for _ in range(800)]

    talking = asyncio.gather(*map(talk, members))
    orders = await asyncio.gather(*map(listen, members))
    await talking
    assert sorted(orders[0]) == sorted(f"{number} of member {member}" for number in range(100) for member in range(8))
    assert all(order == orders[0] for order in orders)


async def test_everybody_talks_at_once(url: Any, join: Join) -> None:
    """Each of 20 learns of all messages in one order, with the confirmations of its own at their places."""
    members = [await join(url, f"member {number}", "math") for number in range(20)]
    for member in members:
        await member.catch_up()

    async def talk(member: Member) -> list[str]:
        """Say the next message as soon as the last one is confirmed; return all messages, as they come."""
        number, heard = 0, list[str]()
        await member.websocket.send_json({"action": "chat_message", "message": f"0 of {member.user}"})
        while len(heard) < 500:
            body = await member.hear()
            heard.append(body["message"])
            if "success" in body and (number := number + 1) < 25:
                await member.websocket.send_json({"action": "chat_message", "message": f"{number} of {member.user}"})
        return heard

    orders = await asyncio.gather(*map(talk, members))
    assert sorted(orders[0]) == sorted(f"{number} of {member.user}" for number in range(25) for member in members)
    assert all(order == orders[0] for order in orders)


async def test_too_much_at_once(url: Any, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends too much waits for its next response, and so does nobody else."""
    monkeypatch.setattr(utils, "MAX_RATE", 40_000)
    clock = asyncio.get_running_loop().time
    bob, amy = await join(url, "Bob", "math"), await join(url, "Amy", "math")
    assert await bob.hear() == joined("math", "Amy")
    start = clock()
    for _ in range(4):
        await bob.websocket.send_json({"action": "chat_message", "message": "x" * 20_000})
    for _ in range(3):
        assert (await amy.hear())["message"] == "x" * 20_000
    # The first 40,000 bytes are free, 20,000 take half a second, and the fourth message waits for them.
    assert await amy.ask(action="user_list", room="math") == (
        {"action": "user_list", "success": True, "room": "math", "users": ["Bob", "Amy"]}
    )
    assert (await amy.hear())["message"] == "x" * 20_000
    assert clock() - start > 0.49


async def test_nothing_remains_of_rooms_that_are_empty(url: Any, join: Join, app: web.Application) -> None:
    bob = await join(url, "Bob", "math")
    for number in range(500):
        await bob.websocket.send_json({"action": "join_room", "room": f"room {number}"})
        await bob.websocket.send_json({"action": "user_list", "room": f"other room {number}"})
    for number in range(500):
        assert await bob.hear() == succeeded("join_room")
        users = {"action": "user_list", "success": True, "room": f"other room {number}", "users": []}
        assert await bob.hear() == users
    assert who(app) == {"room 499": ["Bob"]}
    await bob.leave()
    await eventually(lambda: not app["websockets"])


async def test_view_that_is_cancelled_when_its_client_hangs_up(aiohttp_client: Any) -> None:
    """aiohttp can be told to do so, and its test server does: nothing may be left behind."""
    app = await init_app()
    client = await aiohttp_client(app)
    async with client.ws_connect("/chat") as websocket:
        await websocket.send_json({"action": "join_room", "room": "math"})
        assert (await websocket.receive_json())["action"] == "connecting"
        assert await websocket.receive_json() == succeeded("join_room")
        websocket._response.connection.transport.abort()
        await eventually(lambda: not app["websockets"])
