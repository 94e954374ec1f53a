"""A terminal for the tests of client.py."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Callable

import pyte
import pytest

from tests.helpers import Script, eventually


class Screen:
    """A pseudo-terminal with an emulated screen. The time at the start of a row is shown as @."""

    script: Script  # what runs there

    def __init__(self) -> None:
        self.output = b""
        try:
            master, slave = pty.openpty()
        except OSError as error:  # a container may lack /dev/pts
            pytest.skip(f"There are no pseudo-terminals here: {error}.")
        self.master, self.slave = os.fdopen(master, "r+b", 0), os.fdopen(slave)
        self.path = os.ttyname(slave)
        self.attributes = termios.tcgetattr(self.slave)
        self.screen = pyte.Screen(100, 24)
        self.stream = pyte.ByteStream(self.screen)
        self.resize(100, 24)
        asyncio.get_running_loop().add_reader(self.master, self.render)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def render(self) -> None:
        data = self.master.read(100_000)
        self.output += data
        self.stream.feed(data)

    @property
    def rows(self) -> list[str]:
        """What the screen shows, without the empty rows at its end."""
        rows = "\n".join(row.rstrip() for row in self.screen.display).rstrip("\n").split("\n")
        return [re.sub(r"^\d\d:\d\d(?= )", "@", row) for row in rows]

    async def waits_for(self, condition: Callable[[], bool]) -> None:
        with contextlib.suppress(TimeoutError):
            await eventually(condition)
        assert condition(), "\n".join(self.rows)

    async def shows(self, *rows: str, cursor: int | None = None) -> None:
        """Wait until the screen ends with these rows, and with the cursor in this column."""
        await self.waits_for(lambda: self.rows[-len(rows) :] == list(rows))
        await self.waits_for(lambda: cursor in (None, self.screen.cursor.x))

    async def contains(self, text: str) -> None:
        """Wait until the screen contains a text; a long one takes several rows."""
        await self.waits_for(lambda: text in "".join(self.screen.display))

    async def type(self, text: str, *rows: str, cursor: int | None = None) -> None:
        """Type something, and wait until the screen ends with these rows."""
        data = text.encode()
        while data:
            # In a thread, because the program may wait until its output is read.
            data = data[await asyncio.to_thread(self.master.write, data[:1000]) :]
        if rows:
            await self.shows(*rows, cursor=cursor)

    async def end(self) -> tuple[int, str]:
        """Wait until the script ends, restoring the terminal; return its exit code and errors."""
        code, _, errors = await self.script.end()
        await self.waits_for(lambda: self.screen.cursor.x == 0)
        assert termios.tcgetattr(self.slave) == self.attributes
        return code, errors

    def close(self) -> None:
        """Close the window, if it is open."""
        if not self.master.closed:
            asyncio.get_running_loop().remove_reader(self.master)
            self.master.close()
            self.slave.close()
