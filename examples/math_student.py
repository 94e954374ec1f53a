"""A bot that asks the room math one sum after the other, and laughs at those who leave without a goodbye."""

import argparse
import asyncio
import contextlib
import random
import signal
import sys

import aiohttp

NICK = "MathStudent"
TIMEOUT = aiohttp.ClientTimeout(10)  # seconds for the server to answer the handshake


def clean(text: str) -> str:
    """Return a text with escapes for what could play with the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


async def read(websocket: aiohttp.ClientWebSocketResponse, entered: asyncio.Event, laughs: asyncio.Queue[str]) -> None:
    """Print what is said, and tell the writer when it is in the room and whom to laugh at."""
    async for frame in websocket:
        if frame.type is aiohttp.WSMsgType.ERROR:  # a frame that is broken, or no sign of life any more
            raise aiohttp.ClientError(frame.data)
        try:
            body = frame.json() if frame.type is aiohttp.WSMsgType.TEXT else None
        except (ValueError, RecursionError):  # thousands of brackets in brackets are a RecursionError
            continue
        match body:
            case {"action": "set_nick", "success": True}:
                entered.set()
            case {"action": "join_room" | "set_nick", "success": False, "message": str(refusal)}:
                raise aiohttp.ClientError(f"{NICK} can't enter the room: {refusal.rstrip('.')}")
            case {"action": "chat_message", "success": True, "message": str(message)}:
                print(clean(f"{NICK}: {message}"), flush=True)
            case {"action": "chat_message", "user": str(user), "message": str(message)}:
                print(clean(f"{user}: {message}"), flush=True)
            case {"action": "left", "room": "math", "user": str(user), "shame": True}:
                laughs.put_nowait(f"Ha ha, {user} left without a goodbye!")


async def write(
    websocket: aiohttp.ClientWebSocketResponse, entered: asyncio.Event, laughs: asyncio.Queue[str], interval: float
) -> None:
    """Enter the room, ask a sum now and at every interval, and laugh in between."""
    await websocket.send_json({"action": "join_room", "room": "math"})
    await websocket.send_json({"action": "set_nick", "nick": NICK})
    await entered.wait()
    clock = asyncio.get_running_loop()
    next_sum = clock.time()
    while True:
        try:
            async with asyncio.timeout_at(next_sum):
                message = await laughs.get()
        except TimeoutError:
            message = f"{random.randrange(100)} {random.choice('+-*/')} {random.randrange(100)}"
            next_sum = clock.time() + interval
        await websocket.send_json({"action": "chat_message", "message": message})


async def run(url: str, interval: float) -> str:
    """Ask and laugh until the connection ends; return a sentence that says why it did."""
    # Ctrl+C and SIGTERM cancel this task, and it the others. (Python's own KeyboardInterrupt could hit asyncio itself.)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: task.done() or loop.call_soon_threadsafe(task.cancel))
    reason = "the server closed the connection"
    entered = asyncio.Event()
    laughs: asyncio.Queue[str] = asyncio.Queue()
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.ws_connect(url, heartbeat=30) as websocket,  # notices a server that just vanishes
            asyncio.TaskGroup() as tasks,
        ):
            reader = tasks.create_task(read(websocket, entered, laughs))
            writer = tasks.create_task(write(websocket, entered, laughs, interval))
            reader.add_done_callback(lambda _: writer.cancel())
            writer.add_done_callback(lambda _: reader.cancel())
    except* ConnectionResetError:
        pass  # the writer noticed it before the reader
    except* (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, AssertionError):  # aiohttp asserts, for //host
        reason = "this is not the address of a WebSocket"
    except* (aiohttp.ClientError, OSError) as errors:
        reason = str(errors.exceptions[0]) or "the server does not answer"
    return clean(f"{url}: {reason}.")


def main() -> None:
    """Run until Ctrl+C, which says goodbye to the server, or until the connection ends, which is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://localhost:8080/chat", help="default: %(default)s")
    parser.add_argument("--interval", default=10, type=float, help="seconds between two sums (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.interval > 0:
        parser.error("the interval has to be more than 0 seconds")
    if sys.stdout:  # it may not have letters for everything
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with contextlib.suppress(asyncio.CancelledError):
        sys.exit(asyncio.run(run(arguments.url, arguments.interval)))


if __name__ == "__main__":
    main()
