"""benchmarks/fairness.py: its sentence, and how it measures. All of it takes minutes."""

import asyncio
import importlib
import os
import sys
from subprocess import PIPE, run
from typing import Any

import pytest

from server import init_app
from tests.helpers import ROOT

needs_cpus = sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2
pytestmark = pytest.mark.skipif(needs_cpus, reason="the benchmark needs Linux and two CPUs")


def test_server_that_cannot_be_measured() -> None:
    command = [sys.executable, "benchmarks/fairness.py", "--server", "nothing.py"]
    ended = run(command, cwd=ROOT, stderr=PIPE, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "nothing.py does not start.\n")


async def test_round_trips(serve: Any) -> None:
    fairness = importlib.import_module("benchmarks.fairness")
    url = await serve(await init_app())
    median, slow = await asyncio.to_thread(fairness.time_requests, url.port, 0.1)
    assert 0 < median <= slow
