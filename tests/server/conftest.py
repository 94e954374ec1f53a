"""The fixtures of the server's tests."""

import functools
import importlib
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from server import init_app
from tests.helpers import ConnectRaw, Join, run_engine
from tests.server.chat import Chat
from tests.server.processes import Processes


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
async def chat(
    app: web.Application,
    serve: Any,
    join: Join,
    connect_raw: ConnectRaw,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Chat]:
    """The app, served in this process; whatever happens to it, it logs no error."""
    url = await serve(app)
    yield Chat(app, url, functools.partial(join, url), functools.partial(connect_raw, url))
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """The processes of a chat over Redis, none at first."""
    with run_engine(tmp_path / "valkey") as engine:
        monkeypatch.setenv("REDIS_URL", engine.connection_url)
        processes = Processes(engine, tmp_path)
        try:
            yield processes
            for process in processes.started:
                if process.process.poll() != -signal.SIGKILL:
                    process.stop()
        finally:
            for process in processes.started:
                process.process.kill()
                process.process.wait()
