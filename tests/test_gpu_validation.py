"""The GPU validation's program, on the host: it resumes, lists what failed, and writes nothing unmeasured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from graphsim.measured.backends import BACKENDS

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu_validation.py"
HEAD = {"commit": "abc1234", "device": "host", "date": "2000-01-01"}


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("gpu_validation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_validation"] = module
    spec.loader.exec_module(module)
    return module


def test_entries_are_measured_once_and_failures_are_listed(program, tmp_path, capsys):
    calls = []

    def measure(value: int) -> dict[str, int]:
        calls.append(value)
        if value == 2:
            raise ValueError("no such thing")
        return {"value": value}

    path = tmp_path / "host.json"
    for _ in range(2):
        results = program.Results(path, HEAD)
        for value in (1, 2):
            results.run(f"part/{value}", measure, value)
    data = json.loads(path.read_text())
    assert data["entries"] == {"part/1": {"value": 1}}
    assert data["skipped"] == {"part/2": "ValueError: no such thing"}
    assert calls == [1, 2, 2]
    program.Results(path, {**HEAD, "commit": "other"}).run("part/1", measure, 1)
    assert calls == [1, 2, 2, 1]
    assert "part/2" in capsys.readouterr().out


def test_the_parts_run_with_any_backend(program, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "shipped_specs", lambda: ["lenet5", "seed_cnn"])
    monkeypatch.setattr(program, "EVENTS", 500)
    results = program.Results(tmp_path / "host.json", HEAD)
    program.streams(results, ["numpy"])
    program.random_streams(results, ["numpy"])
    program.speed(results, ["numpy"])
    entries = results.data["entries"]
    assert not results.data["skipped"]
    assert entries["streams/lenet5/none/numpy"]["matched_used"] == entries["streams/lenet5/none/numpy"]["events"]
    assert entries["random/0/numpy"]["matched_used"] == 500
    assert set(entries["speed/gpt2/numpy"]) == {"simulate_seconds", "replay_seconds"}


def test_the_table_shows_what_is_there(program):
    peaks = {"max_memory_allocated": 1000, "max_memory_reserved": 2000}
    off = {"max_memory_allocated": 1010, "max_memory_reserved": 1900}
    stream = {"events": 10, "matched_used": 10, "matched_total": 9}
    entries = {"streams/x/none/cupy": stream, "steps/gpt2/fp32/adam": {"measured": peaks, "predicted": off}}
    text = "\n".join(program.table({**HEAD, "entries": entries}))
    assert "| cupy | 1 | 10 | 10 | 9 |" in text
    assert "| gpt2/fp32/adam | 1,000 | 1,010 | +1.00% | 2,000 | 1,900 | -5.00% |" in text


def test_without_a_gpu_nothing_is_written(tmp_path):
    try:
        pytest.skip(f"there is one: {BACKENDS['cupy']().device}")
    except Exception as error:
        if "CUDA" not in str(error) and "pip install" not in str(error):
            raise
    done = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing is written" in done.stderr
    assert not list(tmp_path.iterdir())
