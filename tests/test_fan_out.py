"""benchmarks/fan_out.py: that it measures everything, and that its load can count. How fast anything is, is no test."""

import asyncio
import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fan_out.py"
TINY = ("--members", "5", "--messages", "5", "--rounds", "1", "--flat", "3")

# A script, not part of a package.
fan_out = importlib.import_module("benchmarks.fan_out")

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the benchmark reads /proc, which Linux has")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the benchmark until its end."""
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def websockets() -> None:
    """Skip the test if there is nothing to compare the server with."""
    pytest.importorskip("websockets", reason="needs the package websockets: uv run --group bench pytest")


@linux
@pytest.mark.usefixtures("websockets")
def test_the_report_is_complete() -> None:
    ended = run(*TINY)
    assert ended.returncode == 0, ended.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ended.stdout.splitlines() if "|" in line]

    def cells(first: str, width: int) -> list[str]:
        """Return what follows the first cell of a row, in the one table of this width that has such a row."""
        (found,) = (row[1:] for row in rows if row[0] == first and len(row) == width)
        return found

    for name in ("server.py", "websockets", "websockets-deflate", "floor"):
        microseconds, rate, kibibytes = (float(cell.replace(",", "")) for cell in cells(name, 4))
        assert microseconds > 0
        assert rate > 0
        assert abs(kibibytes) < 1000  # none, or less, if so few members fit into memory that was there before
    for name in ("server.py", "aiohttp-echo"):
        assert float(cells(name, 2)[0]) > 0
    ours, floor, times = map(float, cells("3", 4))
    assert abs(ours / floor - times) < 0.05
    for name, target in (
        ("CPU of a delivery / websockets", "at most 1.0"),
        ("CPU of a delivery / floor", "at most 1.3"),
        ("CPU of an echo / aiohttp-echo", "at most 1.25"),
        ("CPU of a delivery, dearest / cheapest room", "at most 1.25"),
        ("the same, of the ratios to the floor", "at most 1.25"),
    ):
        ratio, printed_target = cells(name, 3)
        assert float(ratio) > 0
        assert printed_target == target
    assert cells("memory of a member (KiB)", 3)[1] == "at most 20"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--members", "1"], "argument --members: '1' is not a whole number from 2 on."),
        (["--messages", "many"], "argument --messages: 'many' is not a whole number from 1 on."),
        (["--rounds", "-1"], "argument --rounds: '-1' is not a whole number from 1 on."),
        (["--flat", "100", "0"], "argument --flat: '0' is not a whole number from 2 on."),
        (["--serve", "tea"], "argument --serve: invalid choice: 'tea'"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], complaint: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


@linux
@pytest.mark.usefixtures("websockets")
def test_more_members_than_files_are_refused() -> None:
    ended = run("--members", "1000000000")
    assert ended.returncode == 1
    assert re.fullmatch(r"So many members need 1000000100 open files, and this system allows \d+\.\n", ended.stderr)


@linux
@pytest.mark.usefixtures("websockets")
def test_an_interrupt_leaves_nothing_behind() -> None:
    command = [sys.executable, str(SCRIPT), "--members", "50"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("Round 1 of 5")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == ""
    with pytest.raises(ProcessLookupError):  # the process was the leader of a group that has no members any more
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda _: None, r"The server delivers too little: a member waited 0\.2 seconds for a frame\."),
        (lambda body: body.replace("000001", "1"), r"The server sends b'.*' where '000001 .*' is due\."),
    ],
)
async def test_the_load_notices_what_is_missing(
    spoil: Callable[[str], str | None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_others = fan_out.FloorMember.tell_others

    def spoil_a_message(member: Any, body: str) -> None:
        spoiled = spoil(body) if "000001" in body else body
        if spoiled:
            tell_others(member, spoiled)

    def load(port: int) -> None:
        with ExitStack() as stack:
            crowd = fan_out.Crowd(port, stack)
            crowd.join(3)
            for number in range(3):
                crowd.say(number)

    monkeypatch.setattr(fan_out, "TIMEOUT", 0.2)
    monkeypatch.setattr(fan_out.FloorMember, "tell_others", spoil_a_message)
    transports: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: fan_out.FloorMember(transports), fan_out.HOST, 0) as server:
        with pytest.raises(fan_out.Failure, match=complaint):
            await asyncio.to_thread(load, server.sockets[0].getsockname()[1])
        for transport in transports:
            transport.abort()
