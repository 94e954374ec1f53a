"""The echo example, and how all scripts end: by Ctrl+C, or with a sentence that says why."""

import asyncio
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer
from yarl import URL

import client_echo_example
from server import init_app
from tests.clients.conftest import RunScript, Serve
from tests.clients.screen import busy
from tests.helpers import TIMEOUT, Join, StartScript

BOTS = ("examples/math_client.py", "examples/math_student.py")
SCRIPTS = ("client_echo_example.py", *BOTS)
CLOSED = "ConnectionError: The server closed the connection."
# What no server should send, and what must not harm a bot.
ODD_FRAMES = """\
[]; null; 1; "chat_message"; {}; {"success": true}; {"action": ["join_room"]}; {"action": null}
{"action": "user_list", "users": "odd"}; {"action": "user_list", "users": {}}
{"action": "chat_message", "user": "odd", "message": ["1 + 1"]}; {"action": "left", "user": "odd"}
{"action": "chat_message", "user": "odd", "message": 2}; {"action": "left", "room": "math"}
{"action": "left", "room": "math", "user": "odd", "shame": 1}""".replace("\n", ";").split(";")
ECHO = '{"echo": {"message": "Hello world!"}}'


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    """The path of the script that is tested."""
    return str(request.param)


async def test_echo_example_sends_at_intervals_and_shows_what_comes(
    serve_websocket: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def talk(websocket: web.WebSocketResponse) -> None:
        await websocket.send_str(ECHO)
        assert await websocket.receive_json(timeout=TIMEOUT) == {"message": "Hello world!"}
        await websocket.send_str("not JSON \x1b[2J\u202e é")
        await websocket.receive_json(timeout=TIMEOUT)
        await websocket.send_bytes(b"\xff\x00")

    monkeypatch.setattr(client_echo_example, "INTERVAL", 0.01)
    with pytest.raises(ConnectionError):
        await client_echo_example.main(await serve_websocket(talk))
    lines = capsys.readouterr().out.splitlines()
    sent, received = ([line for line in lines if line[0] == sign] for sign in "><")
    assert sent[:3] == ["> {'message': 'Hello world!'}"] * 3
    assert received == [f"< '{ECHO}'", r"< 'not JSON \x1b[2J\u202e \xe9'", r"< b'\xff\x00'"]


@pytest.mark.parametrize("script", [*SCRIPTS, "client.py"])
async def test_ctrl_c_in_a_busy_room(
    script: str, start_script: StartScript, url: URL, join: Join
) -> None:
    amy = await join(url.origin(), nick="Amy", room="math" if "math" in script else None)
    client = await start_script(script, "--url", url)
    assert await client.line()
    async with busy(amy, "\x1b[2J"):
        while "1b[2J" not in await client.line():
            pass
        client.process.send_signal(signal.SIGINT)
        ending = asyncio.create_task(client.end())
    code, _, errors = await ending
    assert (code, errors) == (0, "")


@pytest.mark.usefixtures("hurry")
async def test_server_that_falls_silent(run_script: RunScript, serve_websocket: Serve) -> None:
    """As if the network were gone: only a ping reveals it."""
    reason = await run_script(await serve_websocket(lambda _: asyncio.Event().wait()))
    assert reason == "ClientError: No PONG received after 0.1 seconds"


async def test_server_that_is_not_there(
    run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        assert f"Cannot connect to host {host} " in await run_script(f"ws://{host}/chat")
        listener.listen()  # now the system accepts the connection, but nobody responds
        timeouts = {10: aiohttp.ClientTimeout(total=0.1)}
        monkeypatch.setattr(aiohttp, "ClientTimeout", lambda total: timeouts[total])
        assert await run_script(f"ws://{host}/chat") == "TimeoutError: "


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x81\x01\xff", "ClientError: Invalid UTF-8 text message"),
        (b"\x88\x02\x03\xe9", CLOSED),
        (b"", CLOSED),  # without a close frame
    ],
)
async def test_server_that_goes_away(
    run_script: RunScript, serve_websocket: Serve, data: bytes, reason: str
) -> None:
    async def talk(websocket: Any) -> None:
        transport = websocket._req.transport
        transport.write(data) if data else transport.close()
        await websocket.receive()

    assert await run_script(await serve_websocket(talk)) == reason


async def test_server_without_a_websocket(run_script: RunScript) -> None:
    responses = {
        "200 OK": "WSServerHandshakeError: 200, ",
        "302 Found\r\nLocation: foo://\x1b[2J\xe9/": r"Error: foo://\x1b[2J\udce9/ - ",
        "404 \x1b[2J\xe9": "WSServerHandshakeError: 404, ",
        "\x1b[2J": r"ClientResponseError: 400, message=",
    }
    heads = iter(responses)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {next(heads)}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        for reason in responses.values():
            assert reason in await run_script(f"ws://{host}:{port}/")


async def test_address_that_is_none(run_script: RunScript) -> None:
    for url in ("localhost:8080", "//localhost", "http://[::1", "ws://a..b"):
        assert "Error: " in await run_script(url)


@pytest.mark.needs("deploy")
@pytest.mark.needs("lint")  # it starts many processes
@pytest.mark.parametrize("script", [*SCRIPTS, "client.py"])
async def test_tls(
    script: str, start_script: StartScript, aiohttp_server: AiohttpServer, tmp_path: Path
) -> None:
    """A certificate of one's own can be trusted, for the name that is in it."""
    certificate = tmp_path / "localhost.pem"  # and its key
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 1"
    command += f" -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {certificate}"
    openssl = await asyncio.create_subprocess_exec(*command.split(), "-out", certificate)
    assert await openssl.wait() == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    port = (await aiohttp_server(await init_app(), ssl=context)).port

    async def connect(host: str, trusted: Any) -> Any:
        url = f"wss://{host}:{port}/chat"
        return await start_script(script, "--url", url, SSL_CERT_FILE=str(trusted))

    for host, trusted, sentence in [
        ("localhost", os.devnull, "certificate verify failed: self-signed"),
        ("127.0.0.1", certificate, "certificate is not valid for '127.0.0.1'"),
    ]:
        code, output, errors = await (await connect(host, trusted)).end()
        assert (code, output) == (1, "")
        assert sentence in errors
    assert await (await connect("localhost", certificate)).line()


@pytest.mark.parametrize("script", BOTS)
@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ('{"echo": {"action": "join_room"}}', "ConnectionError: This is /echo, not /chat."),
        ("not JSON", "JSONDecodeError: "),
        ("[" * 100_000, "RecursionError: "),
    ],
)
@pytest.mark.usefixtures("hurry")
async def test_bot_without_a_chat(
    run_script: RunScript, serve_websocket: Serve, frame: str, reason: str
) -> None:
    """The server does not even answer the close frame."""

    async def talk(websocket: web.WebSocketResponse) -> None:
        await websocket.send_str(frame)
        await asyncio.Event().wait()

    assert (await run_script(await serve_websocket(talk))).startswith(reason)


@pytest.mark.parametrize("script", BOTS)
async def test_bot_that_gets_odd_values(run_script: RunScript, serve_websocket: Serve) -> None:
    async def talk(websocket: web.WebSocketResponse) -> None:
        for frame in ODD_FRAMES:
            await websocket.send_str(frame)

    assert await run_script(await serve_websocket(talk)) == CLOSED
