"""Chat from a terminal or through a pipe. Each line is a message; /help lists the commands."""

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

import aiohttp
from aioconsole import get_standard_streams
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.renderer import print_formatted_text
from prompt_toolkit.shortcuts import PromptSession

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
CLOSE_TIMEOUT = 2  # seconds to wait for the server's close frame
MIN_PAUSE, MAX_PAUSE = 1, 60  # seconds between two attempts to connect again
CONNECTION_ERRORS = (aiohttp.ClientError, OSError, ValueError, RecursionError, AssertionError)
NOTICE, ERROR, MENTION, FAINT = "ansicyan", "ansired", "ansimagenta bold", "dim"
NAMES = "#0087d7 #d75f00 #008700 #d70087 #875fd7 #008787".split()  # legible on black and white


class Chat:
    """A user's side of the protocol, on one connection."""

    def __init__(self, console: "Terminal | Pipe", options: argparse.Namespace) -> None:
        self.console, self.show = console, console.show
        self.options = options  # room and nick are kept up to date, for the next connection
        self.room = self.user = ""  # as the server has confirmed them; empty until it has
        self.users: set[str] = set()  # in the room
        self.requests: asyncio.Queue[dict[str, str]] = asyncio.Queue()  # responses keep this order

    async def run(self) -> None:
        """Connect, and chat until the user leaves. Cancelling it closes the WebSocket properly."""
        connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())  # finds .local names
        session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(10))
        async with session, session.ws_connect(self.options.url, heartbeat=20) as self.websocket:
            reader = asyncio.create_task(self.read())
            writer = asyncio.create_task(self.write())
            try:
                done, _ = await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
            finally:
                writer.cancel()
                # A reader that is cancelled would not wait for the server's close frame.
                end = asyncio.gather(self.websocket.close(), reader, writer, return_exceptions=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(end, CLOSE_TIMEOUT)
            await asyncio.gather(*done)  # raises what made it fail

    async def read(self) -> None:
        """Show what the server sends; raise ConnectionError when it closes the connection."""
        async for message in self.websocket:
            if message.type is aiohttp.WSMsgType.ERROR:  # a broken frame, or no response to a ping
                raise aiohttp.ClientError(message.data)
            if self.options.verbose:
                await self.show(f"< {message.data!r}", FAINT)
            match message.json():
                case {"action": "connecting", "room": str(room), "user": str(user)}:
                    self.room, self.user = room, user
                case {"echo": _}:
                    raise ConnectionError("This is /echo, not /chat.")
                case {"success": bool()} as response if not self.requests.empty():
                    await self.receive_response(self.requests.get_nowait(), response)
                    self.requests.task_done()
                case {"action": "chat_message", "user": str(user), "message": str(text)}:
                    names_us = re.search(rf"(?i)(?<!\w){re.escape(self.user)}(?!\w)", text)
                    await self.show(text, MENTION if names_us else "", f"{user}: ")
                case {"action": "joined", "user": str(user), "room": str(room)}:
                    self.users.add(user)
                    await self.show(f"* {user} joined {room}", NOTICE)
                case {"action": "nick_changed", "from_user": str(old), "to_user": str(new)}:
                    self.users = self.users - {old} | {new}
                    await self.show(f"* {old} is now known as {new}", NOTICE)
                case {"action": "left", "user": str(user), **others}:
                    self.users.discard(user)
                    shame = " without a goodbye: shame!" if others.get("shame") else ""
                    await self.show(f"* {user} left{shame}", NOTICE)
        raise ConnectionError("The server closed the connection.")

    async def receive_response(self, request: dict[str, str], response: dict[str, object]) -> None:
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
                self.users = set(map(str, users)) if room == self.room else self.users
                await self.show(f"* In {room}: {', '.join(map(str, users)) or 'nobody'}", NOTICE)
            case {"action": "chat_message", "message": text}, _:
                await self.show(text, name=f"{self.user}: ")

    async def write(self) -> None:
        """Go to the room and take the nickname, then do what is typed, until the user leaves."""
        if self.options.room != START_ROOM:
            await self.send(action="join_room", room=self.options.room)
        if self.options.nick:
            await self.send(action="set_nick", nick=self.options.nick)
        if self.options.room == START_ROOM:
            await self.send(action="user_list", room=START_ROOM)
        while (line := await self.console.read_line()).strip() != "/quit":
            await self.do(line)

    async def do(self, line: str) -> None:
        """Send a line that was typed, or run it as a command."""
        command, _, argument = map(str.strip, line.partition(" "))
        match command:
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
        """Send a request. Input that is not UTF-8 (lone surrogates in it) is sent as escapes."""
        data = json.dumps(request, ensure_ascii=False).encode(errors="backslashreplace")
        if len(data) > MAX_MESSAGE:
            await self.show(f"! Too long: {len(data)} bytes; the limit is {MAX_MESSAGE}", ERROR)
            return
        if self.options.verbose:
            await self.show(f"> {data.decode()}", FAINT)
        self.requests.put_nowait(request)
        await self.websocket.send_str(data.decode())


class Terminal:
    """A screen and a keyboard. The line that is being typed stays intact below the output."""

    def __init__(self) -> None:
        self.chat: Chat  # the one on the present connection
        os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"  # not all terminals say where the cursor is
        self.lines: asyncio.Queue[str] = asyncio.Queue()  # typed, but not handled yet
        self.read_line = self.lines.get
        self.output: StyleAndTextTuples = []  # not printed yet
        self.session: PromptSession[str] = PromptSession(
            lambda: [("bold", clean(f"{self.chat.room} {self.chat.user}> ".lstrip()))],
            completer=WordCompleter(
                lambda: [*COMMANDS, *map(clean, sorted(self.chat.users))],
                ignore_case=True,
                pattern=re.compile(r"[^\s@]+"),
            ),
            complete_while_typing=False,
            reserve_space_for_menu=0,  # Tab shows one match after the other
            enable_suspend=True,
        )
        self.session.default_buffer.accept_handler = lambda buffer: self.enter(buffer.text)

    async def __aenter__(self) -> None:
        self.keyboard = asyncio.create_task(self.read_keys())

    async def __aexit__(self, *_: object) -> None:
        self.keyboard.cancel()  # a half-typed line stays on the screen
        await asyncio.wait([self.keyboard], timeout=CLOSE_TIMEOUT)  # a closed window hangs
        self.print()

    async def read_keys(self) -> None:
        """Read keys until the user presses Ctrl+C or Ctrl+D, or closes the window; then leave."""
        # One prompt lasts for the whole chat: between two, the terminal would echo keys by itself.
        with contextlib.suppress(EOFError, KeyboardInterrupt, OSError):
            await self.session.prompt_async(handle_sigint=False, set_exception_handler=False)
        signal.raise_signal(signal.SIGINT)

    def enter(self, text: str) -> bool:
        """Take what was typed; pasted text can have several lines. Return False to clear it."""
        for line in text.split("\n"):
            self.lines.put_nowait(line.replace("\t", " "))
        return False

    async def show(self, text: str, style: str = "", name: str = "") -> None:
        """Show a message within 50 ms, with all others until then, since a redraw is slow."""
        if not self.output:
            asyncio.get_running_loop().call_later(0.05, self.print)
        clock, colour = time.strftime("%H:%M "), NAMES[sum(map(ord, name)) % len(NAMES)]
        self.output += [(FAINT, clock), (colour, clean(name)), (style, f"{clean(text)}\n")]

    def print(self) -> None:
        """Print the output above the line that is being typed."""
        app, output, self.output = self.session.app, self.output, []
        with contextlib.suppress(OSError):  # the window was closed
            app.renderer.erase()  # run_in_terminal() would echo keys that are pressed meanwhile
            print_formatted_text(app.output, output, app.renderer.style)
            if app.is_running:  # not by invalidate(), which would draw later
                app.renderer.render(app, app.layout)


class Pipe:
    """Plain lines: for pipes, files, IDLE, and terminals that cannot move the cursor."""

    chat: Chat

    async def __aenter__(self) -> None:
        for stream in sys.stdin, sys.stdout:
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        self.stdin, self.stdout = await get_standard_streams()

    async def __aexit__(self, *_: object) -> None:
        """Print the rest, and let the streams block again, for programs that share them."""
        with contextlib.suppress(OSError):  # TimeoutError, too
            await asyncio.wait_for(self.stdout.drain(), CLOSE_TIMEOUT)
            self.stdout.write(b"")  # aioconsole may keep the last lines until the next write
            await asyncio.wait_for(self.stdout.drain(), CLOSE_TIMEOUT)
        if isinstance(self.stdin, asyncio.StreamReader):
            for stream in (sys.stdin, sys.stdout, sys.stderr):
                os.set_blocking(stream.fileno(), True)

    async def show(self, text: str, style: str = "", name: str = "") -> None:
        """Print a message, but do not wait for it: the server's pings need responses."""
        if self.stdout.is_closing():  # aioconsole would go on
            signal.raise_signal(signal.SIGINT)
        clock = time.strftime("%H:%M ") if sys.stdout.isatty() else ""
        self.stdout.write(f"{clock}{clean(name + text)}\n".encode())

    async def read_line(self) -> str:
        """Return the next line when the last one is done and printed; /quit ends the input."""
        await self.chat.requests.join()
        await self.stdout.drain()
        data = await self.stdin.readline()  # ainput() would lose a last line without a newline
        return data.decode(errors="backslashreplace").rstrip("\r\n") if data else "/quit"


def clean(text: str) -> str:
    """Escape all on which a terminal might act (ESC becomes \\x1b), but not the joiner of emoji."""
    return "".join(c if c.isprintable() or c == "\u200d" else ascii(c)[1:-1] for c in text)


async def main(options: argparse.Namespace) -> None:
    """Chat until the user leaves, or a signal arrives; exit with a sentence if the chat fails."""
    task = asyncio.current_task()

    def leave() -> None:
        if task and not task.cancelling():  # a second signal must not interrupt the close
            task.cancel()

    if sys.platform != "win32":  # there, asyncio.run() cancels this task on Ctrl+C
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            asyncio.get_running_loop().add_signal_handler(number, leave)
    is_file = isinstance(sys.stdin, io.TextIOWrapper)  # IDLE's are not, but say isatty()
    is_terminal = is_file and sys.stdin.isatty() and sys.stdout.isatty()
    console = Terminal() if is_terminal and os.environ.get("TERM") != "dumb" else Pipe()
    pause = 0
    async with console:
        while True:
            chat = console.chat = Chat(console, options)
            try:
                return await chat.run()
            except CONNECTION_ERRORS as error:  # ValueError: not JSON; AssertionError: //localhost
                reason = f"{type(error).__name__}: {error}"
                if isinstance(error.__cause__, ConnectionRefusedError):
                    reason += " Is the server running?"
                while not chat.requests.empty():
                    if text := chat.requests.get_nowait().get("message"):
                        await console.show(f"! This may not have been delivered: {text}", ERROR)
                options.nick = options.nick or chat.user
                pause = MIN_PAUSE if chat.user else min(2 * pause, MAX_PAUSE)
                if not (options.reconnect and pause):
                    sys.exit(clean(f"{options.url}: {reason}"))
                await console.show(f"! {reason} (trying again in {pause} s)", ERROR)
            await asyncio.sleep(pause)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://localhost:8080/chat", help="default: %(default)s")
    parser.add_argument("--nick", help="the name to take")
    parser.add_argument("--room", default=START_ROOM, help="the room to join")
    parser.add_argument("--verbose", action="store_true", help="show every message")
    parser.add_argument("--reconnect", action="store_true", help="connect again when disconnected")
    if not (sys.stdin and sys.stdout):
        sys.exit("client.py needs standard input and output (/dev/null is enough).")
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):  # the user left
        asyncio.run(main(parser.parse_args()))
