"""A minimal, correct WebSocket client: it keeps reading while it sends a message at intervals."""

import argparse
import asyncio
import sys

import aiohttp

INTERVAL = 15  # seconds between two messages
MESSAGE = {"message": "Hello world!"}
CLOSE_TIMEOUT = aiohttp.ClientWSTimeout(ws_close=2)  # seconds to wait for the server's close frame


async def read(websocket: aiohttp.ClientWebSocketResponse) -> None:
    """Print what the server sends, until the connection closes."""
    async for message in websocket:
        if message.type is aiohttp.WSMsgType.ERROR:  # a broken frame, or no response to a ping
            raise aiohttp.ClientError(message.data)
        print(f"< {message.data!a}", flush=True)  # !a: no escape sequences on the terminal


async def write(websocket: aiohttp.ClientWebSocketResponse) -> None:
    """Send a message now, and again at every interval."""
    while True:
        await websocket.send_json(MESSAGE)
        print(f"> {MESSAGE}", flush=True)
        await asyncio.sleep(INTERVAL)


async def main(url: str) -> None:
    """Read and write until the connection closes, which raises an error. Ctrl+C cancels this."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        websocket = await session.ws_connect(url, heartbeat=20, timeout=CLOSE_TIMEOUT)
        reader = asyncio.create_task(read(websocket))
        writer = asyncio.create_task(write(websocket))
        try:
            done, _ = await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.cancel()
            await websocket.close()
            await asyncio.wait([reader, writer])  # a cancelled reader would break the connection
        await asyncio.gather(*done)  # raises what failed
    raise ConnectionError("The server closed the connection.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://localhost:8080/echo", help="default: %(default)s")
    try:
        asyncio.run(main(url := parser.parse_args().url))
    except KeyboardInterrupt:
        pass
    except (aiohttp.ClientError, AssertionError, OSError) as error:  # AssertionError: //localhost
        sys.exit(f"{url}: {type(error).__name__}: {error}".encode("unicode_escape").decode())
