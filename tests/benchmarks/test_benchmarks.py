"""benchmarks/: they measure everything, or say why they can't, and leave nothing behind."""

import os
import re
import signal
import sys
from subprocess import check_output, run

import pytest

from tests.helpers import ROOT, StartScript, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need Linux")
bench = pytest.mark.needs("bench")

FAN_OUT = "benchmarks/fan_out.py"
LITTLE = "from benchmarks import fairness; del fairness.ATTACKS[1:]; fairness.main()"
WRONG = {
    f"{FAN_OUT} --talkers 1 500": "--talkers: from 1 to 499 of the members can talk",
    f"{FAN_OUT} --members 1000000000": "1000000000 members need 1000000100 open files",
    FAN_OUT: "The package websockets is missing; `uv run --group bench ...` installs it.",
    "benchmarks/fairness.py --server=no": "no does not start.",
}


@bench
async def test_report_of_fan_out(start_script: StartScript) -> None:
    options = "--members=5 --messages=9 --rounds=1 --talkers 1 2"
    _, report, _ = await (await start_script(FAN_OUT, *options.split())).end()
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


@pytest.mark.parametrize("command", WRONG)
async def test_what_cannot_be_measured(start_script: StartScript, command: str) -> None:
    script = await start_script("-S", *command.split())  # -S: with no packages
    code, _, errors = await script.end()
    assert code > 0
    assert WRONG[command] in errors


@bench
async def test_an_interrupt_leaves_nothing_behind(start_script: StartScript) -> None:
    script = await start_script(FAN_OUT)
    assert await script.process.stderr.readline() == b"Round 1 of 5 ...\n"
    os.killpg(script.process.pid, signal.SIGINT)  # a terminal sends it to the servers, too
    assert await script.end() == (130, "", "")
    group = ["pgrep", "-g", str(script.process.pid)]
    await eventually(lambda: run(group).returncode == 1)  # it has no members any more
