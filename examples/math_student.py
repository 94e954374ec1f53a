"""A bot that asks arithmetic questions in the room math, and laughs when a user vanishes."""

import argparse
import asyncio
import random
import sys

import aiohttp

NICK = "MathStudent"
INTERVAL = 10  # seconds between two questions
CLOSE_TIMEOUT = aiohttp.ClientWSTimeout(ws_close=2)  # seconds to wait for the server's close frame


async def read(websocket: aiohttp.ClientWebSocketResponse, entered: asyncio.Event) -> None:
    """Print what is said, laugh, and set `entered` once the bot has its name."""
    async for message in websocket:
        if message.type is aiohttp.WSMsgType.ERROR:  # a broken frame, or no response to a ping
            raise aiohttp.ClientError(message.data)
        match message.json():
            case {"echo": _}:
                raise ConnectionError("This is /echo, not /chat.")
            case {"success": False, "message": refusal}:
                raise ConnectionError(f"The server refuses: {refusal}")
            case {"action": "set_nick"}:
                entered.set()
            case {"action": "left", "room": "math", "user": user, "shame": True}:
                laugh = f"Ha ha, {user} left without a goodbye!"
                await websocket.send_json({"action": "chat_message", "message": laugh})
            case {"action": "chat_message", "message": text, **others}:
                user = others.get("user", NICK)
                print(f"{user!a}: {text!a}", flush=True)  # !a: no escape sequences on the terminal


async def write(websocket: aiohttp.ClientWebSocketResponse, entered: asyncio.Event) -> None:
    """Enter the room, then ask a question now, and again at every interval."""
    await websocket.send_json({"action": "join_room", "room": "math"})
    await websocket.send_json({"action": "set_nick", "nick": NICK})
    await entered.wait()
    while True:
        question = f"{random.randrange(100)} {random.choice('+-*/')} {random.randrange(100)}"
        await websocket.send_json({"action": "chat_message", "message": question})
        await asyncio.sleep(INTERVAL)


async def main(url: str) -> None:
    """Ask until the connection closes, which raises an error. Ctrl+C cancels this."""
    entered = asyncio.Event()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        websocket = await session.ws_connect(url, heartbeat=20, timeout=CLOSE_TIMEOUT)
        reader = asyncio.create_task(read(websocket, entered))
        writer = asyncio.create_task(write(websocket, entered))
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
    parser.add_argument("--url", default="ws://localhost:8080/chat", help="default: %(default)s")
    try:
        asyncio.run(main(url := parser.parse_args().url))
    except KeyboardInterrupt:
        pass
    except (aiohttp.ClientError, AssertionError, OSError, RecursionError, ValueError) as error:
        # RecursionError and ValueError come from json(), AssertionError from --url //localhost.
        sys.exit(f"{url}: {type(error).__name__}: {error}".encode("unicode_escape").decode())
