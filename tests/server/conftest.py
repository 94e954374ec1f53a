"""The fixtures of the server's tests."""

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

import utils
from tests.helpers import Join, Server, valkey_server
from tests.server.helpers import Chat

REDIS = pytest.mark.needs("redis")


@pytest.fixture(params=["server", pytest.param("examples.server_redis", marks=REDIS)])
async def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> web.Application:
    """The plain server, and the one whose rooms are in Redis: it is the same chat."""
    if request.param == "examples.server_redis":
        url = request.getfixturevalue("engine")
        importlib.import_module("redis").Redis.from_url(url).flushall()
        monkeypatch.setenv("REDIS_URL", url)
    app = importlib.import_module(request.param).init_app()
    return app if isinstance(app, web.Application) else await app


@pytest.fixture
async def chat(
    app: web.Application, serve: Any, join: Join, monkeypatch: pytest.MonkeyPatch
) -> Chat:
    """The app, served in this process to clients that may hurry."""
    monkeypatch.setattr(utils, "MAX_RATE", 2**40)
    url = await serve(app)
    return Chat(app, url, functools.partial(join, url))


@pytest.fixture
def own_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The Valkey server of the processes that start_server() starts from here on."""
    with valkey_server() as engine:
        monkeypatch.setenv("REDIS_URL", engine.connection_url)
        monkeypatch.setattr(Server, "script", ("-m", "examples.server_redis"))
        yield engine


@pytest.fixture
def redis(own_engine: Any) -> Iterator[Any]:
    """A connection to own_engine."""
    url = own_engine.connection_url
    with importlib.import_module("redis").Redis.from_url(url, decode_responses=True) as redis:
        yield redis


@pytest.fixture(params=["server", pytest.param("server_redis", marks=REDIS)])
def start(request: pytest.FixtureRequest) -> Any:
    """Start plain servers, or processes over Redis."""
    if request.param == "server_redis":
        request.getfixturevalue("own_engine")
    return request.getfixturevalue("start_server")
