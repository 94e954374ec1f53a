"""The server as people run it, a process of its own, and the clients that strangers bring along."""

import asyncio
import importlib.util
import logging
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp.http_exceptions import BadStatusLine

from server import is_our_error
from tests.conftest import ROOT, TIMEOUT, UNWANTED, Member, RawClient, Server, eventually

Join = Callable[..., Awaitable[Member]]
ConnectRaw = Callable[..., Awaitable[RawClient]]

needs_bench = pytest.mark.skipif(
    not (importlib.util.find_spec("gunicorn") and importlib.util.find_spec("websockets")),
    reason="gunicorn and websockets come with `uv run --group bench pytest`",
)


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


@needs_bench
async def test_command_line_of_websockets(server: Server, join: Join) -> None:
    witness = await join(server.url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "websockets", f"ws://127.0.0.1:{server.port}/chat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    user = (await witness.hear())["user"]
    process.stdin.write(b'{"action": "chat_message", "message": "hello"}\n')
    await process.stdin.drain()
    assert await witness.hear() == {"action": "chat_message", "message": "hello", "user": user}
    await witness.ask(action="chat_message", message="goodbye")
    process.stdin.close()
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert f'{{"action": "connecting", "room": "default", "user": "{user}"}}' in output.decode()
    assert '{"action": "chat_message", "success": true, "message": "hello"}' in output.decode()
    assert await witness.hear() == {"action": "left", "room": "default", "user": user, "shame": False}


@pytest.mark.parametrize("said_before", [0, 1, 100])
async def test_goodbye_counts_even_if_the_client_hangs_up_at_once(
    server: Server, join: Join, connect_raw: ConnectRaw, said_before: int
) -> None:
    witness, raw = await join(server.url), await connect_raw(server.url)
    user = (await raw.hear())["user"]
    said = [raw.text(action="chat_message", message=str(number)) for number in range(said_before)]
    raw.writer.write(b"".join([*said, raw.frame(8, b"")]))
    raw.writer.close()
    assert await witness.hear() == {"action": "joined", "room": "default", "user": user}
    for number in range(said_before):
        assert await witness.hear() == {"action": "chat_message", "message": str(number), "user": user}
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
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_request_that_is_no_http(server: Server, nonsense: bytes) -> None:
    """Nobody can fill the log with tracebacks."""
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as plain:
        plain.sendall(nonsense)
        assert b" 400 " in plain.recv(100)
    assert " ERROR " not in server.log


COMMANDS = {
    "aiohttp": [
        *(
            "-m",
            "aiohttp.web",
            "-H",
            "127.0.0.1",
            "-P",
            "{port}",
            "server:init_app",
            "--allow-origin",
            "http://x.example",
        )
    ],
    "gunicorn": [
        *("-m", "gunicorn", "server:init_app", "--worker-class", "aiohttp.GunicornWebWorker", "-b", "127.0.0.1:{port}")
    ],
}


@pytest.mark.parametrize("name", ["aiohttp", pytest.param("gunicorn", marks=needs_bench)])
async def test_other_ways_to_run_it(name: str, unused_tcp_port: int, join: Join, tmp_path: Any) -> None:
    arguments = [argument.format(port=unused_tcp_port) for argument in COMMANDS[name]]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log)  # noqa: ASYNC220
        try:
            await eventually(lambda: listens(unused_tcp_port))
            bob = await join(f"http://127.0.0.1:{unused_tcp_port}", "Bob", "math")
            answer = {"action": "user_list", "success": True, "room": "math", "users": ["Bob"]}
            assert await bob.ask(action="user_list", room="math") == answer
            process.send_signal(signal.SIGTERM)
            message = await bob.websocket.receive(TIMEOUT)
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
            assert await asyncio.to_thread(process.wait, TIMEOUT) == 0
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        assert not UNWANTED.search(log.read())


def listens(port: int) -> bool:
    with socket.socket() as plain:
        return plain.connect_ex(("127.0.0.1", port)) == 0


def run_server(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "server.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)


def test_port_that_is_taken(server: Server) -> None:
    ended = run_server("--host", "127.0.0.1", "--port", str(server.port))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"Cannot listen on 127.0.0.1:{server.port}: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [("--port", "99999"), ("--host", "256.0.0.1"), ("--host", "a..b")])
def test_address_that_is_none(options: tuple[str, str]) -> None:
    ended = run_server(*options)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.match(r"Cannot listen on .*\.\n$", ended.stderr)


@pytest.mark.parametrize("options", [("--port", "http"), ("--frob",)])
def test_options_that_are_wrong(options: tuple[str, ...]) -> None:
    ended = run_server(*options)
    assert ended.returncode == 2
    assert re.search(r"server\.py: error: .*\n$", ended.stderr)
    assert "Traceback" not in ended.stderr


def test_our_own_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    logging.error("about nothing")
    for error in (ValueError(), BadStatusLine()):
        logging.error("about an exception", exc_info=error)
    assert list(map(is_our_error, caplog.records)) == [True, True, False]


async def test_allowed_origin(start_server: Callable[..., Server]) -> None:
    server = start_server("--allow-origin", "https://one.example")
    async with aiohttp.ClientSession() as session:
        await (await session.ws_connect(f"{server.url}/echo", origin="https://one.example")).close()


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
        f"INFO {first_name!r} joined 'default'",
        f"INFO {first_name!r} in 'default' is now 'Bob'",
        "INFO 'Bob' went from 'default' to 'math'",
        *said,
        "INFO 'Bob' left 'math'",
        f"INFO {user!r} joined 'default'",
        f"INFO {user!r} left 'default' without a goodbye",
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
            except aiohttp.WSServerHandshakeError as error:
                ends[error.status] += 1
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
    assert set(ends) <= {1001, 503, None}
    server.stop()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_comes_twice(start_server: Callable[..., Server], signal_number: signal.Signals) -> None:
    """`timeout` and others signal a whole group of processes, in which uv passes its own signal on."""
    for _ in range(3):
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
