"""The smallest WebSocket client that is right: it reads all the time, while it sends on a schedule.

Two tasks share one connection. To leave is to stop writing, to say goodbye, and to let the reader hear the end of it.
"""

import signal

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl+C ends it without a word while the rest is imported

import argparse
import asyncio
import sys

import aiohttp
from yarl import URL

INTERVAL = 15  # seconds between two messages
HANDSHAKE_TIMEOUT = 10  # seconds for the server to respond to the handshake
GOODBYE_TIMEOUT = 2  # seconds for the server to respond to the close frame
MESSAGE = {"message": "Hello world!"}


async def read(websocket: aiohttp.ClientWebSocketResponse) -> None:
    """Print what comes back until the connection closes."""
    async for message in websocket:
        if message.type is aiohttp.WSMsgType.ERROR:  # a broken frame, or no response to a heartbeat
            raise aiohttp.ClientError(message.data)
        # !a shows all that is not plain as escapes, so that no server can play with the terminal.
        print(f"< {message.data!a}", flush=True)


async def write(websocket: aiohttp.ClientWebSocketResponse) -> None:
    """Send the message now, and again at every interval."""
    while True:
        await websocket.send_json(MESSAGE)
        print(f"> {MESSAGE!r}", flush=True)
        await asyncio.sleep(INTERVAL)


async def run(url: URL) -> None:
    """Talk to the server until it closes the connection. To cancel this is to say goodbye; failures are raised."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(HANDSHAKE_TIMEOUT)) as session,
        session.ws_connect(
            url, heartbeat=30
        ) as websocket,  # the heartbeat notices a server that fell silent
        asyncio.TaskGroup() as tasks,
    ):
        reader = tasks.create_task(read(websocket))
        writer = tasks.create_task(write(websocket))
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
        "--url", type=URL, default="ws://localhost:8080/echo", help="default: %(default)s"
    )
    url = parser.parse_args().url
    if url.scheme not in ("ws", "wss", "http", "https") or not url.host:
        parser.error(
            f"{str(url)!r} is not the address of a WebSocket, such as ws://localhost:8080/echo"
        )
    task = asyncio.create_task(run(url))

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
    except* aiohttp.ClientResponseError as errors:
        reason = f"this is not a WebSocket: HTTP {errors.exceptions[0]}"
    except* (aiohttp.ClientError, OSError) as errors:
        reason = str(errors.exceptions[0])
        sys.stdout = (
            sys.stderr
        )  # if it is the output that failed, nothing is left to be flushed there
    sys.exit(reason and f"{url}: {reason}")


if __name__ == "__main__":
    asyncio.run(main())
