"""The fixtures of the server's tests."""

import functools
import importlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from server import init_app
from tests.helpers import ConnectRaw, Join
from tests.server.chat import Chat


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
