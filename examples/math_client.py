"""A bot that answers every sum that somebody asks in the room math: the task of the tutorial, solved."""

import argparse
import asyncio
import contextlib
import itertools
import re
import signal
import sys

import aiohttp

# At most 50 digits: no sum takes long, and no result is too large for a float. [0-9], because \d matches ٣, too.
SUM = re.compile("([+-]?[0-9]{1,50}) *([-+*/]) *([+-]?[0-9]{1,50})")
TIMEOUT = aiohttp.ClientTimeout(10)  # seconds for the server to answer the handshake
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
    return str(left / right if left % right else left // right)  # a float would round a long whole result


def clean(text: str) -> str:
    """Return a text with escapes for what could play with the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


async def read(websocket: aiohttp.ClientWebSocketResponse, nick: str, requests: Requests) -> None:
    """Print what the server tells, and hand to the writer what there is to say to it."""
    names = (nick[: 32 - len(str(number))] + str(number) for number in itertools.count(2))  # 32 characters at most
    async for frame in websocket:
        if frame.type is aiohttp.WSMsgType.ERROR:  # a frame that is broken, or no sign of life any more
            raise aiohttp.ClientError(frame.data)
        try:
            body = frame.json() if frame.type is aiohttp.WSMsgType.TEXT else None
        except (ValueError, RecursionError):  # thousands of brackets in brackets are a RecursionError
            continue
        match body:
            case {"action": "set_nick", "success": True}:
                requests.put_nowait({"action": "user_list", "room": "math"})
            case {"action": "set_nick", "success": False, "message": "Nickname is already in use"}:
                requests.put_nowait({"action": "set_nick", "nick": next(names)})
            case {"action": "join_room" | "set_nick", "success": False, "message": str(refusal)}:
                raise aiohttp.ClientError(refusal.rstrip("."))
            case {"action": "user_list", "success": True, "users": list(users)}:
                print("In the room are:", *(clean(str(user)) for user in users), sep="\n  ", flush=True)
            case {"action": "chat_message", "success": True, "message": str(answer)}:
                print(clean(f"> {answer}"), flush=True)
            case {"action": "chat_message", "user": str(user), "message": str(message)}:
                print(clean(f"{user}: {message}"), flush=True)
                if result := solve(message):
                    requests.put_nowait({"action": "chat_message", "message": f"@{user}: {result}"})


async def write(websocket: aiohttp.ClientWebSocketResponse, nick: str, requests: Requests) -> None:
    """Enter the room; then send what the reader asks for. The answers are the reader's business."""
    await websocket.send_json({"action": "join_room", "room": "math"})
    await websocket.send_json({"action": "set_nick", "nick": nick})
    while True:
        await websocket.send_json(await requests.get())


async def run(arguments: argparse.Namespace) -> str:
    """Answer sums until the connection ends; return a sentence that says why it did."""
    # Ctrl+C and SIGTERM cancel this task, and it the others. (Python's own KeyboardInterrupt could hit asyncio itself.)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: task.done() or loop.call_soon_threadsafe(task.cancel))
    reason = "the server closed the connection"
    requests: Requests = asyncio.Queue()
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.ws_connect(arguments.url, heartbeat=30) as websocket,  # notices a server that just vanishes
            asyncio.TaskGroup() as tasks,
        ):
            reader = tasks.create_task(read(websocket, arguments.nick, requests))
            writer = tasks.create_task(write(websocket, arguments.nick, requests))
            reader.add_done_callback(lambda _: writer.cancel())
            writer.add_done_callback(lambda _: reader.cancel())
    except* ConnectionResetError:
        pass  # the writer noticed it before the reader
    except* (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, AssertionError):  # aiohttp asserts, for //host
        reason = "this is not the address of a WebSocket"
    except* (aiohttp.ClientError, OSError) as errors:
        reason = str(errors.exceptions[0]) or "the server does not answer"
    return clean(f"{arguments.url}: {reason}.")


def main() -> None:
    """Run until Ctrl+C, which says goodbye to the server, or until the connection ends, which is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://localhost:8080/chat", help="default: %(default)s")
    parser.add_argument("--nick", default="MathBot", help="the name to try first (default: %(default)s)")
    if sys.stdout:  # it may not have letters for everything
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with contextlib.suppress(asyncio.CancelledError):
        sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
