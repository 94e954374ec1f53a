"""Chat from a terminal, or through a pipe. A line is a message; /help shows what else can be typed.

A Chat speaks the protocol and knows nothing of screens; a Terminal reads and shows lines and knows nothing of the chat.
Two tasks share a connection: one reads what the server sends, the other one does what the user types.
"""

import signal

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl+C ends it without a word while the rest is imported

import argparse
import asyncio
import codecs
import contextlib
import json
import os
import re
import sys
import textwrap
import time
import unicodedata
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, TextIO

import aiohttp
from aioconsole.stream import run_as_daemon
from yarl import URL

try:
    import termios
    import tty
except ImportError:  # Windows, whose console edits lines by itself
    termios = None  # type: ignore[assignment]

HELP = """\
/nick NAME     change your nickname
/join ROOM     go to another room
/users [ROOM]  show who is in this room, or in another one
/help          show this
/quit          leave, as Ctrl+D and Ctrl+C do
//text         say something that begins with a slash"""
COMMANDS = re.findall(r"^/\w+", HELP, re.MULTILINE)
MAX_MESSAGE = 64 * 1024  # bytes that the server takes at once
MAX_WAITING = 10_000  # lines to print, if the terminal is paused, or to send
HANDSHAKE_TIMEOUT = RESPONSE_TIMEOUT = 10  # seconds for the server to respond
MIN_PAUSE, MAX_PAUSE = 1, 60  # seconds between two attempts to connect again
GOODBYE_TIMEOUT = 2  # seconds for the server to respond to the close frame
NOTICE, ERROR, MARK, PROMPT, FAINT = (
    "36",
    "31",
    "1;35",
    "1",
    "2",
)  # cyan, red, bold magenta, bold, dim
NAMES = [
    f"38;5;{number}" for number in (32, 166, 28, 162, 136, 98, 30, 167, 64)
]  # legible on black and on white
# A key, as a terminal sends it (ESC [ A is the arrow up), or several characters in a row.
KEY = re.compile(r"\x1b+(?:[\[O][0-?]*[^0-?]|[^\[O\x1b])|[^\x00-\x1f\x7f\x1b]+|[^\x1b]")
FILLER = "\0"  # stands for the second column that a wide character takes
SAME = {
    "\x1b[A": "\x10",
    "\x1b[B": "\x0e",
    "\x1b[C": "\x06",
    "\x1b[D": "\x02",
    "\x1b[H": "\x01",
    "\x1b[F": "\x05",
}
SAME |= {"\x1b[1~": "\x01", "\x1b[4~": "\x05", "\x1b[3~": "\x04", "\b": "\x7f", "\n": "\r"}
# What a key makes of the text that is left and right of the cursor.
EDITS: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "\x02": lambda left, right: (left[:-1], left[-1:] + right),  # Ctrl+B, or the arrow
    "\x06": lambda left, right: (left + right[:1], right[1:]),  # Ctrl+F, or the arrow
    "\x01": lambda left, right: ("", left + right),  # Ctrl+A, Home
    "\x05": lambda left, right: (left + right, ""),  # Ctrl+E, End
    "\x7f": lambda left, right: (left[:-1], right),  # Backspace
    "\x04": lambda left, right: (left, right[1:]),  # Ctrl+D, Delete
    "\x17": lambda left, right: (left[: left.rstrip().rfind(" ") + 1], right),  # Ctrl+W
    "\x15": lambda left, right: ("", right),  # Ctrl+U
    "\x0b": lambda left, right: (left, ""),  # Ctrl+K
}


class Chat:
    """A user's side of the protocol: its requests, and what the server sends."""

    websocket: aiohttp.ClientWebSocketResponse
    response: asyncio.Future[dict[str, Any]]

    def __init__(self, terminal: "Terminal", options: argparse.Namespace) -> None:
        self.terminal = terminal
        self.options = options  # which room, nick, verbose, reconnect
        self.room = self.user = ""  # where the server put us, and as whom
        self.users: set[str] = set()  # who is in the room
        terminal.words = lambda: [*COMMANDS, *sorted(self.users)]

    async def read(self) -> None:
        """Show what the server sends, until the connection closes."""
        async for message in self.websocket:
            if (
                message.type is aiohttp.WSMsgType.ERROR
            ):  # a broken frame, or no response to a heartbeat
                raise aiohttp.ClientError(message.data)
            if self.options.verbose:
                await self.terminal.show(f"< {message.data!r}", FAINT)
            body: Any = None
            with contextlib.suppress(ValueError, RecursionError):
                body = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else None
            match body:
                case {"action": "connecting", "room": str(room), "user": str(user)}:
                    self.room, self.user = room, user
                case _ if not self.user:
                    raise aiohttp.ClientError("this is a WebSocket, but not a chat")
                case {"success": bool()} if not self.response.done():
                    self.response.set_result(body)
                    await asyncio.sleep(0)  # who asked goes on before the next message is shown
                case {"action": "chat_message", "user": str(user), "message": str(text)}:
                    names_us = re.search(
                        rf"(?<!\w){re.escape(self.user)}(?!\w)", text, re.IGNORECASE
                    )
                    await self.terminal.show(text, MARK if names_us else "", user)
                case {"action": "joined", "user": str(user), "room": str(room)}:
                    self.users.add(user)
                    await self.terminal.show(f"* {user} joined {room}", NOTICE)
                case {"action": "nick_changed", "from_user": str(old), "to_user": str(new)}:
                    self.users = self.users - {old} | {new}
                    await self.terminal.show(f"* {old} is now known as {new}", NOTICE)
                case {"action": "left", "user": str(user)}:
                    self.users.discard(user)
                    shame = " without a goodbye: shame!" if body.get("shame") is True else ""
                    await self.terminal.show(f"* {user} left{shame}", NOTICE)

    async def write(self) -> None:
        """Go to the room, take the nickname, and then do what the user types, until that ends."""
        # A chat greets before it responds. An echo server would now be told from one, as it responds first.
        await self.ask(action="user_list", room="default")
        if self.options.room and self.options.room != self.room:
            await self.do(f"/join {self.options.room}")
        if self.options.nick and self.options.nick != self.user:
            await self.do(f"/nick {self.options.nick}")
        self.options.room, self.options.nick = self.room, self.options.nick or self.user
        line: str | None = "/users"
        while line is not None and line.strip() != "/quit":
            room = self.room
            await self.do(line)
            if self.room != room:
                await self.do("/users")
            line = await self.terminal.read_line(f"{self.room} {self.user}> ")
        self.options.reconnect = False

    async def do(self, line: str) -> None:
        """Do what the user has typed: send it, or obey a command."""
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        match command:
            case "/join" if argument == self.room:
                await self.terminal.show(f"! You are already in {self.room}", ERROR)
            case "/join":
                if await self.ask(action="join_room", room=argument):
                    self.room = self.options.room = argument
                    await self.terminal.show(f"* You are now in {self.room}", NOTICE)
            case "/nick":
                if await self.ask(action="set_nick", nick=argument):
                    self.user = self.options.nick = argument
                    await self.terminal.show(f"* You are now known as {self.user}", NOTICE)
            case "/users":
                room = argument or self.room
                match await self.ask(action="user_list", room=room):
                    case {"users": list(users)}:
                        users = [str(user) for user in users]
                        self.users = set(users) if room == self.room else self.users
                        await self.terminal.show(
                            f"* In {room}: {', '.join(users) or 'nobody'}", NOTICE
                        )
            case "/help":
                for row in HELP.splitlines():
                    await self.terminal.show(f"* {row}", NOTICE)
            case _ if command.startswith("/") and not command.startswith("//"):
                await self.terminal.show(
                    f"! There is no {command}; /help shows what there is", ERROR
                )
            case _ if line.strip():
                text = line.removeprefix("/")
                if await self.ask(action="chat_message", message=text):
                    await self.terminal.show(text, name=self.user)

    async def ask(self, **request: str) -> dict[str, Any] | None:
        """Send a request and return its response; show why and return None if it is refused.

        The server responds to requests in order, and only one is on its way at a time: the next response is its own.
        Raise TimeoutError if there is none, since a late one would pass for the next.
        """
        data = json.dumps(request, ensure_ascii=False).encode(errors="backslashreplace").decode()
        if (size := len(data.encode())) > MAX_MESSAGE:
            await self.terminal.show(f"! This is too long: {size} bytes of {MAX_MESSAGE}", ERROR)
            return None
        self.response = asyncio.get_running_loop().create_future()
        if self.options.verbose:
            await self.terminal.show(f"> {data}", FAINT)
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                await self.websocket.send_str(data)
                response = await self.response
        except BaseException:
            if "message" in request:  # the connection broke, or the user leaves
                await self.terminal.show(
                    f"! Maybe nobody has seen this: {request['message']}", ERROR
                )
            raise
        if response["success"]:
            return response
        reason = str(response.get("message"))
        if (
            "already in use" not in reason and "message" not in request
        ):  # its other reasons are about the protocol
            what = "nickname" if "nick" in request else "room's name"
            reason = f"A {what} has 1 to 32 printable characters"
        await self.terminal.show(f"! {reason}", ERROR)
        return None


class Terminal:
    """A screen and a keyboard. A real one keeps the line that is being typed whole, below all that is shown.

    Standard streams can block: whatever is read or written waits in a thread, which ends with the program.
    """

    def __init__(self, stdin: TextIO, stdout: TextIO) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.is_real = (
            termios
            and stdin.isatty()
            and stdout.isatty()
            and os.environ.get("TERM", "dumb") != "dumb"
        )
        self.is_open = True
        self.lines: asyncio.Queue[str | None] = asyncio.Queue(MAX_WAITING)  # that have been typed
        self.output: asyncio.Queue[str] = asyncio.Queue(MAX_WAITING)
        self.messages: deque[tuple[str, str, str, str]] = deque(
            maxlen=100
        )  # for when the screen changes its size
        self.prompt = self.left = self.right = ""  # what is left and right of the cursor
        self.history, self.place = [""], 0  # the last line is the one that is new
        self.words: Callable[[], list[str]] = list  # what Tab completes

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Read and print for as long as this lasts. In the end, the terminal is as it was, with what is half typed."""
        loop = asyncio.get_running_loop()
        if self.is_real:
            attributes = termios.tcgetattr(self.stdin)
            loop.add_signal_handler(signal.SIGWINCH, self.draw_all)
            loop.add_signal_handler(signal.SIGCONT, self.resume)
            self.resume()
        async with asyncio.TaskGroup() as tasks:
            keyboard = tasks.create_task(self.read_keys())
            printer = tasks.create_task(self.print_all())
            try:
                yield
            finally:
                keyboard.cancel()
                self.is_open = False
                self.draw()
                if self.is_real:
                    with contextlib.suppress(termios.error):  # the window may be closed
                        termios.tcsetattr(self.stdin, termios.TCSANOW, attributes)
                await asyncio.wait([printer], timeout=GOODBYE_TIMEOUT)  # the terminal may be paused
                printer.cancel()

    def resume(self) -> None:
        """Get keys instead of lines, now or again after Ctrl+Z: the shell has it its own way."""
        with contextlib.suppress(termios.error):  # the window may be closed
            tty.setcbreak(self.stdin, termios.TCSANOW)
        self.draw()

    async def print_all(self) -> None:
        """Print what is waiting in one piece, with the line that is being typed below it."""
        while self.is_open or not self.output.empty():
            texts = [await self.output.get()]
            while not self.output.empty():
                texts.append(self.output.get_nowait())
            text = f"\r\033[J{''.join(texts)}{self.row()}" if self.is_real else "".join(texts)
            data = text.encode(self.stdout.encoding, "backslashreplace")
            try:
                while data:
                    data = data[await run_as_daemon(raw(self.stdout).write, data) :]
            except OSError:
                if (
                    not self.is_real
                ):  # a window that is closed ends the keyboard, too, and that is a goodbye
                    raise
            for _ in texts:
                self.output.task_done()

    async def show(self, text: str, style: str = "", name: str = "") -> None:
        """Show a message; wait if the terminal has been paused for too long."""
        message = (
            time.strftime("%H:%M ") if self.stdout.isatty() else "",
            clean(name),
            clean(text),
            style,
        )
        self.messages.append(message)
        await self.output.put(self.render(*message))

    def render(self, clock: str, name: str, text: str, style: str) -> str:
        """Return a message as rows of the screen, wrapped at words, with a hanging indent."""
        head = f"{clock}{name}: " if name else clock
        if not self.is_real:
            return f"{head}{text}\n"
        columns = self.columns()
        indent = " " * len(widen(head)) if len(widen(head)) <= columns // 2 else ""
        wrapper = textwrap.TextWrapper(
            max(columns - 1, 1), subsequent_indent=indent, break_on_hyphens=False
        )
        rows = "\n".join(wrapper.wrap(widen(head + text))).replace(FILLER, "")
        if not rows.startswith(head):  # the screen is very narrow
            return self.paint(rows, style) + "\n"
        colour = NAMES[zlib.crc32(name.encode()) % len(NAMES)]
        start = self.paint(clock, FAINT) + self.paint(head.removeprefix(clock), colour)
        return start + self.paint(rows.removeprefix(head), style) + "\n"

    def paint(self, text: str, style: str) -> str:
        """Return a text in a style, unless colours are not wanted."""
        return (
            f"\033[{style}m{text}\033[0m"
            if style and text and not os.environ.get("NO_COLOR")
            else text
        )

    def columns(self) -> int:
        """Return how many columns the screen has. A serial line does not know, and a window may be closed."""
        with contextlib.suppress(OSError):
            return os.get_terminal_size(self.stdout.fileno()).columns or 80
        return 80

    def row(self) -> str:
        """Return what is typed as one row of the screen, of a long line the part around the cursor; at the end, all."""
        left, right = clean(self.left), clean(self.right)
        if not self.is_open:
            return f"{self.prompt}{left}{right}\n" if left + right else ""
        columns = self.columns()
        prompt = widen(self.prompt)[: columns // 2]
        free = columns - len(prompt) - 2
        left, right = widen(left[-columns:]), widen(right[:columns])
        if len(left) + len(right) > free:
            left = left[-free * 3 // 4 :]
        # ESC 7 and 8 save the cursor and bring it back: the terminal knows best how wide a character is.
        line = f"{left}\0337{right[: free - len(left)]}\0338"
        return f"\033[?7l{self.paint(prompt, PROMPT)}{line}\033[?7h".replace(FILLER, "")

    def draw(self, rows: str = "") -> None:
        """Print rows, and the line that is being typed anew. If much is waiting already, that will do."""
        if not self.output.full():
            self.output.put_nowait(rows)

    def draw_all(self) -> None:
        """Draw everything again, for a screen of another size."""
        rows = "".join(self.render(*message) for message in self.messages).splitlines(keepends=True)
        self.draw(
            "\033[H\033[2J" + "".join(rows[1 - os.get_terminal_size(self.stdout.fileno()).lines :])
        )

    async def read_line(self, prompt: str) -> str | None:
        """Return what the user types, or None at the end of the input; the last line needs no newline."""
        self.prompt = clean(prompt)
        self.draw()
        line = await self.lines.get()
        if line is None and not self.is_real:
            await self.output.join()  # somebody may read slowly; a terminal may be paused for ever
        return line

    async def read_keys(self) -> None:
        """Do what the keys say, until the terminal is gone."""
        keys, decoder = "", codecs.getincrementaldecoder(self.stdin.encoding)("replace")
        with contextlib.suppress(OSError):
            while data := await run_as_daemon(raw(self.stdin).read, 65536):
                keys += decoder.decode(data)
                if self.is_real:
                    while key := KEY.match(keys):
                        keys = keys[key.end() :]
                        await self.press(SAME.get(key[0].replace("\x1bO", "\x1b["), key[0]))
                    self.draw()
                else:
                    *lines, keys = keys.split("\n")
                    for line in lines:
                        await self.lines.put(line.removesuffix("\r"))
        if keys and not self.is_real:
            await self.lines.put(keys)
        await self.lines.put(None)

    async def press(self, key: str) -> None:
        """Do what a key says, or several characters in a row."""
        line = self.left + self.right
        match key:
            case "\r":
                await self.lines.put(line)
                self.history[-1:] = [line, ""] if line else [""]
                self.left, self.right, self.place = "", "", len(self.history) - 1
            case "\x04" if not line and self.lines.empty():
                signal.raise_signal(
                    signal.SIGTERM
                )  # even if nobody waits for lines, as there is no connection
            case "\x04" if not line:
                await self.lines.put(None)
            case "\x10" | "\x0e" if (
                0 <= (place := self.place + (1 if key == "\x0e" else -1)) < len(self.history)
            ):
                # The arrow up and down, or Ctrl+P and Ctrl+N.
                self.history[self.place] = line
                self.left, self.right, self.place = self.history[place], "", place
            case "\t":
                typed = re.findall(r"[\w/]*$", self.left)[0]
                if words := [
                    word
                    for word in self.words()
                    if typed and word.lower().startswith(typed.lower())
                ]:
                    # As far as there is only one way to go on, and to the end if there is only one word.
                    words = words if len(words) > 1 else [f"{words[0]} "]
                    common = os.path.commonprefix(words)  # noqa: RUF071 (these are no paths)
                    self.left = self.left.removesuffix(typed) + max(typed, common, key=len)
                else:
                    self.left += " "  # from a text that is pasted
            case _ if key in EDITS:
                self.left, self.right = EDITS[key](self.left, self.right)
            case _ if key >= " ":
                self.left += key


def raw(stream: TextIO) -> Any:
    """Return a stream without Python's buffers: a thread that still waits in one at the end would be a fatal error."""
    return getattr(stream.buffer, "raw", stream.buffer)  # with `python -u`, there is none


def clean(text: str) -> str:
    """Return a text from others with everything escaped that could do more than be read (ESC is shown as \\x1b)."""
    # The joiner of emoji (U+200D) is harmless, though not printable; of the spaces, str.isprintable knows only one.
    return "".join(
        char if char.isprintable() or char == "\u200d" else char.encode("unicode_escape").decode()
        for char in text
    )


def widen(text: str) -> str:
    """Return a text that has as many characters as it takes columns of a screen."""
    text = unicodedata.normalize("NFC", text)
    return "".join(
        char + FILLER if unicodedata.east_asian_width(char) in "WF" else char for char in text
    )


async def talk(chat: Chat, url: URL) -> None:
    """Connect and chat until the user leaves. To cancel this is to say goodbye; failures are raised."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(HANDSHAKE_TIMEOUT)) as session,
        session.ws_connect(
            url, heartbeat=30
        ) as chat.websocket,  # the heartbeat notices a server that fell silent
        asyncio.TaskGroup() as tasks,
    ):
        reader = tasks.create_task(chat.read())
        writer = tasks.create_task(chat.write())
        try:
            await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.cancel()
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                await chat.websocket.close()  # the goodbye
                await reader  # it hears the end; cancelled, it would break the connection
    if writer.cancelled():
        raise ConnectionResetError


async def run(chat: Chat, url: URL) -> None:
    """Chat until the user leaves. After growing pauses, begin again when the connection ends, if that is wanted."""
    task, pause = asyncio.current_task(), 0
    assert task
    async with chat.terminal.open():
        while True:
            chat.user = ""
            try:
                return await talk(chat, url)
            except (ExceptionGroup, aiohttp.ClientError, OSError) as error:
                pause = MIN_PAUSE if chat.user else min(2 * pause, MAX_PAUSE)
                if not (chat.options.reconnect and pause) or task.cancelling():
                    raise
                await chat.terminal.show(f"! {why(error)} (trying again in {pause} s)", ERROR)
            await asyncio.sleep(pause)


def why(error: BaseException) -> str:
    """Return in words why the connection ended; raise an error that is our own."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case ConnectionResetError():
            return "the server closed the connection"
        case aiohttp.ClientConnectorError() | TimeoutError():
            return "no response; is the server running?"
        case aiohttp.ClientResponseError():
            return f"this is not a WebSocket: HTTP {error}"
        case aiohttp.ClientError() | OSError():
            return str(error)
    raise error


async def main() -> None:
    """Chat until Ctrl+C, SIGTERM or SIGHUP, which say goodbye, or until the connection ends, which is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--url", type=URL, default="ws://localhost:8080/chat", help="default: %(default)s"
    )
    parser.add_argument("--nick", help="the name to take")
    parser.add_argument("--room", help="the room to join")
    parser.add_argument("--verbose", action="store_true", help="show every frame")
    parser.add_argument(
        "--reconnect", action="store_true", help="when the connection ends, connect again"
    )
    options = parser.parse_args()
    url = options.url
    if url.scheme not in ("ws", "wss", "http", "https") or not url.host:
        parser.error(f"{str(url)!r} is not the address of a chat, such as ws://localhost:8080/chat")
    if not (sys.stdin and sys.stdout):
        sys.exit("The chat needs a standard input and output; /dev/null will do.")
    task = asyncio.create_task(run(Chat(Terminal(sys.stdin, sys.stdout), options), url))

    def leave(*_: object) -> None:
        if not (task.cancelling() or task.done()):  # a second signal may not cut the goodbye short
            task.get_loop().call_soon_threadsafe(task.cancel)

    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
        if (
            signal.getsignal(number := getattr(signal, name)) is not signal.SIG_IGN
        ):  # nohup ignores it
            signal.signal(number, leave)
    try:
        await task
    except asyncio.CancelledError:
        pass
    except (ExceptionGroup, aiohttp.ClientError, OSError) as error:
        sys.exit(f"{url}: {why(error)}")


if __name__ == "__main__":
    asyncio.run(main())
