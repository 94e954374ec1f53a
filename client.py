"""Chat from a terminal or through a pipe. Each line is a message; /help lists the commands.

A Chat speaks the protocol and knows nothing of screens. A Terminal or a Pipe reads and shows lines.
Two tasks share the connection: one reads what the server sends, the other sends what is typed.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import aiohttp
from aioconsole import get_standard_streams
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.renderer import print_formatted_text
from prompt_toolkit.shortcuts import PromptSession
from prompt_toolkit.utils import is_dumb_terminal

HELP = """\
/nick NAME     change your nickname
/join ROOM     go to another room
/users [ROOM]  show who is in this room, or in another one
/help          show this
/quit          leave, as Ctrl+D and Ctrl+C do
//text         send a message that begins with a slash"""
COMMANDS = re.findall(r"^/\w+", HELP, re.MULTILINE)
START_ROOM = "default"  # where the server puts a new user
MAX_MESSAGE = 64 * 1024  # bytes that the server accepts at once
TIMEOUT, CLOSE_TIMEOUT = 10, 2  # seconds for the server to open and to close the WebSocket
MIN_PAUSE, MAX_PAUSE = 1, 60  # seconds between two attempts to connect again
NOTICE, ERROR, MENTION, FAINT = "ansicyan", "ansired", "ansimagenta bold", "dim"
# The colours of names are legible on black and on white.
NAMES = ["#0087d7", "#d75f00", "#008700", "#d70087", "#af8700", "#875fd7", "#008787"]
# aiohttp raises UnicodeError for ws://a..b/, and AssertionError for //localhost/.
CONNECTION_ERRORS = (aiohttp.ClientError, OSError, UnicodeError, AssertionError)


class Chat:
    """A user's side of the protocol, on one connection."""

    websocket: aiohttp.ClientWebSocketResponse

    def __init__(self, console: "Terminal | Pipe", options: argparse.Namespace) -> None:
        self.console, self.show = console, console.show
        self.options = options  # room and nick are kept up to date, for the next connection
        self.room = self.user = ""  # as the server has confirmed them; empty until it has
        self.users: set[str] = set()  # in the room
        # The server responds to all requests, in order: a response belongs to the first one here.
        self.requests: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        console.chat = self

    async def read(self) -> None:
        """Show what the server sends; raise ConnectionError when it closes the connection."""
        async for message in self.websocket:
            if message.type is aiohttp.WSMsgType.ERROR:  # a broken frame, or no response to a ping
                raise aiohttp.ClientError(message.data)
            if self.options.verbose:
                await self.show(f"< {message.data!r}", FAINT)
            body: Any = None
            with contextlib.suppress(ValueError, RecursionError):
                body = json.loads(message.data)
            await self.receive(body)
        raise ConnectionError("the server closed the connection")

    async def receive(self, body: Any) -> None:
        """Show a message from the server. One that is not part of the protocol is ignored."""
        match body:
            case {"action": "connecting", "room": str(room), "user": str(user)}:
                self.room, self.user = room, user
            case _ if not self.user:
                raise aiohttp.ClientError("this is a WebSocket, but not a chat")
            case {"success": bool()} if not self.requests.empty():
                await self.receive_response(self.requests.get_nowait(), body)
                self.requests.task_done()
            case {"action": "chat_message", "user": str(user), "message": str(text)}:
                names_us = re.search(rf"(?<!\w){re.escape(self.user)}(?!\w)", text, re.IGNORECASE)
                await self.show(text, MENTION if names_us else "", user)
            case {"action": "joined", "user": str(user), "room": str(room)}:
                self.users.add(user)
                await self.show(f"* {user} joined {room}", NOTICE)
            case {"action": "nick_changed", "from_user": str(old), "to_user": str(new)}:
                self.users = self.users - {old} | {new}
                await self.show(f"* {old} is now known as {new}", NOTICE)
            case {"action": "left", "user": str(user)}:
                self.users.discard(user)
                shame = " without a goodbye: shame!" if body.get("shame") is True else ""
                await self.show(f"* {user} left{shame}", NOTICE)

    async def receive_response(self, request: dict[str, str], response: dict[str, Any]) -> None:
        """Show what the server did, or why it did not."""
        match request, response:
            case _, {"success": False}:
                await self.show(f"! {response.get('message')}", ERROR)
            case {"action": "join_room", "room": room}, _:
                self.room = self.options.room = room
                await self.show(f"* You are now in {room}", NOTICE)
                await self.send(action="user_list", room=room)
            case {"action": "set_nick", "nick": nick}, _:
                self.user = self.options.nick = nick
                await self.show(f"* You are now known as {nick}", NOTICE)
            case {"action": "user_list", "room": room}, {"users": list(users)}:
                users = [str(user) for user in users]
                self.users = set(users) if room == self.room else self.users
                await self.show(f"* In {room}: {', '.join(users) or 'nobody'}", NOTICE)
            case {"action": "chat_message", "message": text}, _:
                await self.show(text, name=self.user)

    async def write(self) -> None:
        """Go to the room and take the nickname, then do what is typed, until the user leaves."""
        if self.options.room != START_ROOM:
            await self.send(action="join_room", room=self.options.room)
        if self.options.nick:
            await self.send(action="set_nick", nick=self.options.nick)
        if self.options.room == START_ROOM:
            await self.send(action="user_list", room=START_ROOM)
        line: str | None = ""
        while line is not None and line.strip() != "/quit":
            await self.do(line)
            if not self.console.is_interactive:  # a pipe could send faster than it prints
                await self.requests.join()
            line = await self.console.read_line()

    async def do(self, line: str) -> None:
        """Send a line that was typed, or run it as a command."""
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        match command:
            case "/join" if argument == self.room:
                await self.show(f"! You are already in {self.room}", ERROR)
            case "/join":
                await self.send(action="join_room", room=argument)
            case "/nick":
                await self.send(action="set_nick", nick=argument)
            case "/users":
                await self.send(action="user_list", room=argument or self.room)
            case "/help":
                for row in HELP.splitlines():
                    await self.show(f"* {row}", NOTICE)
            case _ if command.startswith("/") and not command.startswith("//"):
                await self.show(f"! Unknown command {command}; /help lists the commands", ERROR)
            case _ if line.strip():
                await self.send(action="chat_message", message=line.removeprefix("/"))

    async def send(self, **request: str) -> None:
        """Send a request. read() receives the response."""
        # Input that is not UTF-8 has become lone surrogates. JSON can express them as escapes.
        data = json.dumps(request, ensure_ascii=False).encode(errors="backslashreplace")
        if len(data) > MAX_MESSAGE:
            await self.show(f"! Too long: {len(data)} bytes; the limit is {MAX_MESSAGE}", ERROR)
            return
        if self.options.verbose:
            await self.show(f"> {data.decode()}", FAINT)
        self.requests.put_nowait(request)
        with contextlib.suppress(ConnectionResetError):  # read() notices it, too
            await self.websocket.send_str(data.decode())


class Terminal:
    """A screen and a keyboard. The line that is being typed stays intact below the output."""

    is_interactive = True
    chat: Chat

    def __init__(self, leave: Callable[[], None]) -> None:
        self.leave = leave
        os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"  # not all terminals say where the cursor is
        self.lines: asyncio.Queue[str] = asyncio.Queue()  # typed, but not handled yet
        self.read_line = self.lines.get
        self.output: StyleAndTextTuples = []  # not printed yet
        words = WordCompleter(
            lambda: [*COMMANDS, *map(clean, sorted(self.chat.users))],
            ignore_case=True,
            pattern=re.compile(r"[^\s@]+"),
        )
        self.session: PromptSession[str] = PromptSession(
            lambda: [("bold", clean(f"{self.chat.room} {self.chat.user}> ".lstrip()))],
            completer=words,
            complete_while_typing=False,
            reserve_space_for_menu=0,  # Tab shows one match after the other
            enable_suspend=True,
        )
        self.session.default_buffer.accept_handler = self.enter

    async def __aenter__(self) -> None:
        self.keyboard = asyncio.create_task(self.read_keys())

    async def __aexit__(self, *_: object) -> None:
        """Restore the terminal, and leave a half-typed line on it."""
        self.session.app.erase_when_done = not self.session.default_buffer.text
        self.keyboard.cancel()
        await asyncio.wait([self.keyboard], timeout=CLOSE_TIMEOUT)
        self.print()
        try:
            sys.stdout.flush()
        except OSError:  # the window is closed; Python's own flush at the end would fail, too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    async def read_keys(self) -> None:
        """Read keys until the user presses Ctrl+C or Ctrl+D, or closes the window; then leave."""
        # One prompt lasts for the whole chat: between two, the terminal would echo keys by itself.
        with contextlib.suppress(EOFError, KeyboardInterrupt, OSError):
            await self.session.prompt_async(handle_sigint=False, set_exception_handler=False)
        self.leave()

    def enter(self, buffer: Buffer) -> bool:
        """Take what was typed; pasted text can have several lines. Return False to clear it."""
        for line in buffer.text.split("\n"):
            self.lines.put_nowait(line.replace("\t", " "))
        return False

    async def show(self, text: str, style: str = "", name: str = "") -> None:
        """Show a message within 50 ms, with all others until then, since a redraw is slow."""
        if not self.output:
            asyncio.get_running_loop().call_later(0.05, self.print)
        self.output.append((FAINT, time.strftime("%H:%M ")))
        if name:
            self.output.append((NAMES[sum(map(ord, name)) % len(NAMES)], f"{clean(name)}: "))
        self.output.append((style, f"{clean(text)}\n"))

    def print(self) -> None:
        """Print the output above the line that is being typed."""
        app, output, self.output = self.session.app, self.output, []
        with contextlib.suppress(OSError):  # the window was closed
            app.renderer.erase()  # run_in_terminal() would echo keys that are pressed meanwhile
            print_formatted_text(app.output, output, app.renderer.style)
            app.invalidate()


class Pipe:
    """Plain lines: for pipes, files, IDLE, and terminals that cannot move the cursor."""

    is_interactive = False
    chat: Chat
    line: "asyncio.Future[bytes] | None" = None  # that is being read

    async def __aenter__(self) -> None:
        for stream, errors in (sys.stdin, "replace"), (sys.stdout, "backslashreplace"):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=errors)
        self.stdin, self.stdout = await get_standard_streams()

    async def __aexit__(self, *_: object) -> None:
        """Print the rest, and let the streams block again, for programs that share them."""
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(self.stdout.drain(), CLOSE_TIMEOUT)
        if isinstance(self.stdin, asyncio.StreamReader):
            for stream in (sys.stdin, sys.stdout, sys.stderr):
                os.set_blocking(stream.fileno(), True)

    async def show(self, text: str, style: str = "", name: str = "") -> None:
        """Print a message as soon as the output can take it."""
        if self.stdout.is_closing():  # aioconsole would go on
            raise BrokenPipeError("the output is closed")
        start = time.strftime("%H:%M ") if sys.stdout.isatty() else ""
        start += f"{clean(name)}: " if name else ""
        # This does not wait for the output: meanwhile, nobody would respond to the server's pings.
        self.stdout.write(f"{start}{clean(text)}\n".encode())

    async def read_line(self) -> str | None:
        """Return the next line when all output is printed, and None at the end of the input."""
        await self.stdout.drain()
        # ainput() would lose a last line without a newline.
        self.line = self.line or asyncio.ensure_future(self.stdin.readline())
        data = await asyncio.shield(self.line)  # the next connection reads what this one does not
        self.line = None
        return data.decode(errors="replace").rstrip("\r\n") if data else None


def clean(text: str) -> str:
    """Escape everything in a text on which a terminal might act: ESC becomes \\x1b."""
    # The joiner of emoji, U+200D, is harmless, but not printable.
    return "".join(c if c.isprintable() or c == "\u200d" else ascii(c)[1:-1] for c in text)


def describe(error: BaseException) -> str:
    """Return in words why the connection ended."""
    match error:
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return "no response; is the server running?"
        case aiohttp.RedirectClientError():
            return f"redirected to {error}"
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | AssertionError():
            return "this is not an address such as ws://localhost:8080/chat"
    return str(error) or "the server does not respond"


async def talk(chat: Chat, url: str) -> None:
    """Connect, and chat until the user leaves. Cancelling it closes the WebSocket properly."""
    # aiohttp would use aiodns, which does not find names of the local network (mDNS).
    connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
    session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(TIMEOUT))
    async with session, session.ws_connect(url, heartbeat=20) as chat.websocket:
        reader = asyncio.create_task(chat.read())
        writer = asyncio.create_task(chat.write())
        try:
            done, _ = await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.cancel()
            # Let the reader finish: if it is cancelled, aiohttp does not wait for the close frame.
            end = asyncio.gather(chat.websocket.close(), reader, writer, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end, CLOSE_TIMEOUT)
        await asyncio.gather(*done)  # raises what made it fail


async def run(console: Terminal | Pipe, options: argparse.Namespace) -> None:
    """Chat until the user leaves. With --reconnect, connect again after growing pauses."""
    pause = 0
    while True:
        chat = Chat(console, options)
        try:
            return await talk(chat, options.url)
        except CONNECTION_ERRORS as error:
            while not chat.requests.empty():
                if text := chat.requests.get_nowait().get("message"):
                    await console.show(f"! This may not have been delivered: {text}", ERROR)
            options.nick = options.nick or chat.user
            pause = MIN_PAUSE if chat.user else min(2 * pause, MAX_PAUSE)
            if not (options.reconnect and pause):
                raise
            await console.show(f"! {describe(error)} (trying again in {pause} s)", ERROR)
        await asyncio.sleep(pause)


async def main(options: argparse.Namespace) -> None:
    """Chat until the user leaves, or until a signal arrives. Raise what ends the connection."""
    task = asyncio.current_task()

    def leave() -> None:
        if task and not task.cancelling():  # a second signal must not interrupt the close
            task.cancel()

    if sys.platform != "win32":  # there, asyncio.run() cancels this task on Ctrl+C
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            asyncio.get_running_loop().add_signal_handler(number, leave)
    streams = sys.stdin, sys.stdout  # IDLE's say isatty(), but are not files
    is_terminal = all(isinstance(s, io.TextIOWrapper) and s.isatty() for s in streams)
    console = Terminal(leave) if is_terminal and not is_dumb_terminal() else Pipe()
    async with console:
        await run(console, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://localhost:8080/chat", help="default: %(default)s")
    parser.add_argument("--nick", help="the name to take")
    parser.add_argument("--room", default=START_ROOM, help="the room to join")
    parser.add_argument("--verbose", action="store_true", help="show every message")
    parser.add_argument("--reconnect", action="store_true", help="connect again, when it ends")
    options = parser.parse_args()
    if not (sys.stdin and sys.stdout):
        sys.exit("client.py needs standard input and output (/dev/null is enough).")
    try:
        asyncio.run(main(options))
    except (asyncio.CancelledError, KeyboardInterrupt):
        pass  # the user left
    except CONNECTION_ERRORS as error:
        sys.exit(clean(f"{options.url}: {describe(error)}"))
