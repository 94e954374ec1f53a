"""What all clients have in common: how they end. Each runs as a process of its own, as people run it."""

import asyncio
import contextlib
import importlib
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer

from server import init_app
from tests.conftest import TIMEOUT, Member, RawClient, Script

SCRIPTS = ["client_echo_example.py", "client.py", "examples/math_student.py", "examples/math_client.py"]
pytestmark = pytest.mark.parametrize("script", SCRIPTS)

Start = Callable[..., Awaitable[Script]]
Talk = Callable[[web.WebSocketResponse, asyncio.Transport], Awaitable[None]]
Serve = Callable[[Talk], Awaitable[str]]

NO_RESPONSE = "no response; is the server running?"
CLOSED = "the server closed the connection"


@pytest.fixture
def start(script: str, start_script: Start) -> Start:
    """Start the script with `await start(url, HANDSHAKE_TIMEOUT=0.1)`, which sets constants of its module."""

    async def start(
        url: str, shell: str = "", redirect: str = "", encoding: str = "utf-8", **constants: float
    ) -> Script:
        module = script.removesuffix(".py").replace("/", ".")
        settings = "; ".join(f"script.{name} = {value}" for name, value in constants.items())
        code = f"import asyncio, {module} as script; {settings}; asyncio.run(script.main())"
        # aioconsole leaves the standard streams open, which would be a ResourceWarning.
        warnings = "ignore::ResourceWarning" if script == "client.py" else "error"
        surroundings = {"shell": shell, "redirect": redirect, "warnings": warnings, "PYTHONIOENCODING": encoding}
        return await start_script(*(["-c", code] if constants else [script]), "--url", url, **surroundings)

    return start


@pytest.fixture
def serve(aiohttp_server: AiohttpServer) -> Serve:
    """Start a server with `url = await serve(talk)`, which lets clients in and leaves the rest to `talk`."""

    async def serve(talk: Talk) -> str:
        async def view(request: web.Request) -> web.WebSocketResponse:
            websocket = web.WebSocketResponse(autoclose=False)
            await websocket.prepare(request)
            await websocket.send_json({"action": "connecting", "room": "default", "user": "User1000"})
            await websocket.receive()  # all clients say something at first; now it is ready
            assert request.transport
            with contextlib.suppress(ConnectionResetError):
                await talk(websocket, request.transport)
            return websocket

        app = web.Application()
        app.router.add_get("/", view)
        return str((await aiohttp_server(app)).make_url("/"))

    return serve


async def fails(script: Script, url: str) -> str:
    """Wait until it ends, which it has to do with one sentence about the URL; return the rest of the sentence."""
    code, _, errors = await script.end()
    assert (code, errors.count("\n")) == (1, 1), errors
    assert errors.startswith(f"{url}: ")
    return errors.removeprefix(f"{url}: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("signals", "shell"),
    [
        ([signal.SIGINT, signal.SIGINT], ""),  # `timeout` signals a group of processes, in which uv passes its own on
        ([signal.SIGTERM, signal.SIGTERM], ""),
        ([signal.SIGHUP], ""),
        ([signal.SIGTERM], "trap '' INT;"),  # as a shell script starts what it runs in the background
    ],
)
async def test_signal_is_a_goodbye(start: Start, serve: Serve, signals: list[signal.Signals], shell: str) -> None:
    arrived, close_code = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        arrived.set()
        async for _message in websocket:
            pass
        close_code.set_result(websocket.close_code)

    script = await start(await serve(talk), shell)
    await asyncio.wait_for(arrived.wait(), TIMEOUT)
    for number in signals:
        script.process.send_signal(number)
    code, _, errors = await script.end()
    assert (code, errors) == (0, "")
    assert await asyncio.wait_for(close_code, TIMEOUT) == 1000


async def test_goodbye_in_a_busy_room(
    script: str,
    start: Start,
    aiohttp_server: AiohttpServer,
    join: Callable[..., Awaitable[Member]],
    connect_raw: Callable[..., Awaitable[RawClient]],
) -> None:
    url = (await aiohttp_server(await init_app())).make_url("/")
    room = "math" if "math" in script else "default"
    bob = await connect_raw(url)
    bob.writer.write(RawClient.text(action="join_room", room=room))
    amy = await join(url, nick="Amy")
    await amy.ask(action="join_room", room=room)

    async def talk() -> None:
        while True:
            bob.writer.write(RawClient.text(action="chat_message", message="Hello!"))
            await bob.reader.read(1000)
            await asyncio.sleep(0.0005)

    talking = asyncio.create_task(talk())
    client = await start(f"{url}chat")
    assert await client.line()
    client.process.send_signal(signal.SIGINT)
    ending = asyncio.create_task(client.end())
    async with asyncio.timeout(TIMEOUT):
        while (body := await amy.hear())["action"] != "left":
            pass
    talking.cancel()
    assert body["shame"] is False
    code, _, errors = await ending
    assert (code, errors) == (0, "")


@pytest.mark.parametrize("busy", [False, True])
async def test_goodbye_without_a_response(start: Start, serve: Serve, busy: bool) -> None:
    """It is waited for even where messages come faster than they can be printed, but not for ever."""
    arrived, heard, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        arrived.set()
        while busy:
            await websocket.send_json({"action": "chat_message", "user": "Bob", "message": "Hello!"})
            await asyncio.sleep(0)
        while (await websocket.receive()).type is not web.WSMsgType.CLOSE:
            pass
        heard.set()
        await asyncio.wait_for(ended.wait(), TIMEOUT)

    url = await serve(talk)
    script = await start(url, redirect="> /dev/null", GOODBYE_TIMEOUT=0.5)
    await asyncio.wait_for(arrived.wait(), TIMEOUT)
    script.process.send_signal(signal.SIGINT)
    if not busy:
        await asyncio.wait_for(heard.wait(), TIMEOUT)
    script.process.send_signal(signal.SIGINT)  # may not cut the goodbye short
    assert await fails(script, url) == NO_RESPONSE
    ended.set()


@pytest.mark.parametrize("signalled", [False, True])
async def test_server_that_does_not_respond_to_the_handshake(start: Start, signalled: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        script = await (start(url) if signalled else start(url, HANDSHAKE_TIMEOUT=0.1))
        connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), TIMEOUT)
        with connection:
            if signalled:
                script.process.send_signal(signal.SIGTERM)
                assert await script.end() == (0, "", "")
            else:
                assert await fails(script, url) == NO_RESPONSE


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x83\x00", "opcode=3"),
        (b"\x81\x01\xff", "UTF-8"),
        (b"\x88\x02\x03\xe9", CLOSED),  # close code 1001: it ends by SIGTERM
        (b"", CLOSED),  # not even that: it ends by SIGKILL
    ],
)
async def test_server_that_goes_away(start: Start, serve: Serve, data: bytes, problem: str) -> None:
    async def talk(websocket: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        transport.write(data) if data else transport.close()
        async for _ in websocket:
            pass

    url = await serve(talk)
    assert problem in await fails(await start(url), url)


async def test_address_of_something_else(start: Start, aiohttp_server: AiohttpServer) -> None:
    url = str((await aiohttp_server(web.Application())).make_url("/chat"))
    assert "404" in await fails(await start(url), url)


async def test_address_of_nothing(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"ws://localhost:{taken.getsockname()[1]}/chat"
        assert await fails(await start(url), url) == NO_RESPONSE


@pytest.mark.parametrize("url", ["localhost:8080", "nonsense", "http://[::1", "//localhost", "ftp://localhost"])
async def test_address_that_is_none(script: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--url", url])
    with pytest.raises(SystemExit, match="2"):
        await importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
    assert repr(url) in capsys.readouterr().err


@pytest.mark.parametrize("output", ["ASCII", "closed", "broken"])
async def test_output_that_does_not_take_everything(script: str, start: Start, serve: Serve, output: str) -> None:
    ready = asyncio.Event()

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        await asyncio.wait_for(ready.wait(), TIMEOUT)
        await websocket.send_str('{"action": "chat_message", "user": "Zoë", "message": "1 + 1"}')
        await websocket.close()

    url = await serve(talk)
    process = await start(url, redirect=">&-" if output == "closed" else "", encoding="ascii")
    if output == "broken":
        process.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    ready.set()
    code, printed, errors = await process.end()
    assert (code, errors.count("\n")) == (1, 1), errors
    if output == "ASCII":
        assert errors == f"{url}: {CLOSED}\n"
        assert r"Zo\xeb" in printed
