"""What all clients have in common: how they end. Most of it is seen in this process, where main() gets real signals."""

import asyncio
import contextlib
import importlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer
from yarl import URL

from server import init_app
from tests.helpers import TIMEOUT, Join, StartScript

# What each shows when it has entered, then of a text with an escape sequence, then of a sum; Amy says both.
SCRIPTS = {
    "client_echo_example.py": ("> {'message': 'Hello world!'}", r"\\u001b[2J \xe9", "6 * 7"),
    "client.py": ("* In default: Amy, User", r"Amy: \x1b[2J é", "Amy: 6 * 7"),
    "examples/math_student.py": ("'MathStudent': ", r"'Amy': '\x1b[2J \xe9'", "'Amy': '6 * 7'"),
    "examples/math_client.py": ("  'MathBot'", r"'Amy': '\x1b[2J \xe9'", "> '@Amy: 42'"),
}
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
NO_RESPONSE = "URL: no response; is the server running?"
CLOSED = "URL: the server closed the connection"

Talk = Callable[[web.WebSocketResponse, asyncio.Transport], Awaitable[None]]
Serve = Callable[[Talk], Awaitable[str]]
RunMain = Callable[..., Coroutine[Any, Any, str]]
Output = Callable[[], str]


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    """The path of the script that is tested."""
    return str(request.param)


@pytest.fixture
def serve(aiohttp_server: AiohttpServer) -> Serve:
    """Start a server with `url = await serve(talk)`, which lets clients in and leaves the rest to `talk`."""

    async def serve(talk: Talk) -> str:
        async def view(request: web.Request) -> web.WebSocketResponse:
            websocket = web.WebSocketResponse(autoclose=False)
            await websocket.prepare(request)
            await websocket.send_json(
                {"action": "connecting", "room": "default", "user": "User1000"}
            )
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
def output(tmp_path: Path) -> Output:
    """Return what run_main has printed and flushed."""
    return (tmp_path / "output").read_text


@pytest.fixture
def run_main(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunMain]:
    """Run the script with `await run_main(url, "--nick", "Bob", INTERVAL=0.1)`, which sets a constant of its module.

    Return the sentence (with URL for the URL) or the code with which it fails, and nothing if it does not. Signals do
    what it says, or nothing.
    """
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    reading, writing = os.pipe()  # nothing is ever typed
    with (
        open(reading) as stdin,
        open(writing, "w"),
        (tmp_path / "output").open("w", encoding="ascii") as stdout,
    ):

        async def run_main(
            url: str, *options: str, stdout: Any = stdout, **constants: float
        ) -> str:
            sentence = ""
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", [script, "--url", url, *options])
                patch.setattr(sys, "stdin", stdin)
                patch.setattr(sys, "stdout", stdout)
                for name, value in constants.items():
                    patch.setattr(module, name, value)
                async with asyncio.timeout(TIMEOUT) as limit:
                    try:
                        await module.main()
                    except SystemExit as end:
                        sentence = str(end.code or "")
            assert not limit.expired()  # it takes that for a signal
            return sentence.replace(url, "URL", 1)

        yield run_main
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("way", ["Ctrl+C", "broken pipe"])
async def test_end_in_a_busy_room(
    script: str,
    way: str,
    start_script: StartScript,
    aiohttp_server: AiohttpServer,
    join: Join,
) -> None:
    """As a process: only there it is seen what the interpreter says in the end."""
    url = (await aiohttp_server(await init_app())).make_url("/")
    amy = await join(url, nick="Amy", room="math" if "math" in script else None)
    client = await start_script(script, "--url", url / "chat")

    async def say(text: str) -> None:
        await amy.websocket.send_json({"action": "chat_message", "message": text})

    async def talk() -> None:
        while True:
            await say("Hello!")
            await asyncio.sleep(0.0005)

    async def shows(text: str) -> None:
        async with asyncio.timeout(TIMEOUT):
            while text not in (line := await client.line()):
                assert line

    for shown, text in zip(SCRIPTS[script], ["\x1b[2J é", "6 * 7", "Hi!"], strict=True):
        await shows(shown)  # nothing follows that would flush it
        await say(text)
    talking = asyncio.create_task(talk())
    await shows("Hello!")
    if way == "Ctrl+C":
        for _ in range(
            2
        ):  # `timeout` signals a group of processes, in which uv passes its own signal on
            client.process.send_signal(signal.SIGINT)
    else:
        client.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    ending = asyncio.create_task(client.end())
    async with asyncio.timeout(TIMEOUT):
        while (body := await amy.hear())["action"] != "left":
            pass
    talking.cancel()
    assert body["shame"] is False
    code, _, errors = await ending
    assert (code, errors) == (
        (0, "") if way == "Ctrl+C" else (1, f"{url / 'chat'}: [Errno 32] Broken pipe\n")
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_signal_is_a_goodbye(run_main: RunMain, serve: Serve, number: signal.Signals) -> None:
    """If it is not ignored, as SIGHUP is with `nohup`, and SIGINT in the background of a shell script."""
    close_codes = []
    # In a moment, nothing but the signal wakes the event loop up.
    sender = threading.Timer(0.02, signal.pthread_kill, (threading.get_ident(), number))

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        sender.start()
        async for _message in websocket:
            pass
        close_codes.append(websocket.close_code)

    for other in SIGNALS - {number}:
        signal.signal(other, signal.SIG_IGN)
    try:
        assert await run_main(await serve(talk)) == ""
    finally:
        sender.join()  # later, it would end the tests
    assert close_codes == [1000]
    assert {signal.getsignal(other) for other in SIGNALS - {number}} == {signal.SIG_IGN}


async def test_goodbye_without_a_response(run_main: RunMain, serve: Serve) -> None:
    """It is waited for even where messages come faster than they can be printed, but not for ever."""

    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        for turn in itertools.count():  # until the client hangs up
            for _message in range(100):
                await websocket.send_json(
                    {"action": "chat_message", "user": "Bob", "message": "Hello!"}
                )
            await asyncio.sleep(0)
            if turn in (10, 20):  # the second one may not cut the goodbye short
                signal.raise_signal(signal.SIGINT)

    # Since Python 3.13, a group that is cancelled says nothing of what else fails.
    assert await run_main(await serve(talk), GOODBYE_TIMEOUT=0.1) in (NO_RESPONSE, "")


async def test_handshake_without_a_response(run_main: RunMain) -> None:
    with socket.socket() as listener:
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        url = f"ws://localhost:{listener.getsockname()[1]}/chat"
        assert await run_main(url) == NO_RESPONSE
        listener.listen()  # now the system connects, and nobody is there
        running = asyncio.create_task(run_main(url))
        connection, _ = await asyncio.wait_for(
            asyncio.get_running_loop().sock_accept(listener), TIMEOUT
        )
        with connection:
            signal.raise_signal(signal.SIGTERM)
            assert await running == ""
        assert await run_main(url, HANDSHAKE_TIMEOUT=0.05) == NO_RESPONSE


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x83\x00", "opcode=3"),
        (b"\x81\x01\xff", "UTF-8"),
        (b"\x88\x02\x03\xe9", CLOSED),  # close code 1001: it ends by SIGTERM
        (b"", CLOSED),  # not even that: it ends by SIGKILL
    ],
)
async def test_server_that_goes_away(
    run_main: RunMain, serve: Serve, data: bytes, problem: str
) -> None:
    async def talk(websocket: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        transport.write(data) if data else transport.close()
        async for _ in websocket:
            pass

    assert problem in await run_main(await serve(talk))


async def test_server_that_falls_silent(
    run_main: RunMain, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the network is gone: nobody hears of it but by asking, here 300 times as often."""
    connect, is_over = aiohttp.ClientSession.ws_connect, asyncio.Event()

    def connect_impatiently(session: aiohttp.ClientSession, url: URL, heartbeat: float) -> Any:
        return connect(session, url, heartbeat=heartbeat / 300)

    async def talk(_: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        transport.pause_reading()
        await is_over.wait()
        transport.abort()

    monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", connect_impatiently)
    assert (
        await run_main(await serve(talk), GOODBYE_TIMEOUT=0.1)
        == "URL: No PONG received after 0.05 seconds"
    )
    is_over.set()


async def test_address_of_something_else(run_main: RunMain, aiohttp_server: AiohttpServer) -> None:
    assert "404" in await run_main(str((await aiohttp_server(web.Application())).make_url("/chat")))


@pytest.mark.parametrize(
    "url", ["localhost:8080", "//localhost", "ftp://localhost", "http://[::1", "ws://"]
)
async def test_address_that_is_none(run_main: RunMain, url: str, capsys: Any) -> None:
    assert await run_main(url) == "2"  # argparse has said why
    assert repr(url) in capsys.readouterr().err


async def test_output_that_takes_only_ascii_or_nothing(
    script: str, run_main: RunMain, serve: Serve, output: Output
) -> None:
    async def talk(websocket: web.WebSocketResponse, _: asyncio.Transport) -> None:
        await websocket.send_str('{"action": "chat_message", "user": "Zoë", "message": "1 + 1"}')
        await websocket.close()

    url = await serve(talk)
    assert await run_main(url) == CLOSED
    assert r"Zo\xeb" in output()
    needed = "The chat needs a standard input and output; /dev/null will do."
    assert await run_main(url, stdout=None) == (needed if script == "client.py" else CLOSED)
