"""benchmarks/fan_out.py: that it measures everything, and notices what is wrong."""

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
    names = [row[0] + row[1] for row in rows]
    assert names == [name + n for name in ("server.py", "websockets", "floor") for n in "12"]
    for row, floor in zip(rows, rows[-2:] * 3, strict=True):
        cpu, ratio, rate, median, slow, _ = map(float, row[2:])
        assert ratio == pytest.approx(cpu / float(floor[2]), abs=0.05)
        assert (rate > 0, 0 < median <= slow) == (True, True)


SENTENCES = {  # by the options that can't be
    "--talkers 1 500": "argument --talkers: at most 499 of the members can talk at once.",
    "--messages 0": "argument --messages: invalid positive value: '0'",
    "--members 1000000000": "1000000000 members need 1000000100 open files, and this system",
    "": "The package websockets is missing; `uv run --group bench benchmarks/fan_out.py` installs",
}


@pytest.mark.parametrize("options", SENTENCES)
def test_what_cannot_be_measured(options: str) -> None:
    command = [sys.executable, "-S", *COMMAND[1:], *options.split()]  # -S: without any package
    ended = run(command, stderr=PIPE, text=True, timeout=60)
    assert ended.returncode in (1, 2)
    assert SENTENCES[options] in ended.stderr
    assert "Traceback" not in ended.stderr


@bench
def test_an_interrupt_leaves_nothing_behind() -> None:
    with Popen(COMMAND, stderr=PIPE, process_group=0) as process:
        assert process.stderr
        assert process.stderr.readline() == b"Round 1 of 5 ...\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(20), process.stderr.read()) == (130, b"")
    with pytest.raises(
        ProcessLookupError
    ):  # the process was the leader of a group that has no members any more
        os.killpg(process.pid, 0)


def test_frames_may_be_cut_anywhere() -> None:
    stream = fan_out.frame(b"?", opcode=9) + fan_out.frame(b"a") + fan_out.frame(b"b" * 130)
    member = object.__new__(fan_out.Member)
    member.rest, (member.socket, server) = b"", socket.socketpair()
    with member.socket, server:
        for cut in range(1, len(stream)):
            server.sendall(stream[:cut])
            heard = member.read()
            server.sendall(stream[cut:])
            assert heard + member.read() == [b"a", b"b" * 130]
            assert server.recv(100) == fan_out.frame(
                b"?", mask=bytes(4), opcode=10
            )  # the ping is answered


@pytest.mark.parametrize(("copies", "swapped"), [(0, b""), (2, b""), (1, b"09"), (1, b"12")])
def test_the_load_notices_what_is_wrong(
    copies: int, swapped: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(member: object) -> list[bytes]:  # the response, which names no user, stays as it is
        return [
            copy
            for p in read(member)
            for copy in ([p.translate(table)] * copies if b"user" in p else [p])
        ]

    read, table = fan_out.Member.read, bytes.maketrans(swapped, swapped[::-1])
    with fan_out.running("floor") as (_, port), closing(fan_out.Room()) as room:
        room.join(port, 4)
        monkeypatch.setattr(fan_out.Member, "read", spoil)
        monkeypatch.setattr(fan_out, "TIMEOUT", 0.2)
        with pytest.raises(
            SystemExit, match=r"something else is due|nothing came for 0\.2 seconds"
        ):
            room.talk(talkers := 3 if copies else 1, messages=talkers)
