"""A chat server: one aiohttp app with the WebSocket views /echo and /chat, and a web page at /."""

import argparse
import asyncio
import functools
import logging
import signal
import sys
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import WSCloseCode, web
from aiohttp.http import HttpProcessingError

from utils import BadRequest, ClientSocket, Rooms, broadcast, change_nick, change_room, encode, pick_name
from utils import read_json, read_request, receive, remove_user, retrieve_users, send

MAX_MESSAGE = 64 * 1024  # bytes of a message from a client; a larger one ends the connection
HEARTBEAT = 30.0  # seconds of silence after which a client is pinged; it has half as long to answer
CLOSE_TIMEOUT = 2.0  # seconds for a client to answer a close frame, and to read what is still unsent
PAGE_TIMEOUT = 0.5  # seconds, at the shutdown, for those who are just fetching the page

STATIC = Path(__file__).parent / "static"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a browser may keep the page, but asks each time whether it is still the newest
}

ALLOWED_ORIGINS = web.AppKey("allowed_origins", set[str])
VIEW_TASKS = web.AppKey("view_tasks", set["asyncio.Task[object]"])
SHUTTING_DOWN = web.AppKey("shutting_down", asyncio.Event)  # not a bool: a running app takes no new values

logger = logging.getLogger("chat")


async def init_app(argv: Sequence[str] = ()) -> web.Application:
    """Return the app; argv holds options, which main() and `python -m aiohttp.web` pass on."""
    app = web.Application()
    with warnings.catch_warnings(action="ignore", category=web.NotAppKeyWarning):
        app["websockets"] = defaultdict(dict)
    app[ALLOWED_ORIGINS] = set(parse_arguments(argv).allow_origin)
    app[VIEW_TASKS] = set()
    app[SHUTTING_DOWN] = asyncio.Event()
    app.add_routes([web.get("/echo", ws_echo), web.get("/chat", ws_chat)])
    app.add_routes([web.get(f"/{name}", page) for name in ("", "chat.js", "chat.css")])
    app.on_shutdown.append(shutdown)
    return app


async def ws_echo(request: web.Request) -> web.WebSocketResponse:
    """Send every JSON value back to the client that sent it."""
    async with open_websocket(request) as websocket:
        async for message in receive(websocket):
            try:
                answer = encode({"echo": read_json(message)})
            except BadRequest as error:
                answer = encode({"error": str(error)})
            send(websocket, answer)
        if websocket.dropped:
            logger.warning("Dropped %s, of /echo, as too slow: %d bytes unsent", request.remote, websocket.dropped)
    return websocket


async def ws_chat(request: web.Request) -> web.WebSocketResponse:
    """Let a client chat, as a user who is in one room at a time."""
    rooms: Rooms = request.app["websockets"]
    async with open_websocket(request) as websocket:
        room = "default"
        user = pick_name(rooms[room])
        rooms[room][user] = websocket
        try:
            logger.info("%r joined %r", user, room)
            send(websocket, encode({"action": "connecting", "room": room, "user": user}))
            broadcast(rooms, room, {"action": "joined", "room": room, "user": user}, skip=websocket)
            async for message in receive(websocket):
                try:
                    body = read_request(message)
                except BadRequest as error:
                    refusal = {"action": error.action, "success": False, "message": str(error)}
                    send(websocket, encode(refusal))
                    continue
                answer = {"action": body["action"], "success": True, "message": ""}
                match body:
                    case {"action": "set_nick", "nick": nick}:
                        if change_nick(rooms, room, user, nick):
                            user = nick
                        else:
                            answer |= {"success": False, "message": "Nickname is already in use"}
                    case {"action": "join_room", "room": new_room}:
                        if change_room(rooms, room, user, new_room):
                            room = new_room
                        else:
                            answer |= {"success": False, "message": "Name already in use in this room."}
                    case {"action": "chat_message", "message": text}:
                        answer["message"] = text
                        logger.debug("%r in %r says %r", user, room, text)
                        said = {"action": "chat_message", "message": text, "user": user}
                        broadcast(rooms, room, said, skip=websocket)
                    case {"action": "user_list", "room": asked}:
                        users = retrieve_users(rooms, asked)
                        answer = {"action": "user_list", "success": True, "room": asked, "users": users}
                send(websocket, encode(answer))
        finally:
            # A close frame from the client leaves our side open (autoclose=False). If that is closed by now, or was
            # dropped, nobody said goodbye.
            shame = websocket.closed or websocket.dropped > 0
            remove_user(rooms, room, user)
            if websocket.dropped:
                logger.warning("Dropped %r in %r as too slow: %d bytes unsent", user, room, websocket.dropped)
            logger.info("%r left %r%s", user, room, " without a goodbye" if shame else "")
            broadcast(rooms, room, {"action": "left", "room": room, "user": user, "shame": shame}, skip=websocket)
    return websocket


async def page(request: web.Request) -> web.FileResponse:
    """Serve the web page, its script and its style sheet."""
    return web.FileResponse(STATIC / (request.path[1:] or "index.html"), headers=PAGE_HEADERS)


@asynccontextmanager
async def open_websocket(request: web.Request) -> AsyncIterator[ClientSocket]:
    """Answer a handshake with a WebSocket, and see to it that the connection is gone in the end.

    Raise HTTPUpgradeRequired for a request that is no handshake, HTTPForbidden for a page of another site,
    HTTPServiceUnavailable during the shutdown, and HTTPBadRequest for a handshake that fails.
    """
    websocket = ClientSocket(
        heartbeat=HEARTBEAT,
        timeout=CLOSE_TIMEOUT,
        max_msg_size=MAX_MESSAGE + 1,  # aiohttp refuses messages of this size, too
        autoping=False,  # receive() answers pings
        autoclose=False,  # a view can tell a close frame from a broken connection
        compress=False,  # frame() does not compress, and to read what a browser compresses takes much memory
    )
    try:
        if request.method != "GET" or not websocket.can_prepare(request):
            headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
            raise web.HTTPUpgradeRequired(text="Open this address with a WebSocket client.", headers=headers)
        if request.app[SHUTTING_DOWN].is_set():
            raise web.HTTPServiceUnavailable(text="This server is shutting down.")
        check_origin(request)
        await websocket.prepare(request)
    except (ConnectionError, ValueError):  # the client is gone already, or its Sec-WebSocket-Key is not even ASCII
        raise web.HTTPBadRequest(text="This handshake failed.") from None
    assert request.transport  # prepare() has just written to it
    websocket.transport, websocket.dropped = request.transport, 0
    tasks, task = request.app[VIEW_TASKS], asyncio.current_task()
    assert task  # a view always runs in one
    tasks.add(task)
    try:
        yield websocket
    except asyncio.CancelledError:  # by shutdown()
        await websocket.close(code=WSCloseCode.GOING_AWAY)
        websocket.transport.abort()
        raise
    finally:
        tasks.remove(task)
        await websocket.close()
        # What a client does not read would stay in memory for ever.
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, websocket.transport.abort)


def check_origin(request: web.Request) -> None:
    """Raise HTTPForbidden for a page of another site, which could otherwise chat in the name of whoever looks at it.

    A browser says in Origin where a page comes from; other clients send none.
    """
    origin = request.headers.get("Origin", "").lower()
    host = request.host.lower()
    here = (f"http://{host.removesuffix(':80')}", f"https://{host.removesuffix(':443')}")  # an Origin has no such port
    if origin and origin not in (*here, *request.app[ALLOWED_ORIGINS]):
        logger.info("Refused a page of %r", origin)
        raise web.HTTPForbidden(text=f"Pages of {origin} may not connect; --allow-origin {origin} lets them.")


async def shutdown(app: web.Application) -> None:
    """End all views at once; each says goodbye to its client and waits for the answer, CLOSE_TIMEOUT at most."""
    app[SHUTTING_DOWN].set()
    app["websockets"].clear()  # all go, so nobody is told that somebody went
    tasks = app[VIEW_TASKS].copy()  # each takes itself out of the original
    for task in tasks:
        task.cancel("shutdown")
    await asyncio.gather(*tasks, return_exceptions=True)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exit with a sentence if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=8080, type=int, help="the port to listen on (default: %(default)s)")
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


def is_our_error(record: logging.LogRecord) -> bool:
    """Return False for what aiohttp logs, with a traceback, of a request that is no HTTP: any stranger can send one."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    arguments = parse_arguments(sys.argv[1:])
    host, port = arguments.host, arguments.port
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    logging.getLogger("aiohttp.server").addFilter(is_our_error)
    show = functools.partial(print, flush=True)
    try:
        web.run_app(
            init_app(sys.argv[1:]), host=host, port=port, access_log=None, shutdown_timeout=PAGE_TIMEOUT, print=show
        )
    except web.GracefulExit:
        pass  # Ctrl+C again, while the first was being obeyed
    except (OSError, OverflowError, UnicodeError) as error:
        sys.exit(f"Cannot listen on {host}:{port}: {error}.")
    finally:
        # The event loop has given the signals back. One more, now, must not change the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
