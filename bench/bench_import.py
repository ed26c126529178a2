"""How long a user waits before anything happens: `import graphsim` and `graphsim --help` beside an empty Python."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

COMMANDS = {
    "import graphsim": ([sys.executable, "-c", "import graphsim; print(graphsim.__version__)"], "."),
    "graphsim --help": ([sys.executable, "-m", "graphsim", "--help"], "Usage"),
}


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def seconds_of_an_empty_python() -> float:
    empty = []
    for _ in range(10):
        start = time.perf_counter()
        run([sys.executable, "-c", "pass"])
        empty.append(time.perf_counter() - start)
    return sorted(empty)[5]


@pytest.mark.parametrize("name", COMMANDS)
def test_start(benchmark, name):
    command, expected = COMMANDS[name]
    assert expected in run(command)  # files are in the page cache, and compiled
    assert expected in benchmark.pedantic(run, args=(command,), rounds=10)
    if benchmark.enabled:
        median = benchmark.stats.stats.median
        benchmark.extra_info["ms"] = round(1000 * median)
        benchmark.extra_info["times an empty Python"] = round(median / seconds_of_an_empty_python(), 1)
