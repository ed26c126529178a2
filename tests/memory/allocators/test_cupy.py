"""CuPy's pool: the model against the real one, in lock-step and in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "cupy_lockstep.py"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy (extra 'gpu'), no GPU")


def lockstep(what: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run([sys.executable, SCRIPT, what], capture_output=True, text=True, check=False, timeout=300)
    if "__pyx_capi__" in done.stderr or "KeyError" in done.stderr:
        pytest.skip("this CuPy does not let its runtime be replaced")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["specs", "random"])
def test_used_total_and_free_blocks_are_those_of_the_real_pool_at_every_event(what):
    results = lockstep(what)
    for name, count in results.items():
        differences = {key: count[key] for key in ("used", "total", "free_blocks", "plain_used", "out_of_memory")}
        assert not any(differences.values()), (name, differences)
    if what == "random":
        assert sum(count["events"] for count in results.values()) >= 200_000
    else:
        assert {"gpt2", "resnet50", "llama3_8b"} <= set(results)


@pytest.mark.exhaustive
def test_within_a_limit_the_same_requests_run_out_of_memory():
    for name, count in lockstep("limit").items():
        assert count["out_of_memory"] > 10, name
        assert (count["used"], count["total"], count["free_blocks"]) == (0, 0, 0), name


def test_the_replay_matches_the_real_pool_and_names_the_op_that_runs_out():
    results = lockstep("replay")
    for name in ("plain", "lockstep"):
        result = results[name]
        assert result["matched_used"] == result["events"] > 700
        assert result["predicted_peak_bytes"] == result["measured_peak_bytes"]
        low, high = result["total_interval"]
        assert low <= high
    assert results["lockstep"]["matched_total"] == results["lockstep"]["events"]
    assert results["lockstep"]["first_mismatch"] is None
    end, guided_end = (results[name]["out_of_memory"] for name in ("limit", "limit in lockstep"))
    assert end == guided_end
    assert end not in ("", "before the step")
