"""A chat server: one aiohttp app with the WebSocket views /echo and /chat, and a web page at /."""

import signal

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl+C ends it without a word while the rest is imported

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import re
import socket
import sys
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web
from aiohttp.http import HttpProcessingError

from utils import (
    UNFLUSHED,
    ClientSocket,
    InvalidRequest,
    User,
    change_nick,
    change_room,
    encode,
    enter,
    leave,
)
from utils import logger, pick_name, read_json, read_request, receive, retrieve_users

PAGE_TIMEOUT = 0.5  # seconds, at the shutdown, for those who are just fetching the page
# No more than a browser sends to this app: otherwise, headers that never end could fill the memory.
LIMITS = {"max_line_size": 2048, "max_field_size": 4096, "max_headers": 36}

STATIC = Path(__file__).parent / "static"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a browser may keep the page, but asks each time whether it is still the newest
}

OPTIONS = web.AppKey("options", argparse.Namespace)
VIEWS = web.AppKey("views", set["asyncio.Task[object]"])  # that run just now

View = Callable[[web.Request], Awaitable[web.StreamResponse]]
AppFactory = Callable[[Sequence[str]], Coroutine[None, None, web.Application]]


async def ws_echo(request: web.Request) -> web.WebSocketResponse:
    """Send every JSON value back to the client that sent it."""
    async with open_websocket(request) as websocket:
        async for message in receive(websocket):
            try:
                response = encode({"echo": read_json(message)})
            except InvalidRequest as error:
                response = encode({"error": str(error)})
            websocket.send(response)
    return websocket


async def ws_chat(request: web.Request) -> web.WebSocketResponse:
    """Let a client chat, as a user who is in one room at a time."""
    async with open_websocket(request) as websocket:
        rooms = request.app["websockets"]
        websocket.owner = user = User(rooms, websocket, pick_name(rooms))
        websocket.send(encode({"action": "connecting", "room": user.room, "user": user.name}))
        try:
            enter(user)
            logger.info("%s connected", user)
            async for message in receive(websocket):
                try:
                    response = handle_request(user, read_request(message))
                except InvalidRequest as error:
                    response = {"action": error.action, "success": False, "message": str(error)}
                websocket.send(encode(response))
        finally:
            leave(user, shame=websocket.vanished)
            logger.info(
                "%s disconnected%s", user, " without a goodbye" if websocket.vanished else ""
            )
    return websocket


def handle_request(user: User, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a user asks for and return the response; raise InvalidRequest if it can't be done."""
    message = ""
    match request:
        case {"action": "set_nick", "nick": nick}:
            change_nick(user, nick)
        case {"action": "join_room", "room": room}:
            change_room(user, room)
        case {"action": "chat_message", "message": message}:
            logger.debug("%s says %r", user, message)
            user.tell_others("chat_message", message=message, user=user.name)
        case {"action": "user_list", "room": room}:
            users = retrieve_users(user.rooms, room)
            return {"action": "user_list", "success": True, "room": room, "users": users}
        case {"action": action}:
            raise InvalidRequest("This server can't do that yet.", action)
    return {"action": request["action"], "success": True, "message": message}


async def serve_page(request: web.Request) -> web.FileResponse:
    """Serve the web page, its script and its style sheet."""
    return web.FileResponse(STATIC / (request.path[1:] or "index.html"), headers=PAGE_HEADERS)


@contextlib.asynccontextmanager
async def open_websocket(request: web.Request) -> AsyncIterator[ClientSocket]:
    """Answer the handshake of a WebSocket, and close it in the end: with 1001 if the view is cancelled.

    Raise HTTPForbidden for a cross-origin page, and HTTPUpgradeRequired for a request that is no handshake.
    """
    check_origin(request)
    websocket = ClientSocket(request)
    close_code = WSCloseCode.OK
    view = asyncio.current_task()
    assert view
    request.app[VIEWS].add(view)
    view.add_done_callback(request.app[VIEWS].discard)
    try:
        await websocket.prepare(request)
        yield websocket
    except asyncio.CancelledError:
        close_code = WSCloseCode.GOING_AWAY
        raise
    finally:
        if websocket.prepared:
            await websocket.close(code=close_code)
            await websocket.linger()


def check_origin(request: web.Request) -> None:
    """Raise HTTPForbidden for a cross-origin page, which could otherwise chat in the name of whoever looks at it.

    A browser says in Origin where a page comes from; other clients send none. That Origin and Host are the same is not
    enough: whoever owns a domain can let its name lead to this machine (DNS rebinding).
    """
    origin, host = request.headers.get("Origin", "").lower(), request.host.lower()
    origin = origin.encode(errors="replace").decode()  # it may hold bytes that are no UTF-8
    here = (
        f"http://{host.removesuffix(':80')}",
        f"https://{host.removesuffix(':443')}",
    )  # an Origin has no such port
    is_here = origin in here and is_own_host(host)
    if origin and not is_here and origin not in request.app[OPTIONS].allow_origin:
        logger.info("Refused a page of %.100r", origin)
        raise web.HTTPForbidden(
            text=f"Pages of {origin:.100} may not connect; --allow-origin {origin:.100} lets them."
        )


def is_own_host(host: str) -> bool:
    """Tell whether a Host can only mean this machine: it is an IP address, localhost, or the machine's name."""
    name, own_name = re.sub(r":\d*$", "", host), socket.gethostname().lower()
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name in ("localhost", own_name, f"{own_name}.local")
    return True


async def shutdown(app: web.Application) -> None:
    """Cancel all views; each closes its WebSocket and waits for the client to answer, all at the same time."""
    app["websockets"].clear()  # all leave, so nobody is told who left
    while views := app[VIEWS].copy():  # a handshake may have been on its way
        for view in views:
            view.cancel()
        await asyncio.wait(views)


async def init_app(argv: Sequence[str] = (), chat: View = ws_chat) -> web.Application:
    """Return the app; argv holds options, as `python -m aiohttp.web` passes them, and chat is the view of /chat."""
    app = web.Application(handler_args=LIMITS)
    with warnings.catch_warnings(action="ignore", category=web.NotAppKeyWarning):
        app["websockets"] = defaultdict(dict)
    app[OPTIONS] = parse_arguments(argv)
    app[VIEWS] = set()
    app[UNFLUSHED] = []
    app.add_routes([web.get("/echo", ws_echo), web.get("/chat", chat)])
    names = ("", "chat.js", "connection.js", "log.js", "chat.css")
    app.add_routes([web.get(f"/{name}", serve_page) for name in names])
    app.on_shutdown.append(shutdown)
    return app


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exit with a sentence if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--host", default="0.0.0.0", help="the address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", default=8080, type=int, help="the port to listen on (default: %(default)s)"
    )
    parser.add_argument("--verbose", action="store_true", help="log what is said, too")
    parser.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        default=[],
        action="append",
        type=lambda origin: origin.lower().rstrip("/"),
        help="let the pages of a site connect, such as https://example.org (may be given more than once)",
    )
    return parser.parse_args(argv)


class LogFilter(logging.Filter):
    """Keeps strangers from filling the log with tracebacks."""

    next_shortage = 0.0  # when that may be logged again

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether something is to be logged, which may be cut to one line."""
        error = record.exc_info and record.exc_info[1]
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            record.msg, record.exc_info = "Nobody else can connect: too many open files", None
            if record.created < self.next_shortage:
                return False
            self.next_shortage = record.created + 60
        # Whoever asks for the page and hangs up ends asyncio's sendfile() with a RuntimeError. And for want of files,
        # asyncio goes on trying to accept connections, even after the server has stopped listening.
        is_strangers = (
            isinstance(error, HttpProcessingError) or str(error) == "Transport is closing"
        )
        return not is_strangers and "_start_serving" not in record.getMessage()


def prepare_process(verbose: bool) -> None:
    """Set up the log, let the process have as many files as the system allows, and let SIGHUP end it like SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogFilter())
    with contextlib.suppress(ImportError):  # Windows has neither that limit nor that signal
        import resource

        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup
            signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def show(text: str) -> None:
    """Print where the server runs; it runs as well if nobody can read that."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python would try again in the end


def main(init_app: AppFactory = init_app) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP."""
    app = asyncio.run(init_app(sys.argv[1:]))
    host, port = app[OPTIONS].host, app[OPTIONS].port
    prepare_process(app[OPTIONS].verbose)
    try:
        web.run_app(
            app, host=host, port=port, access_log=None, shutdown_timeout=PAGE_TIMEOUT, print=show
        )
    except web.GracefulExit:
        pass  # Ctrl+C again, while the first was being obeyed
    except (OSError, OverflowError, UnicodeError) as error:
        sys.exit(f"Cannot listen on --host {host} --port {port}: {str(error).rstrip('.')}.")
    finally:
        # The event loop has given the signals back. One more, now, must not change the exit code.
        for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


if __name__ == "__main__":
    main()
