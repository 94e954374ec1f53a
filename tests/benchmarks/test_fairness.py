"""benchmarks/fairness.py: it measures everything, and says why it can't."""

import sys
from subprocess import PIPE, run

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark needs Linux")
LITTLE = "from benchmarks import fairness; del fairness.ATTACKS[1:]; fairness.main()"


@pytest.mark.needs("bench")  # it needs no package, but time
def test_the_report_is_complete() -> None:
    command = [sys.executable, "-c", LITTLE, "--members=5", "--seconds=0.01"]
    output = run(command, cwd=ROOT, stdout=PIPE, text=True, timeout=60, check=True).stdout
    _, one, many, shutdown, *links = output.splitlines()
    for row, talkers in ((one, "1"), (many, "20")):
        assert row.split()[:2] == [talkers, "talk"]
        assert all(float(time) > 0 for time in row.split()[2:])
    assert shutdown.startswith("Shutdown: exit code 0 after ")
    for count, line in zip((1, 5), links, strict=True):
        survivors = "[100, 250, 500, 1000, 2000] survive, of (100, 250, 500, 1000, 2000)"
        assert line == f"Large messages of {count}: {survivors} KB a second."


def test_no_server() -> None:
    command = [sys.executable, "benchmarks/fairness.py", "--server=no/server.py"]
    ended = run(command, cwd=ROOT, stderr=PIPE, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "no/server.py does not start.\n")
