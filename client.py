"""Chat from a terminal, or through a pipe. A line is a message; /help shows what else can be typed.

Two tasks share the connection: one reads what the server sends, the other one what the user types. When either of
them ends, for whatever reason, the other one ends with it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import aioconsole
import aiohttp

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

HELP = """\
/nick NAME     change your nickname
/join ROOM     go to another room
/users [ROOM]  show who is in this room, or in another one
/help          show this
/quit          leave, as Ctrl+D and Ctrl+C do
//text         say something that begins with a slash"""
MAX_MESSAGE = 64 * 1024  # bytes that the server takes at once
ANSWER_TIMEOUT = 10  # seconds to wait for the answer to a request, the handshake included
NOTICE, ERROR, PROMPT, FRAME = "36", "31", "1", "2"  # colours: cyan, red, bold, dim


class Chat:
    """A user's side of the chat: every request of the protocol, and what the server sends."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, terminal: "Terminal", verbose: bool) -> None:
        self.websocket = websocket
        self.terminal = terminal
        self.verbose = verbose
        self.room = self.user = ""
        # The next answer: each request gets exactly one, and the user's arrival counts as the first.
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def read(self) -> None:
        """Show what the server sends, until the connection closes."""
        async for message in self.websocket:
            if message.type is aiohttp.WSMsgType.ERROR:  # a frame that is broken, or no sign of life any more
                raise aiohttp.ClientError(message.data)
            if self.verbose:
                await self.terminal.show(f"< {message.data!r}", FRAME)
            body: Any = None
            if message.type is aiohttp.WSMsgType.TEXT:
                with contextlib.suppress(ValueError, RecursionError):
                    body = json.loads(message.data)
            match body:
                case {"success": bool()} | {"action": "connecting", "room": str(), "user": str()}:
                    if not self.answer.done():
                        self.answer.set_result(body)
                case {"action": "chat_message", "user": str(user), "message": str(text)}:
                    await self.terminal.show(f"{user}: {text}")
                case {"action": "joined", "user": str(user), "room": str(room)}:
                    await self.terminal.show(f"* {user} joined {room}", NOTICE)
                case {"action": "nick_changed", "from_user": str(old), "to_user": str(new)}:
                    await self.terminal.show(f"* {old} is now known as {new}", NOTICE)
                case {"action": "left", "user": str(user), "shame": True}:
                    await self.terminal.show(f"* {user} left without a goodbye: shame!", NOTICE)
                case {"action": "left", "user": str(user)}:
                    await self.terminal.show(f"* {user} left", NOTICE)
                case _ if self.verbose:
                    await self.terminal.show("< (skipped: this is not part of the protocol)", FRAME)

    async def write(self, room: str | None, nick: str | None) -> None:
        """Go to the room, take the nickname, and then do what the user types, until that ends."""
        connecting = await self.next_answer()
        self.room, self.user = connecting.get("room", ""), connecting.get("user", "")
        if room and room != self.room:
            await self.join_room(room)
        if nick:
            await self.set_nick(nick)
        await self.show_users(self.room)
        while (line := await self.terminal.read_line(self.room, self.user)) is not None:
            command, _, argument = line.partition(" ")
            match command:
                case "/nick":
                    await self.set_nick(argument.strip())
                case "/join":
                    await self.join_room(argument.strip())
                case "/users":
                    await self.show_users(argument.strip() or self.room)
                case "/help":
                    for row in HELP.splitlines():
                        await self.terminal.show(f"* {row}", NOTICE)
                case "/quit":
                    return
                case _ if command.startswith("/") and not command.startswith("//"):
                    await self.terminal.show(f"! There is no {command}; /help shows what there is", ERROR)
                case _ if line.strip():
                    await self.say(line.removeprefix("/"))

    async def set_nick(self, nick: str) -> None:
        """Change the user's name."""
        if await self.ask({"action": "set_nick", "nick": nick}):
            self.user = nick
            await self.terminal.show(f"* You are now known as {nick}", NOTICE)

    async def join_room(self, room: str) -> None:
        """Go to another room."""
        if await self.ask({"action": "join_room", "room": room}):
            self.room = room
            await self.terminal.show(f"* You are now in {room}", NOTICE)

    async def show_users(self, room: str) -> None:
        """Show who is in a room."""
        match await self.ask({"action": "user_list", "room": room}):
            case {"users": list(users)}:
                names = ", ".join(map(str, users)) or "nobody"
                await self.terminal.show(f"* In {room}: {names}", NOTICE)

    async def say(self, text: str) -> None:
        """Say something in the room; where nobody sees it being typed, show it as well."""
        if await self.ask({"action": "chat_message", "message": text}) and not self.terminal.interactive:
            await self.terminal.show(f"{self.user}: {text}")

    async def ask(self, request: dict[str, str]) -> dict[str, Any] | None:
        """Send a request and return its answer; show why and return None if it is refused."""
        data = json.dumps(request)
        if len(data) > MAX_MESSAGE:
            await self.terminal.show(f"! This is too long: {len(data)} bytes of {MAX_MESSAGE}", ERROR)
            return None
        self.answer = asyncio.get_running_loop().create_future()
        await self.websocket.send_str(data)
        if self.verbose:
            await self.terminal.show(f"> {data}", FRAME)
        answer = await self.next_answer()
        if answer.get("success"):
            return answer
        await self.terminal.show(f"! {answer.get('message')}", ERROR)
        return None

    async def next_answer(self) -> dict[str, Any]:
        """Wait for the server; raise TimeoutError if that takes too long, as a late answer would pass for the next."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await self.answer


class Terminal:
    """The screen and the keyboard. A half-typed line survives whatever is shown meanwhile."""

    async def open(self) -> None:
        """Take over the standard streams; aioconsole makes them non-blocking, so that a plain print could fail."""
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        self.was_blocking = {stream: os.get_blocking(stream.fileno()) for stream in (sys.stdin, sys.stdout) if termios}
        # Stderr may be a file, and is not needed. All three are kept: one that is dropped closes the others.
        self.streams = await aioconsole.stream.create_standard_streams(sys.stdin, sys.stdout, sys.stdout)
        self.reader, self.writer, _ = self.streams
        can_control = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.interactive = can_control and sys.stdin.isatty()
        self.coloured = can_control and not os.environ.get("NO_COLOR")
        self.prompting = False

    def close(self) -> None:
        """Give the standard streams back as they were, with the cursor at the beginning of a line."""
        for stream, blocking in self.was_blocking.items():
            os.set_blocking(stream.fileno(), blocking)
        with contextlib.suppress(OSError):  # the terminal may be gone
            if self.prompting:
                print(flush=True)
                if termios:  # a line that is not finished was meant for the chat, not for the shell
                    termios.tcflush(sys.stdin, termios.TCIFLUSH)

    async def show(self, text: str, colour: str = "") -> None:
        """Show a text, above the line that is being typed."""
        text = clean(text)
        for row in split(text, shutil.get_terminal_size().columns) if self.interactive else [text]:
            row = f"\033[{colour}m{row}\033[0m" if colour and self.coloured else row
            if self.interactive:
                # Index and reverse index (ESC D, ESC M) make room below, if the cursor is on the last row. Then the
                # cursor is saved (ESC 7), a row is inserted and filled without wrapping (ESC [?7l), and the cursor is
                # back (ESC 8), one row further down, where the typed line is now.
                row = f"\033D\033M\0337\r\033[L\033[?7l{row}\033[?7h\0338\033[B"
            self.writer.write(row if self.interactive else row + "\n")
        await self.writer.drain()

    async def read_line(self, room: str, user: str) -> str | None:
        """Return what the user types, or None at the end of the input; the last line needs no newline."""
        if self.interactive:
            half = shutil.get_terminal_size().columns // 2  # the other half is for what is typed
            prompt = next(split(clean(f"{room} {user}"), max(half, 3) - 2)) + "> "
            size = sum(map(width, prompt))
            # It is inserted at the beginning of the line: something may have been typed already.
            coloured = f"\033[{PROMPT}m{prompt}\033[0m" if self.coloured else prompt
            self.writer.write(f"\0337\r\033[{size}@{coloured}\0338\033[{size}C")
            await self.writer.drain()
        self.prompting = self.interactive
        try:
            line: bytes = await self.reader.readline()
        except AssertionError:  # from aioconsole, for a long last line without a newline
            line = await self.reader.read()
        if not line:
            return None
        self.prompting = False
        return line.decode(errors="replace").rstrip("\r\n")


def clean(text: str) -> str:
    """Return a text from others with everything escaped that could do more than be read (ESC is shown as \\x1b)."""
    # The joiner of emoji (U+200D) is harmless, though not printable; of the spaces, str.isprintable knows only one.
    return "".join(
        char if char.isprintable() or char == "\u200d" else char.encode("unicode_escape").decode() for char in text
    )


def width(char: str) -> int:
    """Return how many columns of the screen a character takes."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def split(text: str, columns: int) -> Iterator[str]:
    """Split a text into the rows of a screen."""
    row, used = "", 0
    for char in text:
        if used + width(char) > columns:
            yield row
            row, used = "", 0
        row, used = row + char, used + width(char)
    yield row


async def run(arguments: argparse.Namespace) -> str | None:
    """Chat until the user leaves; return a sentence if it ended in another way."""
    # Ctrl+C and SIGTERM cancel this task, and it the others. (Python's own KeyboardInterrupt could hit asyncio itself.)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: task.done() or loop.call_soon_threadsafe(task.cancel))
    terminal = Terminal()
    reason = "the server closed the connection"
    await terminal.open()
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_TIMEOUT)) as session,
            session.ws_connect(arguments.url, heartbeat=30) as websocket,
            asyncio.TaskGroup() as tasks,
        ):
            chat = Chat(websocket, terminal, arguments.verbose)
            reader = tasks.create_task(chat.read())
            writer = tasks.create_task(chat.write(arguments.room, arguments.nick))
            reader.add_done_callback(lambda _: writer.cancel())
            writer.add_done_callback(lambda _: reader.cancel())
        if not writer.cancelled():
            return None
    except* ConnectionResetError:
        pass  # the writer noticed it before the reader
    except* (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, AssertionError):  # aiohttp asserts, for //host
        reason = "this is not the address of a WebSocket"
    except* TimeoutError:
        reason = "the server does not answer"
    except* (aiohttp.ClientError, OSError) as errors:
        reason = str(errors.exceptions[0])
    finally:
        terminal.close()
    return f"{arguments.url}: {reason}."


def main() -> None:
    """Chat until the user leaves, or until the connection ends, which is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://localhost:8080/chat", help="default: %(default)s")
    parser.add_argument("--nick", help="the name to take")
    parser.add_argument("--room", help="the room to join")
    parser.add_argument("--verbose", action="store_true", help="show every frame")
    arguments = parser.parse_args()
    if not (sys.stdin and sys.stdout):
        sys.exit("The chat needs a standard input and output; /dev/null will do.")
    with contextlib.suppress(asyncio.CancelledError):
        sys.exit(asyncio.run(run(arguments)))


if __name__ == "__main__":
    main()
