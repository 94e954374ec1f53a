"""What the tests of the clients share: a terminal, and a member who talks all the time."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import termios
import threading
from collections.abc import AsyncIterator

import pyte
import pytest

from tests.helpers import TIMEOUT, Member, eventually


class Screen:
    """A pseudo-terminal with an emulated screen. The time at the start of a row is shown as @."""

    chat: "asyncio.Task[None]"  # the client, if it runs in this process

    def __init__(self, columns: int = 60, rows: int = 12) -> None:
        self.output = b""
        try:
            self.master, self.slave = pty.openpty()
        except OSError as error:  # a container may lack /dev/pts
            pytest.skip(f"There are no pseudo-terminals here: {error}.")
        self.stdin, self.stdout = os.fdopen(self.slave, closefd=False), os.fdopen(self.slave, "w")
        self.attributes = termios.tcgetattr(self.slave)
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.resize(columns, rows)
        self.is_closed = threading.Event()
        # In a thread, because a client in this process blocks while nobody reads what it prints.
        self.thread = threading.Thread(target=self.render, daemon=True)
        self.thread.start()

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def render(self) -> None:
        while not self.is_closed.is_set():
            if select.select([self.master], [], [], 0.05)[0]:
                data = os.read(self.master, 100_000)
                self.output += data
                self.stream.feed(data)

    @property
    def rows(self) -> list[str]:
        """What the screen shows, without the empty rows at its end."""
        rows = "\n".join(row.rstrip() for row in self.screen.display).rstrip("\n").split("\n")
        return [re.sub(r"^\d\d:\d\d(?= )", "@", row) for row in rows]

    async def shows(self, *rows: str, cursor: int | None = None) -> None:
        """Wait until the screen ends with these rows, and with the cursor in this column."""

        def state() -> tuple[list[str], int | None]:
            return self.rows[-len(rows) :], None if cursor is None else self.screen.cursor.x

        with contextlib.suppress(TimeoutError):
            await eventually(lambda: state() == (list(rows), cursor))
        assert state() == (list(rows), cursor), "\n".join(self.rows)

    async def contains(self, text: str) -> None:
        """Wait until a row of the screen contains a text."""
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: any(text in row for row in self.rows))
            return
        raise AssertionError("\n".join(self.rows))

    async def type(self, text: str, *rows: str, cursor: int | None = None) -> None:
        """Type something, and wait until the screen ends with these rows."""
        await asyncio.to_thread(self.write, text.encode())
        if rows:
            await self.shows(*rows, cursor=cursor)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.master, data[:1000]) :]

    def is_restored(self) -> bool:
        """Return whether the terminal is as it was, with the cursor at the beginning of a row."""
        is_plain = termios.tcgetattr(self.slave) == self.attributes and os.get_blocking(self.slave)
        return is_plain and self.screen.cursor.x == 0

    def close(self) -> None:
        """Close the window, if it is open."""
        if not self.is_closed.is_set():
            self.is_closed.set()
            self.thread.join(TIMEOUT)
            self.stdin.close()
            self.stdout.close()
            os.close(self.master)


@contextlib.asynccontextmanager
async def busy(member: Member, text: str = "Hello!") -> AsyncIterator[None]:
    """Let a member send messages all the time, until somebody else has left with a close frame."""

    async def talk() -> None:
        while True:
            await member.send(action="chat_message", message=text)
            await asyncio.sleep(0.001)

    talking = asyncio.create_task(talk())
    try:
        async with asyncio.timeout(TIMEOUT):
            yield
            while (body := await member.receive())["action"] != "left":
                pass
        assert body["shame"] is False
    finally:
        talking.cancel()
