"""A bot that answers arithmetic questions in the room math: a solution to the tutorial's task."""

import argparse
import asyncio
import itertools
import re
import sys

import aiohttp

SUM = re.compile("([+-]?[0-9]{1,50}) *([-+*/]) *([+-]?[0-9]{1,50})")  # \d would match ٣, too
CLOSE_TIMEOUT = aiohttp.ClientWSTimeout(ws_close=2)  # seconds to wait for the server's close frame


def solve(text: str) -> str | None:
    """Return the result if the text is exactly one operation on two integers, else None."""
    if not (found := SUM.fullmatch(text.strip(" "))):
        return None
    left, sign, right = int(found[1]), found[2], int(found[3])
    if sign != "/":
        return str({"+": left + right, "-": left - right, "*": left * right}[sign])
    if right == 0:
        return "Sorry, nobody can divide by zero."
    return str(left / right if left % right else left // right)  # a float rounds a long integer


async def read(websocket: aiohttp.ClientWebSocketResponse, queue: asyncio.Queue[object]) -> None:
    """Print what the server sends, and queue requests for the writer."""
    numbers = itertools.count(2)
    async for message in websocket:
        if message.type is aiohttp.WSMsgType.ERROR:  # a broken frame, or no response to a ping
            raise aiohttp.ClientError(message.data)
        match message.json():
            case {"echo": _}:
                raise ConnectionError("This is /echo, not /chat.")
            case {"action": "set_nick", "message": "Nickname is already in use"}:
                queue.put_nowait({"action": "set_nick", "nick": f"MathBot{next(numbers)}"})
            case {"action": "user_list", "users": list(users)}:
                print("In the room are:", *map(ascii, users), sep="\n  ", flush=True)
            case {"action": "chat_message", "user": user, "message": str(text)}:
                print(f"{user!a}: {text!a}", flush=True)  # !a: no escape sequences on the terminal
                if result := solve(text):
                    queue.put_nowait({"action": "chat_message", "message": f"@{user}: {result}"})


async def write(websocket: aiohttp.ClientWebSocketResponse, queue: asyncio.Queue[object]) -> None:
    """Enter the room, then send what is in the queue. The responses are for the reader."""
    await websocket.send_json({"action": "join_room", "room": "math"})
    await websocket.send_json({"action": "set_nick", "nick": "MathBot"})
    await websocket.send_json({"action": "user_list", "room": "math"})
    while True:
        await websocket.send_json(await queue.get())


async def main(url: str) -> None:
    """Answer until the connection closes, which raises an error. Ctrl+C cancels this."""
    queue: asyncio.Queue[object] = asyncio.Queue()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        websocket = await session.ws_connect(url, heartbeat=20, timeout=CLOSE_TIMEOUT)
        reader = asyncio.create_task(read(websocket, queue))
        writer = asyncio.create_task(write(websocket, queue))
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
        sys.exit(f"{url}: {type(error).__name__}: {error}".encode("unicode_escape").decode())
