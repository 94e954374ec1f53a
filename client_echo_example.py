"""The smallest WebSocket client that is right: it reads all the time, while it sends on a schedule.

Two tasks share one connection. When either of them ends, for whatever reason, the other one ends with it.
"""

import argparse
import asyncio
import contextlib
import signal
import sys

import aiohttp

INTERVAL = 15  # seconds between two messages
TIMEOUT = aiohttp.ClientTimeout(10)  # seconds for the server to answer the handshake
MESSAGE = {"message": "Hello world!"}


async def read(websocket: aiohttp.ClientWebSocketResponse) -> None:
    """Print what comes back until the connection closes."""
    async for message in websocket:
        if message.type is aiohttp.WSMsgType.ERROR:  # a frame that is broken, or no sign of life any more
            raise aiohttp.ClientError(message.data)
        # !a shows all that is not plain as escapes, so that no server can play with the terminal.
        print(f"< {message.data!a}", flush=True)


async def write(websocket: aiohttp.ClientWebSocketResponse) -> None:
    """Send the message now, and again at every interval."""
    while True:
        await websocket.send_json(MESSAGE)
        print(f"> {MESSAGE!r}", flush=True)
        await asyncio.sleep(INTERVAL)


async def run(url: str) -> str:
    """Talk to the server until the connection ends; return a sentence that says why it did."""
    # Ctrl+C and SIGTERM cancel this task, and it the others. (Python's own KeyboardInterrupt could hit asyncio itself.)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: task.done() or loop.call_soon_threadsafe(task.cancel))
    reason = "the server closed the connection"
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.ws_connect(url, heartbeat=30) as websocket,  # the heartbeat notices a server that fell silent
            asyncio.TaskGroup() as tasks,
        ):
            reader = tasks.create_task(read(websocket))
            writer = tasks.create_task(write(websocket))
            reader.add_done_callback(lambda _: writer.cancel())
            writer.add_done_callback(lambda _: reader.cancel())
    except* ConnectionResetError:
        pass  # the writer noticed it before the reader
    except* (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, AssertionError):  # aiohttp asserts, for //host
        reason = "this is not the address of a WebSocket"
    except* (aiohttp.ClientError, OSError) as errors:
        reason = str(errors.exceptions[0]) or "the server does not answer"
    return f"{url}: {reason}."


def main() -> None:
    """Run until Ctrl+C, which says goodbye to the server, or until the connection ends, which is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://localhost:8080/echo", help="default: %(default)s")
    url = parser.parse_args().url
    with contextlib.suppress(asyncio.CancelledError):
        sys.exit(asyncio.run(run(url)))  # prints the sentence, and tells the shell that it failed


if __name__ == "__main__":
    main()
