"""benchmarks/: they measure everything, or say why they can't, and leave nothing behind."""

import os
import re
import signal
import sys
from subprocess import PIPE, Popen, check_output, run

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need Linux")
bench = pytest.mark.needs("bench")

FAN_OUT = "benchmarks/fan_out.py"
LITTLE = "from benchmarks import fairness; del fairness.ATTACKS[1:]; fairness.main()"


@bench
def test_report_of_fan_out() -> None:
    options = ["--members=5", "--messages=9", "--rounds=1", "--talkers", "1", "2"]
    report = check_output([sys.executable, FAN_OUT, *options], cwd=ROOT, text=True, timeout=60)
    rows = re.findall(r"^\| (\S+) +\| +(\d) (?:\| +[\d.,]+ +){6}\|$", report, re.MULTILINE)
    names = ("server.py", "websockets", "floor")
    assert rows == [(name, talkers) for name in names for talkers in "12"]


@bench  # it needs no package, but time
def test_report_of_fairness() -> None:
    command = [sys.executable, "-c", LITTLE, "--members=5", "--seconds=0.01"]
    report = check_output(command, cwd=ROOT, text=True, timeout=60)
    rows = ["Round", " 1 talk", "20 talk", "Shutdown", "Large", "Large"]
    assert re.findall(r"^[ \d]*\w+", report, re.MULTILINE) == rows
    assert "Shutdown: exit code 0 after " in report


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        (f"{FAN_OUT} --talkers 1 500", 2, "--talkers: from 1 to 499 of the members can talk"),
        (f"{FAN_OUT} --members 1000000000", 1, "1000000000 members need 1000000100 open files"),
        (FAN_OUT, 1, "The package websockets is missing; `uv run --group bench ...` installs it."),
        ("benchmarks/fairness.py --server=no", 1, "no does not start."),
    ],
)
def test_what_cannot_be_measured(command: str, code: int, sentence: str) -> None:
    words = [sys.executable, "-S", *command.split()]  # -S: with no packages
    ended = run(words, cwd=ROOT, stderr=PIPE, text=True, timeout=60)
    assert (ended.returncode, sentence in ended.stderr) == (code, True), ended.stderr
    assert "Traceback" not in ended.stderr


@bench
def test_an_interrupt_leaves_nothing_behind() -> None:
    command = [sys.executable, FAN_OUT]
    with Popen(command, cwd=ROOT, stderr=PIPE, process_group=0) as process:
        assert process.stderr
        assert process.stderr.readline() == b"Round 1 of 5 ...\n"
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the servers, too
        assert (process.wait(20), process.stderr.read()) == (130, b"")
    # The process led a group, which soon has no members any more.
    wait = f"while pgrep -g {process.pid}; do sleep 0.01; done"
    check_output(["timeout", "20", "sh", "-c", wait])
