"""A chat server: one aiohttp app with the WebSocket views /echo and /chat, and a web page at /."""

import argparse
import asyncio
import contextlib
import logging
import re
import socket
import sys
import traceback
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMessage, web

from utils import DELIVERY_RATE, MIN_COST, NAMES, ClientSocket, InvalidRequest, User
from utils import check_name, encode, logger, read_json, receive, send

STATIC = Path(__file__).parent / "static"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a browser may keep the page, but asks whether it has changed
}

OPTIONS = web.AppKey("options", argparse.Namespace)
VIEWS = web.AppKey("views", set["asyncio.Task[None]"])  # the tasks that serve open WebSockets


async def ws_echo(request: web.Request) -> web.WebSocketResponse:
    """Send every JSON value back to the client that sent it."""
    async with open_websocket(request) as websocket:
        async for message in receive(websocket):
            try:
                response = {"echo": read_json(message)}
            except InvalidRequest as error:
                response = {"error": str(error)}
            send(encode(response), [websocket])
    return websocket


async def ws_chat(request: web.Request) -> web.WebSocketResponse:
    """Let a client chat, as a user who is in one room at a time."""
    async with open_websocket(request) as websocket:
        user = User(request.app, websocket)
        send(encode({"action": "connecting", "room": user.room, "user": user.name}), [websocket])
        try:
            user.enter()
            user.broadcast("joined", room=user.room, user=user.name)
            async for message in receive(websocket):
                send(encode(respond(user, message)), [websocket])
        finally:
            user.leave()
            user.broadcast("left", room=user.room, user=user.name, shame=websocket.vanished)
    return websocket


def respond(user: User, message: WSMessage) -> dict[str, Any]:
    """Carry out a request, and return the response: what came of it, or why it is refused."""
    action: str | None = None
    text = ""
    try:
        match read_json(message):
            case {"action": "set_nick" as action, "nick": nick}:
                user.change_nick(check_name(nick))
            case {"action": "join_room" as action, "room": room}:
                user.change_room(check_name(room))
            case {"action": "chat_message" as action, "message": str(text)} if text:
                user.broadcast("chat_message", message=text, user=user.name)
            case {"action": "user_list" as action, "room": room}:
                users = list(user.rooms.get(check_name(room), ()))
                user.websocket.pay(len(users) * MIN_COST / DELIVERY_RATE)
                return {"action": action, "success": True, "room": room, "users": users}
            case {"action": str(action)}:
                raise InvalidRequest("The action is unknown, or a field is missing or wrong.")
            case _:
                raise InvalidRequest("A request is a JSON object with an action.")
    except InvalidRequest as error:
        return {"action": action, "success": False, "message": str(error)}
    return {"action": action, "success": True, "message": text}


@contextlib.asynccontextmanager
async def open_websocket(request: web.Request) -> AsyncIterator[ClientSocket]:
    """Open the WebSocket of a request; close it at the end: with 1001, unless the view returned."""
    if "Origin" in request.headers:
        check_origin(request, request.headers["Origin"])
    websocket = ClientSocket(request)
    try:
        await websocket.prepare(request)
    except (web.HTTPBadRequest, ValueError, ConnectionError):
        # ValueError: the key is not ASCII. ConnectionError: the client has hung up.
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        raise web.HTTPUpgradeRequired(text="Use a WebSocket client.", headers=headers) from None
    websocket.transport.max_size = 4096  # bytes that are read at once; asyncio would read 256 KiB
    request.app[VIEWS].add(request.task)
    code = WSCloseCode.GOING_AWAY
    try:
        yield websocket
        code = WSCloseCode.OK
    finally:
        request.app[VIEWS].discard(request.task)
        await websocket.close(code=code)


async def serve_page(request: web.Request) -> web.FileResponse:
    """Serve the web page, its scripts and its style sheet."""
    check_origin(request, f"http://{request.host.removesuffix(':80')}")
    return web.FileResponse(STATIC / (request.path[1:] or "index.html"), headers=PAGE_HEADERS)


async def serve_health(request: web.Request) -> web.Response:
    """Respond to a proxy that asks whether it may send clients here."""
    return web.Response(text="The chat is open.")


async def shutdown(app: web.Application) -> None:
    """Cancel all views. Each closes its WebSocket, and all wait for their clients together."""
    app["websockets"].clear()  # with no members in the rooms, no "left" is sent
    while views := app[VIEWS].copy():  # again, because a handshake may have been on its way
        for view in views:
            view.cancel()
        await asyncio.wait(views)


async def init_app(argv: Sequence[str] = (), chat: Callable[..., Any] = ws_chat) -> web.Application:
    """Return the app; argv holds options, as `python -m aiohttp.web` passes them."""
    app = web.Application()
    with warnings.catch_warnings(action="ignore", category=web.NotAppKeyWarning):
        app["websockets"] = defaultdict(dict)
    app[NAMES] = defaultdict[str, set[str]](set)
    app[OPTIONS] = parse_arguments(argv)
    app[VIEWS] = set()
    for path, view in (("/echo", ws_echo), ("/chat", chat), ("/health", serve_health)):
        app.router.add_get(path, view, allow_head=False)
    for name in ("", "chat.js", "connection.js", "log.js", "chat.css"):
        app.router.add_get(f"/{name}", serve_page)
    app.on_shutdown.append(shutdown)
    return app


# Not for the first reading: which pages may connect, the command line, and the log

# Host and Origin agree in DNS rebinding, too: an attacker points a name of their own at this
# machine. It can't be an IP address, a name without a dot, or one that is not in public DNS.
PRIVATE_NAME = re.compile(r"\[.*\]|[\d.]+|[^.]*|.+\.(localhost|local|lan|internal|home\.arpa|test)")


def check_origin(request: web.Request, origin: str) -> None:
    """Raise HTTPForbidden for a page of another site: it could chat in the name of its reader."""
    allowed, host = request.app[OPTIONS].allow_origin, request.host.lower()
    name = re.sub(r":\d*$", "", host).removesuffix(".")
    own_names = [socket.gethostname().lower(), *re.findall("//([^:/ ]+)", " ".join(allowed))]
    own = f"http://{host.removesuffix(':80')}", f"https://{host.removesuffix(':443')}"
    is_own = origin.lower() in own and (name in own_names or PRIVATE_NAME.fullmatch(name))
    if not is_own and origin.lower() not in allowed:
        shown = origin.encode(errors="replace").decode()[:100]
        text = f"To let pages of {shown} connect, start the server with --allow-origin {shown}"
        logger.info("Refused a page. %r", text)
        raise web.HTTPForbidden(text=text)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exit with a sentence if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", default=8080, type=int, help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="log what users say, too")
    sites = "let the pages of a site connect, such as https://example.org (may be repeated)"
    parser.add_argument("--allow-origin", default=[], action="append", help=sites)
    options = parser.parse_args(argv)
    options.allow_origin = [site.lower().rstrip("/") for site in options.allow_origin]
    return options


class LogFilter(logging.Filter):
    """Cuts an error that strangers cause in other code to one line, and drops it if it repeats."""

    last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        _, error, trace = record.exc_info or (None, None, None)
        modules = {frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(trace)}
        if not error or modules & {"__main__", "server", "utils"}:
            return True
        line, self.last = self.last, f"{record.getMessage()}: {error!r}"[:300]
        record.msg, record.args, record.exc_info = self.last, None, None
        return line != self.last


def main(init_app: Callable[..., Coroutine[Any, Any, web.Application]] = init_app) -> None:
    """Serve until Ctrl+C or SIGTERM."""
    app = asyncio.run(init_app(sys.argv[1:]))
    host, port = app[OPTIONS].host, app[OPTIONS].port
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger().handlers[0].addFilter(LogFilter())
    logger.setLevel(logging.DEBUG if app[OPTIONS].verbose else logging.INFO)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in a pipe, too
    try:  # at the shutdown, running page downloads get half a second
        web.run_app(app, host=host, port=port, access_log=None, shutdown_timeout=0.5)
    except (OSError, OverflowError, UnicodeError) as error:
        sys.exit(f"Cannot listen on --host {host} --port {port}: {str(error).rstrip('.')}.")


if __name__ == "__main__":
    main()
