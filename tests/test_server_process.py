"""The server as people run it, a process of its own, and the clients that strangers bring along."""

import asyncio
import re
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.conftest import TIMEOUT, Member, RawClient, Script, Server, eventually

Join = Callable[..., Awaitable[Member]]
ConnectRaw = Callable[..., Awaitable[RawClient]]

StartServer = Callable[..., Server]
StartScript = Callable[..., Awaitable[Script]]


async def test_client_as_written_in_2020(server: Server) -> None:
    """It joins a room, sets a nick, asks for the user list and talks, with what aiohttp had then."""
    async with aiohttp.ClientSession() as session, session.ws_connect(server.url + "/chat") as ws:
        await ws.send_json({"action": "join_room", "room": "math"})
        await ws.send_json({"action": "set_nick", "nick": "Bob"})
        await ws.send_json({"action": "user_list", "room": "math"})
        await ws.send_json({"action": "chat_message", "message": "1 + 1"})
        bodies = []
        async for message in ws:
            if message.type == aiohttp.WSMsgType.text:
                bodies.append(message.json())
            if len(bodies) == 5:
                await ws.close()
    user = bodies[0].pop("user")
    assert user.startswith("User")
    assert bodies == [
        {"action": "connecting", "room": "default"},
        {"action": "join_room", "success": True, "message": ""},
        {"action": "set_nick", "success": True, "message": ""},
        {"action": "user_list", "success": True, "room": "math", "users": ["Bob"]},
        {"action": "chat_message", "success": True, "message": "1 + 1"},
    ]


@pytest.mark.needs("bench")
async def test_command_line_of_websockets(server: Server, join: Join, start_script: StartScript) -> None:
    witness = await join(server.url)
    script = await start_script("-m", "websockets", f"ws://127.0.0.1:{server.port}/chat")
    user = (await witness.hear())["user"]
    assert script.process.stdin
    script.process.stdin.write(b'{"action": "chat_message", "message": "hello"}\n')
    assert await witness.hear() == {"action": "chat_message", "message": "hello", "user": user}
    await witness.ask(action="chat_message", message="goodbye")
    _, output, _ = await script.end(b"")
    assert f'{{"action": "connecting", "room": "default", "user": "{user}"}}' in output
    assert '{"action": "chat_message", "success": true, "message": "hello"}' in output
    assert await witness.hear() == {"action": "left", "room": "default", "user": user, "shame": False}


async def test_clients_that_vanish_during_the_handshake(server: Server, join: Join) -> None:
    """Some are gone before they are answered, others while they are welcomed: none leaves a trace in the log."""
    witness = await join(server.url)
    handshake = (
        b"GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    for number in range(100):
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            plain.sendall(handshake)
            if number % 3 == 1:  # closing resets the connection
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif number % 3 == 2:
                plain.recv(1)
    last = await join(server.url)  # who comes after all of them
    heard = []
    async with asyncio.timeout(TIMEOUT):
        users: list[str] = []
        while sorted(users) != sorted([witness.user, last.user]):
            await witness.websocket.send_json({"action": "user_list", "room": "default"})
            while "users" not in (body := await witness.hear()):
                heard.append(body)
            users = body["users"]
    joined = [body["user"] for body in heard if body["action"] == "joined"]  # a name may come back
    left = [body["user"] for body in heard if body["action"] == "left" and body["shame"]]
    assert sorted(joined) == sorted([*left, last.user])
    assert len(left) >= 33


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /" + b"x" * 3_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 5_000 + b"\r\n\r\n",  # 500 of these that never end took 824 MiB
        b"GET / HTTP/1.1\r\n" + b"A: x\r\n" * 50 + b"\r\n",
    ],
)
def test_request_that_is_no_http(server: Server, nonsense: bytes) -> None:
    """Nobody can fill the log with tracebacks."""
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as plain:
        plain.sendall(nonsense)
        assert b" 400 " in plain.recv(100)
    assert " ERROR " not in server.log


def test_page_that_is_asked_for_and_not_read(server: Server) -> None:
    """Nor with tracebacks of this."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing is a reset
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert plain.recv(15) == b"HTTP/1.1 200 OK"
    assert " ERROR " not in server.log


WORKER = ("--worker-class", "aiohttp.GunicornWebWorker")
COMMANDS = [
    ("-m", "aiohttp.web", "-H", "127.0.0.1", "-P", "{}", "server:init_app", "--allow-origin", "http://x.example"),
    pytest.param(
        ("-m", "gunicorn", "server:init_app", *WORKER, "-b", "127.0.0.1:{}"), marks=pytest.mark.needs("bench")
    ),
]


@pytest.mark.parametrize("command", COMMANDS)
async def test_other_ways_to_run_it(
    command: tuple[str, ...], unused_tcp_port: int, join: Join, start_script: StartScript
) -> None:
    script = await start_script(*[word.format(unused_tcp_port) for word in command], warnings="default")
    await eventually(lambda: listens(unused_tcp_port))
    bob = await join(f"http://127.0.0.1:{unused_tcp_port}", "Bob", "math")
    assert (await bob.ask(action="user_list", room="math"))["users"] == ["Bob"]
    script.process.send_signal(signal.SIGTERM)
    message = await bob.websocket.receive(TIMEOUT)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    code, _, _ = await script.end()
    assert code == 0


def listens(port: int) -> bool:
    with socket.socket() as plain:
        return plain.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--port", "99999"), 1, r"Cannot listen on --host 127\.0\.0\.1 --port 99999: .*[^.]\.\n"),
        (("--port", "{}"), 1, r"Cannot listen on --host 127\.0\.0\.1 --port \d+: .*[^.]\.\n"),  # which is taken
        (("--host", "256.0.0.1"), 1, r"Cannot listen on --host 256\.0\.0\.1 --port 8080: .*\.\n"),
        (("--host", "a..b"), 1, r"Cannot listen on --host a\.\.b --port 8080: .*\.\n"),
        (("--port", "http"), 2, r"(?s)usage: .*error: .*--port.*\n"),
    ],
)
async def test_options_that_are_wrong(
    server: Server, start_script: StartScript, options: tuple[str, str], code: int, sentence: str
) -> None:
    options = (options[0], options[1].format(server.port))
    script = await start_script("server.py", "--host", "127.0.0.1", *options)
    ended = await script.end()
    assert ended[:2] == (code, "")
    assert re.fullmatch(sentence, ended[2]), ended[2]


async def test_output_that_nobody_reads(start_script: StartScript, unused_tcp_port: int, join: Join) -> None:
    command = ("server.py", "--host", "127.0.0.1", "--port", unused_tcp_port)
    script = await start_script(*command, redirect="> /dev/full")
    await eventually(lambda: listens(unused_tcp_port))
    await (await join(f"http://127.0.0.1:{unused_tcp_port}")).leave()
    script.process.send_signal(signal.SIGTERM)
    code, _, log = await script.end()
    assert (code, log.count("\n")) == (0, 2), log


async def test_ctrl_c_while_it_starts(start_script: StartScript) -> None:
    """Each program spends half a second with imports, which leave a traceback otherwise."""
    script = await start_script("-X", "importtime", "server.py", "--port", "0")
    assert script.process.stderr
    while b"asyncio" not in await asyncio.wait_for(script.process.stderr.readline(), TIMEOUT):
        pass
    script.process.send_signal(signal.SIGINT)
    code, output, errors = await script.end()
    assert (code, output) == (-signal.SIGINT, "")
    assert "KeyboardInterrupt" not in errors


@pytest.mark.parametrize("options", [(), ("--verbose",)])
async def test_log(start_server: Callable[..., Server], join: Join, connect_raw: ConnectRaw, options: Any) -> None:
    server = start_server(*options)
    bob = await join(server.url, "Bob", "math")
    await bob.ask(action="chat_message", message="secret \x1b[2J \ud800")
    await bob.leave()
    raw = await connect_raw(server.url)
    user = (await raw.hear())["user"]
    raw.vanish()
    await eventually(lambda: "goodbye" in server.log)
    lines = [line.split(maxsplit=2)[2] for line in server.log.splitlines()]
    said = [r"DEBUG 'Bob' in 'math' says 'secret \x1b[2J \ud800'"] if options else []
    first_name = lines[0].split("'")[1]
    assert lines == [
        f"INFO {first_name!r} in 'default' connected",
        f"INFO {first_name!r} in 'default' is now 'Bob'",
        "INFO 'Bob' in 'default' goes to 'math'",
        *said,
        "INFO 'Bob' in 'math' disconnected",
        f"INFO {user!r} in 'default' connected",
        f"INFO {user!r} in 'default' disconnected without a goodbye",
    ]


# A shutdown


async def test_shutdown(start_server: Callable[..., Server], join: Join, connect_raw: ConnectRaw) -> None:
    """All who read are told, and nobody waits for long for those who don't."""
    servers = [start_server(), start_server()]
    rooms = [[await join(server.url, f"member {number}", "math") for number in range(50)] for server in servers]
    echoes = [await connect_raw(server.url, "/echo") for server in servers]
    for server, room in zip(servers, rooms, strict=True):
        for _ in range(2):
            stalled = await connect_raw(server.url, receive_buffer=4096)
            stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
            # Its own confirmations, unread, are what lies between it and the close frame.
            stalled.writer.write(stalled.text(action="chat_message", message="x" * 40_000) * 25)
        for member in room:
            await member.catch_up()

    async def end(member: Member) -> int | None:
        assert [message async for message in member.websocket] == [], "nobody is told who goes"
        return member.websocket.close_code

    ending = asyncio.gather(*[end(member) for room in rooms for member in room])
    for server, signal_number in zip(servers, (signal.SIGINT, signal.SIGTERM), strict=True):
        server.process.send_signal(signal_number)
    assert await asyncio.wait_for(ending, TIMEOUT) == [1001] * 100
    for server, echo in zip(servers, echoes, strict=True):
        opcode, payload = await echo.next_frame()
        assert (opcode, int.from_bytes(payload[:2])) == (8, 1001)
        # Two seconds are what a client gets; the rest is patience with a busy machine.
        assert await asyncio.to_thread(server.process.wait, 8) == 0
        assert "goodbye" not in server.log
        server.stop()


async def test_shutdown_while_clients_come_and_go(start_server: Callable[..., Server], connect_raw: ConnectRaw) -> None:
    """Those who are on the point of coming are told as well, and what others left behind is no trouble."""
    server = start_server()
    stopping = False
    ends: Counter[int | None] = Counter()

    async def come_and_go(session: aiohttp.ClientSession) -> None:
        while not stopping:
            try:
                async with session.ws_connect(f"{server.url}/chat") as websocket:
                    await websocket.receive(TIMEOUT)
                    if stopping:
                        async for _ in websocket:
                            pass
                        ends[websocket.close_code] += 1
            except aiohttp.ClientError:
                ends[None] += 1

    lazy = socket.create_connection(("127.0.0.1", server.port))
    lazy.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")  # and nothing of those 10 bytes
    assert lazy.recv(12) == b"HTTP/1.1 200"
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(come_and_go(session))
        for _ in range(40):
            raw = await connect_raw(server.url)
            names = (raw.text(action="set_nick", nick=f"{number}") for number in range(300))
            raw.writer.write(b"".join(names))
            raw.writer.close()
        stopping = True
        server.process.send_signal(signal.SIGTERM)
    # Patience with a busy machine, again.
    assert await asyncio.to_thread(server.process.wait, 8) == 0
    lazy.close()
    assert set(ends) <= {1001, None}
    server.stop()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_that_comes_twice(start_server: StartServer, signal_number: signal.Signals) -> None:
    """`timeout` and others signal a whole group of processes, in which uv passes its own signal on."""
    server = start_server()
    server.process.send_signal(signal_number)
    time.sleep(0.01)
    server.stop(signal_number)


async def test_second_ctrl_c(start_server: Callable[..., Server], connect_raw: ConnectRaw) -> None:
    """It ends the wait for those who do not answer, and is no error."""
    server = start_server()
    raw = await connect_raw(server.url)
    await raw.hear()
    server.process.send_signal(signal.SIGINT)
    assert (await raw.next_frame())[0] == 8
    server.stop(signal.SIGINT)
