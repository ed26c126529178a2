"""`graphsim peak` of GPT-2 end to end, against PyTorch's MemTracker under FakeTensorMode on the same model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

BATCH, SEQUENCE = 1, 128

MEMTRACKER = f"""
import json, torch, transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

with FakeTensorMode():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    ids = torch.zeros({BATCH}, {SEQUENCE}, dtype=torch.long)
    with tracker:
        for step in range(2):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 0:
                tracker.reset_mod_stats()
    peak = tracker.get_tracker_snapshot("peak")
print(json.dumps(sum(next(iter(peak.values())).values()) // 2))
"""

OURS = ["-m", "graphsim", "peak", "gpt2", "--batch", str(BATCH), "--seq", str(SEQUENCE)]
OURS += ["--optimizer", "adam", "--target", "cpu", "--json"]


def run(arguments: list[str]) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.benchmark(group="peak of gpt2, end to end")
def test_graphsim(benchmark):
    text = benchmark.pedantic(run, args=(OURS,), rounds=5, iterations=1, warmup_rounds=1)
    assert json.loads(text)["parameters"] == 124_439_808


@pytest.mark.benchmark(group="peak of gpt2, end to end")
def test_memtracker(benchmark):
    text = benchmark.pedantic(run, args=(["-c", MEMTRACKER],), rounds=3, iterations=1)
    ours = json.loads(run(OURS))["steady"]["peak_bytes"]
    assert abs(int(text.splitlines()[-1]) / ours - 1) < 0.05
