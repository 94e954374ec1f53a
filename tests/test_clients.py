"""What all client scripts have in common: they meet servers and surroundings that misbehave, each as a process."""

import asyncio
import base64
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import ROOT, TIMEOUT, UNWANTED, Server

SCRIPTS = ["client_echo_example.py", "client.py", "examples/math_student.py", "examples/math_client.py"]
# Runs a script whose timeouts are so many times as short.
HURRY = """
import aiohttp, asyncio, os, runpy, sys
ClientTimeout, timeout, hurry = aiohttp.ClientTimeout, asyncio.timeout, int(os.environ["HURRY"])
aiohttp.ClientTimeout = lambda seconds: ClientTimeout(seconds / hurry)
asyncio.timeout = lambda seconds: timeout(seconds and seconds / hurry)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


async def run(script: str, url: str, shell: str = "", **environment: str) -> tuple[str, str]:
    """Run a script until it ends, which it has to do with an error; return its output and its one sentence."""
    # aioconsole leaves the standard streams open, which would be a ResourceWarning.
    warnings = "ignore::ResourceWarning" if script == "client.py" else "error"
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-W", warnings, "-c", HURRY, str(ROOT / script)]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--url",
        url,
        stdin=subprocess.DEVNULL if script != "client.py" else subprocess.PIPE,  # where nobody types anything
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "HURRY": "1", **environment},
    )
    try:
        assert process.stdout
        assert process.stderr
        output, errors, code = await asyncio.wait_for(
            asyncio.gather(process.stdout.read(), process.stderr.read(), process.wait()), TIMEOUT
        )
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        elif process.stdin:
            process.stdin.close()
    assert code == 1, errors.decode()
    assert errors.count(b"\n") == 1, errors.decode()
    assert not UNWANTED.search(errors.decode())
    assert errors.decode().startswith(f"{url}: ")
    return output.decode(), errors.decode().removeprefix(f"{url}: ")


async def run_all(url: str, **environment: str) -> list[str]:
    """Run all scripts at once; return their sentences."""
    endings = await asyncio.gather(*(run(script, url, **environment) for script in SCRIPTS))
    return [sentence for _, sentence in endings]


async def test_server_that_does_not_answer_the_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the system connects, and nobody is there
        sentences = await run_all(f"ws://127.0.0.1:{listener.getsockname()[1]}/", HURRY="50")
    assert sentences == ["the server does not answer.\n"] * 4


async def test_server_that_does_not_answer_a_request(aiohttp_server: Any) -> None:
    """The chat from a terminal needs to know which answer belongs to which request."""

    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        if request.path == "/welcome":
            await websocket.send_json({"action": "connecting", "room": "default", "user": "User1000"})
        async for _ in websocket:
            pass
        return websocket

    app = web.Application()
    app.add_routes([web.get("/welcome", view), web.get("/silent", view)])
    url = (await aiohttp_server(app)).make_url("/")
    endings = await asyncio.gather(*(run("client.py", str(url / path), HURRY="50") for path in ("welcome", "silent")))
    assert [sentence for _, sentence in endings] == ["the server does not answer.\n"] * 2


@pytest.mark.parametrize(("data", "problem"), [(b"\x83\x00", "opcode=3"), (b"\x81\x01\xff", "UTF-8")])
async def test_server_that_sends_a_broken_frame(data: bytes, problem: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        (key,) = re.findall(r"Sec-WebSocket-Key: (\S+)", request)
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + data)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        sentences = await run_all(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert len(set(sentences)) == 1
    assert problem in sentences[0]


@pytest.mark.parametrize("url", ["localhost:8080", "nonsense", "http://[::1", "//localhost"])
async def test_address_that_is_none(url: str) -> None:
    assert await run_all(url) == ["this is not the address of a WebSocket.\n"] * 4


async def test_address_of_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        sentences = await run_all(f"ws://127.0.0.1:{port}/")
    assert len(set(sentences)) == 1
    assert sentences[0].startswith(f"Cannot connect to host 127.0.0.1:{port}")


async def test_address_of_something_else(server: Server) -> None:
    sentences = await run_all(f"{server.url}/nowhere")
    assert len(set(sentences)) == 1
    assert "404" in sentences[0]


@pytest.fixture
async def url_of_a_short_talk(aiohttp_server: Any) -> str:
    """The address of a server that says something, with letters that are not in ASCII, and goes."""

    async def view(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_str('{"action": "connecting", "room": "default", "user": "User1000"}')
        await websocket.send_str('{"action": "chat_message", "user": "Zoë", "message": "1 + 1"}')
        await websocket.close()
        return websocket

    app = web.Application()
    app.add_routes([web.get("/", view)])
    return str((await aiohttp_server(app)).make_url("/"))


async def test_output_that_takes_only_ascii(url_of_a_short_talk: str, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(4)]
    runs = (
        run(script, url_of_a_short_talk, f"> {file}", PYTHONIOENCODING="ascii")
        for script, file in zip(SCRIPTS, files, strict=True)
    )
    assert await asyncio.gather(*runs) == [("", "the server closed the connection.\n")] * 4
    assert all(r"Zo\xeb" in file.read_text() for file in files)


async def test_output_that_is_closed(url_of_a_short_talk: str) -> None:
    runs = (run(script, url_of_a_short_talk, ">&-") for script in SCRIPTS if script != "client.py")
    assert await asyncio.gather(*runs) == [("", "the server closed the connection.\n")] * 3


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_that_comes_twice(server: Server, signal_number: signal.Signals) -> None:
    """`timeout` and others signal a whole group of processes, in which uv passes its own signal on."""

    async def leave(script: str) -> None:
        path = "echo" if "echo" in script else "chat"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, ROOT / script, "--url", f"{server.url}/{path}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stdout
            await asyncio.wait_for(process.stdout.readline(), TIMEOUT)
            process.send_signal(signal_number)
            process.send_signal(signal_number)
            code = await asyncio.wait_for(process.wait(), TIMEOUT)
        finally:
            if process.returncode is None:
                process.kill()
            _, errors = await process.communicate()
        assert errors == b""
        assert code in (0, -signal_number)  # the second may find a Python that is ending already

    await asyncio.gather(*map(leave, SCRIPTS))
