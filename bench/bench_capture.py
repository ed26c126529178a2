"""Capture of GPT-2's training step against PyTorch's MemTracker under FakeTensorMode on the same step."""

from __future__ import annotations

import time

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BATCH, SEQUENCE = 1, 128
PEAK = 2_299_817_568
"""The reference row of gpt2, less its attention mask and its separate labels."""
SHARE = 0.7
"""A capture takes at most this share of MemTracker's time."""


def model():
    transformers.logging.set_verbosity_error()
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))


def tokens():
    return torch.zeros(BATCH, SEQUENCE, dtype=torch.long)


def optimizer(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, foreach=False)


def ours() -> int:
    import graphsim as gs

    ids = tokens()
    graph = gs.from_torch(model, {"input_ids": ids, "labels": ids}, optimizer=optimizer)
    return gs.simulate(graph).peak


def memtracker() -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        net = model()
        used = optimizer(net.parameters())
        tracker = MemTracker()
        tracker.track_external(net, used)
        ids = tokens()
        with tracker:
            for step in range(2):
                net(input_ids=ids, labels=ids).loss.backward()
                used.step()
                used.zero_grad()
                if step == 0:
                    tracker.reset_mod_stats()
        peak = tracker.get_tracker_snapshot("peak")
    return int(next(iter(peak.values()))["Total"])


def timed(run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


@pytest.mark.benchmark(group="two training steps of gpt2 without running them")
def test_capture(benchmark):
    assert benchmark.pedantic(ours, rounds=5, iterations=1, warmup_rounds=1) == PEAK


@pytest.mark.benchmark(group="two training steps of gpt2 without running them")
def test_memtracker(benchmark):
    assert abs(benchmark.pedantic(memtracker, rounds=3, iterations=1, warmup_rounds=1) / PEAK - 1) < 0.05


def test_capture_is_faster(benchmark):
    if benchmark.disabled:
        pytest.skip("timed only")
    memtracker()  # imports and caches
    benchmark.pedantic(ours, rounds=3, iterations=1, warmup_rounds=1)
    best = benchmark.stats.stats.min
    theirs = min(timed(memtracker) for _ in range(3))
    assert best <= SHARE * theirs, f"capture {best:.2f} s, MemTracker {theirs:.2f} s"
