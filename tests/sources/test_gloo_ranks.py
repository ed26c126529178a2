"""Ranks against real processes that talk over loopback with gloo: live bytes at the peak of both steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from gloo_ranks import PLANS  # noqa: E402
from test_torch_ranks import captured  # noqa: E402

import graphsim as gs  # noqa: E402

SIZE = 2


def real_peaks(name: str, folder: Path) -> list[list[int]]:
    """Return the peaks of both steps of each rank."""
    script = Path(__file__).parent / "gloo_ranks.py"
    command = [sys.executable, str(script), name]
    ranks = [
        subprocess.Popen([*command, str(rank), str(SIZE), str(folder / "store"), "patient"], stdout=subprocess.PIPE)
        for rank in range(SIZE)
    ]
    return [json.loads(rank.communicate(timeout=500)[0]) for rank in ranks]


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANS)
def test_two_processes_need_what_is_predicted(name, tmp_path):
    """Two things are gloo's own. A thread of its holds the operands of a collective a little longer than the step does:
    the processes wait for it (without that, FSDP needs up to two blocks more). And it scatters sums by a copy of all
    that is added up (ProcessGroupGloo.cpp, ``reduce_scatter_tensor_coalesced``), which NCCL does not.
    """
    first, steady = captured(PLANS[name], 0, SIZE).steps()
    copied = [
        max(steady.tensors[operand].nbytes for operand in op.inputs) for op in steady.ops if op.kind == "reduce_scatter"
    ]
    for real in real_peaks(name, tmp_path):
        assert real[0] == gs.simulate(first).peak
        assert 0 <= real[1] - gs.simulate(steady).peak <= max(copied)
