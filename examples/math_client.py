"""A bot that answers every sum that somebody asks in the room math: the task of the tutorial, solved."""

import signal

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl+C ends it without a word while the rest is imported

import argparse
import asyncio
import itertools
import re
import sys

import aiohttp
from yarl import URL

# At most 50 digits: no sum takes long, and no result is too large for a float. [0-9], because \d matches ٣, too.
SUM = re.compile("([+-]?[0-9]{1,50}) *([-+*/]) *([+-]?[0-9]{1,50})")
HANDSHAKE_TIMEOUT = 10  # seconds for the server to respond to the handshake
GOODBYE_TIMEOUT = 2  # seconds for the server to respond to the close frame
Requests = asyncio.Queue[dict[str, str]]


def solve(text: str) -> str | None:
    """Return the result of a text that is one sum of two integers, None for any other text."""
    if not (found := SUM.fullmatch(text.strip(" "))):
        return None
    left, sign, right = int(found[1]), found[2], int(found[3])
    if sign != "/":
        return str({"+": left + right, "-": left - right, "*": left * right}[sign])
    if right == 0:
        return "Sorry, nobody can divide by zero."
    return str(
        left / right if left % right else left // right
    )  # a float would round a long whole result


async def read(websocket: aiohttp.ClientWebSocketResponse, nick: str, requests: Requests) -> None:
    """Print what the server tells, and hand to the writer what there is to say to it."""
    names = (
        nick[: 32 - len(str(number))] + str(number) for number in itertools.count(2)
    )  # 32 characters at most
    async for message in websocket:
        if message.type is aiohttp.WSMsgType.ERROR:  # a broken frame, or no response to a heartbeat
            raise aiohttp.ClientError(message.data)
        match message.json():
            case {"echo": _}:
                raise ValueError("/echo instead of /chat")
            case {"action": "set_nick", "success": True}:
                requests.put_nowait({"action": "user_list", "room": "math"})
            case {"action": "set_nick", "message": "Nickname is already in use"}:
                requests.put_nowait({"action": "set_nick", "nick": next(names)})
            case {"success": False, "message": refusal}:
                raise aiohttp.ClientError(f"the server refuses: {refusal!a}")
            case {"action": "user_list", "users": list(users)}:
                # !a shows all that is not plain as escapes, so that nobody can play with the terminal.
                print("In the room are:", *(f"{user!a}" for user in users), sep="\n  ", flush=True)
            case {"action": "chat_message", "success": True, "message": text}:
                print(f"> {text!a}", flush=True)
            case {"action": "chat_message", "user": user, "message": str(text)}:
                print(f"{user!a}: {text!a}", flush=True)
                if result := solve(text):
                    requests.put_nowait({"action": "chat_message", "message": f"@{user}: {result}"})


async def write(websocket: aiohttp.ClientWebSocketResponse, nick: str, requests: Requests) -> None:
    """Enter the room; then send what the reader asks for. The responses are the reader's business."""
    await websocket.send_json({"action": "join_room", "room": "math"})
    await websocket.send_json({"action": "set_nick", "nick": nick})
    while True:
        await websocket.send_json(await requests.get())


async def run(url: URL, nick: str) -> None:
    """Answer sums until the server closes the connection. To cancel this is to say goodbye; failures are raised."""
    requests: Requests = asyncio.Queue()
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(HANDSHAKE_TIMEOUT)) as session,
        session.ws_connect(
            url, heartbeat=30
        ) as websocket,  # the heartbeat notices a server that fell silent
        asyncio.TaskGroup() as tasks,
    ):
        reader = tasks.create_task(read(websocket, nick, requests))
        writer = tasks.create_task(write(websocket, nick, requests))
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
        "--nick", default="MathBot", help="the name to try first (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.url.scheme not in ("ws", "wss", "http", "https") or not arguments.url.host:
        parser.error(
            f"{str(arguments.url)!r} is not the address of a chat, such as ws://localhost:8080/chat"
        )
    task = asyncio.create_task(run(arguments.url, arguments.nick))

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
