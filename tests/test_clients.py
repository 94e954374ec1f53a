"""What all clients have in common: how they end. Each runs as a process of its own, as people run it."""

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
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
RunMain = Callable[..., Awaitable[str]]

NO_RESPONSE = "no response; is the server running?"
CLOSED = "the server closed the connection"


@pytest.fixture
def start(script: str, start_script: Start) -> Start:
    """Start the script with `await start(url, HANDSHAKE_TIMEOUT=0.1)`, which sets constants of its module."""

    async def start(url: str, shell: str = "", redirect: str = "", **constants: float) -> Script:
        module = script.removesuffix(".py").replace("/", ".")
        settings = "; ".join(f"script.{name} = {value}" for name, value in constants.items())
        code = f"import asyncio, {module} as script; {settings}; asyncio.run(script.main())"
        # aioconsole leaves the standard streams open, which would be a ResourceWarning.
        warnings = "ignore::ResourceWarning" if script == "client.py" else "error"
        surroundings = {"shell": shell, "redirect": redirect, "warnings": warnings}
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


@pytest.fixture
def run_main(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunMain]:
    """Run the script's main() in this process until it fails; `await run_main(url)` returns its sentence.

    To start a process takes longer than most of these tests.
    """
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    reading, writing = os.pipe()  # nothing is ever typed
    with open(reading) as stdin, open(writing, "w"), (tmp_path / "output").open("w", encoding="ascii") as stdout:

        async def run_main(url: str, **constants: float) -> str:
            with monkeypatch.context() as patch:
                patch.setattr(signal, "signal", lambda number, handler: None)
                patch.setattr(sys, "argv", [script, "--url", url])
                patch.setattr(sys, "stdin", stdin)
                patch.setattr(sys, "stdout", stdout)
                for name, value in constants.items():
                    patch.setattr(module, name, value)
                async with asyncio.timeout(TIMEOUT):
                    with pytest.raises(SystemExit) as caught:
                        await module.main()
            stdout.flush()
            return str(caught.value.code).removeprefix(f"{url}: ")

        yield run_main


async def fails(script: Script, url: str) -> str:
    """Wait until it ends, which it has to do with one sentence about the URL; return the rest of the sentence."""
    code, _, errors = await script.end()
    assert (code, errors.count("\n")) == (1, 1), errors
    assert errors.startswith(f"{url}: ")
    return errors.removeprefix(f"{url}: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("signals", "shell"),
    [
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


async def test_signal_that_is_ignored(start: Start, serve: Serve) -> None:
    """With `nohup`, a program goes on when its window is closed."""
    arrived, heard = asyncio.Event(), asyncio.Event()

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        arrived.set()
        await websocket.ping()
        while (await websocket.receive()).type is not web.WSMsgType.CLOSE:
            pass
        heard.set()

    script = await start(await serve(talk), "trap '' HUP;")
    await asyncio.wait_for(arrived.wait(), TIMEOUT)
    script.process.send_signal(signal.SIGHUP)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(heard.wait(), 0.3)
    script.process.send_signal(signal.SIGTERM)
    code, _, errors = await script.end()
    assert (code, errors) == (0, "")


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
    for _ in range(2):  # `timeout` signals a group of processes, in which uv passes its own signal on
        client.process.send_signal(signal.SIGINT)
    ending = asyncio.create_task(client.end())
    async with asyncio.timeout(TIMEOUT):
        while (body := await amy.hear())["action"] != "left":
            pass
    talking.cancel()
    assert body["shame"] is False
    code, _, errors = await ending
    assert (code, errors) == (0, "")


async def test_goodbye_without_a_response(start: Start, serve: Serve) -> None:
    """It is waited for even where messages come faster than they can be printed, but not for ever."""
    arrived = asyncio.Event()

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        arrived.set()
        while True:  # until the client hangs up
            await websocket.send_json({"action": "chat_message", "user": "Bob", "message": "Hello!"})
            await asyncio.sleep(0)

    url = await serve(talk)
    script = await start(url, redirect="> /dev/null", GOODBYE_TIMEOUT=0.5)
    await asyncio.wait_for(arrived.wait(), TIMEOUT)
    script.process.send_signal(signal.SIGINT)
    await asyncio.sleep(0.05)
    script.process.send_signal(signal.SIGINT)  # may not cut the goodbye short
    assert await fails(script, url) == NO_RESPONSE


async def test_signal_during_the_handshake(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        script = await start(f"ws://127.0.0.1:{listener.getsockname()[1]}/")
        connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), TIMEOUT)
        with connection:
            script.process.send_signal(signal.SIGTERM)
            assert await script.end() == (0, "", "")


async def test_server_that_does_not_respond_to_the_handshake(run_main: RunMain) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the system connects, and nobody is there
        assert await run_main(f"ws://127.0.0.1:{listener.getsockname()[1]}/", HANDSHAKE_TIMEOUT=0.1) == NO_RESPONSE


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x83\x00", "opcode=3"),
        (b"\x81\x01\xff", "UTF-8"),
        (b"\x88\x02\x03\xe9", CLOSED),  # close code 1001: it ends by SIGTERM
        (b"", CLOSED),  # not even that: it ends by SIGKILL
    ],
)
async def test_server_that_goes_away(run_main: RunMain, serve: Serve, data: bytes, problem: str) -> None:
    async def talk(websocket: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        transport.write(data) if data else transport.close()
        async for _ in websocket:
            pass

    assert problem in await run_main(await serve(talk))


async def test_address_of_something_else(run_main: RunMain, aiohttp_server: AiohttpServer) -> None:
    assert "404" in await run_main(str((await aiohttp_server(web.Application())).make_url("/chat")))


async def test_address_of_nothing(run_main: RunMain) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        assert await run_main(f"ws://localhost:{taken.getsockname()[1]}/chat") == NO_RESPONSE


@pytest.mark.parametrize("url", ["localhost:8080", "nonsense", "http://[::1", "//localhost", "ftp://localhost"])
async def test_address_that_is_none(run_main: RunMain, url: str, capsys: Any) -> None:
    assert await run_main(url) == "2"  # argparse has said why
    assert repr(url) in capsys.readouterr().err


async def test_output_that_takes_only_ascii(run_main: RunMain, serve: Serve, tmp_path: Path) -> None:
    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        await websocket.send_str('{"action": "chat_message", "user": "Zoë", "message": "1 + 1"}')
        await websocket.close()

    assert await run_main(await serve(talk)) == CLOSED
    assert r"Zo\xeb" in (tmp_path / "output").read_text()


@pytest.mark.parametrize("output", ["closed", "broken"])
async def test_output_that_nobody_reads(start: Start, serve: Serve, output: str) -> None:
    ready = asyncio.Event()

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        await asyncio.wait_for(ready.wait(), TIMEOUT)
        await websocket.send_str('{"action": "chat_message", "user": "Bob", "message": "1 + 1"}')
        await websocket.close()

    url = await serve(talk)
    process = await start(url, redirect=">&-" if output == "closed" else "")
    if output == "broken":
        process.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    ready.set()
    code, _, errors = await process.end()
    assert (code, errors.count("\n")) == (1, 1), errors
