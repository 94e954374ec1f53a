"""benchmarks/fan_out.py: it measures everything, and its load generator notices what is wrong."""

import importlib.util
import os
import signal
import socket
import sys
from contextlib import closing
from subprocess import PIPE, Popen, check_output, run

import pytest

fan_out = importlib.import_module("benchmarks.fan_out")  # a script, not part of a package
COMMAND = [sys.executable, str(fan_out.__file__)]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark needs Linux")
bench = pytest.mark.needs("bench")


@bench
def test_the_report_is_complete() -> None:
    options = ["--members=5", "--messages=9", "--rounds=1", "--talkers", "1", "2"]
    output = check_output(COMMAND + options, text=True, timeout=60)
    rows = [line.replace(",", "").split()[1::2] for line in output.splitlines() if "|" in line][2:]
    names = "server.py1 server.py2 websockets1 websockets2 floor1 floor2"
    assert " ".join(row[0] + row[1] for row in rows) == names
    for row, floor in zip(rows, rows[-2:] * 3, strict=True):
        cpu, ratio, rate, median, slow, _ = map(float, row[2:])
        assert ratio == pytest.approx(cpu / float(floor[2]), abs=0.05)
        assert (rate > 0, 0 < median <= slow) == (True, True)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ("--talkers 1 500", 2, "--talkers: from 1 to 499 of the members can talk"),
        ("--messages 0", 2, "--talkers: from 1 to 0 of the members can talk"),
        ("--members 1000000000", 1, "1000000000 members need 1000000100 open files, and this "),
        ("", 1, "The package websockets is missing; `uv run --group bench ...` installs it."),
    ],
)
def test_what_cannot_be_measured(options: str, code: int, sentence: str) -> None:
    command = [sys.executable, "-S", *COMMAND[1:], *options.split()]  # -S: with no packages
    ended = run(command, stderr=PIPE, text=True, timeout=60)
    assert (ended.returncode, sentence in ended.stderr) == (code, True), ended.stderr
    assert "Traceback" not in ended.stderr


@bench
def test_an_interrupt_leaves_nothing_behind() -> None:
    with Popen(COMMAND, stderr=PIPE, process_group=0) as process:
        assert process.stderr
        assert process.stderr.readline() == b"Round 1 of 5 ...\n"
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the servers, too
        assert (process.wait(20), process.stderr.read()) == (130, b"")
    # The process led a group, which soon has no members any more.
    wait = f"while pgrep -g {process.pid}; do sleep 0.01; done"
    check_output(["timeout", "20", "sh", "-c", wait])


def test_frames_may_be_cut_anywhere() -> None:
    stream = fan_out.frame(b"?", opcode=9) + fan_out.frame(b"a") + fan_out.frame(b"b" * 130)
    member = object.__new__(fan_out.Member)
    member.rest, (member.socket, server) = b"", socket.socketpair()
    with member.socket, server:
        for cut in range(1, len(stream)):
            server.sendall(stream[:cut])
            received = member.read()
            server.sendall(stream[cut:])
            assert received + member.read() == [b"a", b"b" * 130]
            pong = fan_out.frame(b"?", mask=bytes(4), opcode=10)
            assert server.recv(100) == pong


@pytest.mark.parametrize(("copies", "swapped"), [(0, b""), (2, b""), (1, b"09"), (1, b"12")])
def test_the_load_notices_what_is_wrong(
    copies: int, swapped: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broadcasts are missing, arrive twice, with another text, or in another order."""

    def spoil(member: object) -> list[bytes]:
        payloads = []
        for payload in read(member):
            is_response = b"user" not in payload
            payloads += [payload] if is_response else [payload.translate(table)] * copies
        return payloads

    read, table = fan_out.Member.read, bytes.maketrans(swapped, swapped[::-1])
    with fan_out.running("floor") as (_, port), closing(fan_out.Room()) as room:
        room.join(port, 4)
        monkeypatch.setattr(fan_out.Member, "read", spoil)
        monkeypatch.setattr(fan_out, "TIMEOUT", 0.2)
        talkers = 3 if copies else 1
        with pytest.raises(SystemExit, match=r"something else is due|nothing came for 0\.2 sec"):
            room.talk(talkers, messages=talkers)
