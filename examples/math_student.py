"""A bot that asks the room math one sum after the other, and laughs at those who leave without a goodbye."""

import signal

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl+C ends it without a word while the rest is imported

import argparse
import asyncio
import contextlib
import random
import sys

import aiohttp
from yarl import URL

NICK = "MathStudent"
HANDSHAKE_TIMEOUT = 10  # seconds for the server to respond to the handshake
GOODBYE_TIMEOUT = 2  # seconds for the server to respond to the close frame


async def read(
    websocket: aiohttp.ClientWebSocketResponse, entered: asyncio.Event, laughs: asyncio.Queue[str]
) -> None:
    """Print what is said, and tell the writer when it is in the room and whom to laugh at."""
    async for message in websocket:
        if message.type is aiohttp.WSMsgType.ERROR:  # a broken frame, or no response to a heartbeat
            raise aiohttp.ClientError(message.data)
        match message.json():
            case {"echo": _}:
                raise ValueError("/echo instead of /chat")
            case {"success": False, "message": refusal}:
                raise aiohttp.ClientError(f"the server refuses: {refusal!a}")
            case {"action": "set_nick", "success": True}:
                entered.set()
            case {"action": "left", "room": "math", "user": user, "shame": True}:
                laughs.put_nowait(f"Ha ha, {user} left without a goodbye!")
            case {"action": "chat_message", "message": text, **others}:
                # !a shows all that is not plain as escapes, so that nobody can play with the terminal.
                print(f"{others.get('user', NICK)!a}: {text!a}", flush=True)


async def write(
    websocket: aiohttp.ClientWebSocketResponse,
    entered: asyncio.Event,
    laughs: asyncio.Queue[str],
    interval: float,
) -> None:
    """Enter the room, ask a sum now and at every interval, and laugh in between."""
    await websocket.send_json({"action": "join_room", "room": "math"})
    await websocket.send_json({"action": "set_nick", "nick": NICK})
    await entered.wait()
    while True:
        question = f"{random.randrange(100)} {random.choice('+-*/')} {random.randrange(100)}"
        await websocket.send_json({"action": "chat_message", "message": question})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval):
                while True:
                    await websocket.send_json(
                        {"action": "chat_message", "message": await laughs.get()}
                    )


async def run(url: URL, interval: float) -> None:
    """Ask and laugh until the server closes the connection. To cancel this is to say goodbye; failures are raised."""
    entered = asyncio.Event()
    laughs: asyncio.Queue[str] = asyncio.Queue()
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(HANDSHAKE_TIMEOUT)) as session,
        session.ws_connect(
            url, heartbeat=30
        ) as websocket,  # the heartbeat notices a server that fell silent
        asyncio.TaskGroup() as tasks,
    ):
        reader = tasks.create_task(read(websocket, entered, laughs))
        writer = tasks.create_task(write(websocket, entered, laughs, interval))
        try:
            await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.cancel()
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                await websocket.close()  # the goodbye
                await reader  # it hears the end; cancelled, it would break the connection


async def main() -> None:
    """Run until Ctrl+C, SIGTERM or SIGHUP, which say goodbye, or until the connection ends, which is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--url", type=URL, default="ws://localhost:8080/chat", help="default: %(default)s"
    )
    parser.add_argument(
        "--interval", default=10, type=float, help="seconds between two sums (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.url.scheme not in ("ws", "wss", "http", "https") or not arguments.url.host:
        parser.error(
            f"{str(arguments.url)!r} is not the address of a chat, such as ws://localhost:8080/chat"
        )
    if not arguments.interval > 0:
        parser.error("the interval has to be more than 0 seconds")
    task = asyncio.create_task(run(arguments.url, arguments.interval))

    def leave(*_: object) -> None:
        if not (task.cancelling() or task.done()):  # a second signal may not cut the goodbye short
            task.get_loop().call_soon_threadsafe(task.cancel)

    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
        if (
            signal.getsignal(number := getattr(signal, name)) is not signal.SIG_IGN
        ):  # nohup ignores it
            signal.signal(number, leave)
    reason: str | None = "the server closed the connection"
    try:
        await task
    except* asyncio.CancelledError:
        reason = None
    except* ConnectionResetError:
        pass  # the writer noticed the end before the reader
    except* (aiohttp.ClientConnectorError, TimeoutError):
        reason = "no response; is the server running?"
    except* (
        aiohttp.ClientResponseError,
        ValueError,
        RecursionError,
    ) as errors:  # the latter are from json()
        reason = f"this is not a chat: {errors.exceptions[0]}"
    except* (aiohttp.ClientError, OSError) as errors:
        reason = str(errors.exceptions[0])
        sys.stdout = (
            sys.stderr
        )  # if it is the output that failed, nothing is left to be flushed there
    sys.exit(reason and f"{arguments.url}: {reason}")


if __name__ == "__main__":
    asyncio.run(main())
