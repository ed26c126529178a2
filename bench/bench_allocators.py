"""Allocator models: events per second, and a step simulated and allocated against its replay on the host.

Bars: CuPy's model at least 0.6 M events/s, PyTorch's at least 0.35 M; simulate and allocate a GPT-2 step at
least 100 times faster than numpy replays it with pages touched.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

import graphsim as gs
from graphsim.core.trace import Trace
from graphsim.measured.backends.numpy import Numpy
from graphsim.memory.allocators import ALLOCATORS

EVENTS = 200_000


def random_trace(live: int, seed: int = 0) -> Trace:
    """EVENTS mallocs and frees around *live* blocks, half small and half large."""
    chance = random.Random(seed)
    nbytes, malloc, free, alive = [], [], [], []
    for event in range(EVENTS):
        if alive and chance.random() < len(alive) / (2 * live):
            free[alive.pop(chance.randrange(len(alive)))] = event
        else:
            alive.append(len(nbytes))
            nbytes.append(chance.randrange(1, chance.choice([1 << 14, 1 << 22])))
            malloc.append(event)
            free.append(-1)
    sizes, begin, end = (np.array(column, dtype=np.int64) for column in (nbytes, malloc, free))
    nothing = np.full(len(sizes), -1)
    return Trace(tensor=nothing, nbytes=sizes, malloc=begin, free=end, execution=nothing)


@pytest.fixture(scope="module", params=[200, 2_000])
def trace(request: pytest.FixtureRequest) -> Trace:
    return random_trace(request.param)


@pytest.mark.benchmark(group="200,000 random events")
@pytest.mark.parametrize("name", ["cupy", "torch", "bfc", "exact"])
def test_events_per_second(benchmark, trace, name):
    layout = benchmark.pedantic(ALLOCATORS[name](), (trace,), rounds=3, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["million_events_per_second"] = round(EVENTS / benchmark.stats["mean"] / 1e6, 3)
    assert layout.reserved_peak >= layout.peak >= np.cumsum(trace.stream[1]).max()


@pytest.fixture(scope="module")
def step() -> gs.Graph:
    return gs.training_step(gs.load("gpt2", batch=1, seq=128), optimizer="adam", target="cpu")


@pytest.mark.benchmark(group="a GPT-2 step")
def test_simulate_and_allocate(benchmark, step):
    def run() -> int:
        return ALLOCATORS["torch"]()(gs.simulate(step).trace).reserved_peak

    assert benchmark.pedantic(run, rounds=5, warmup_rounds=1) >= gs.simulate(step).peak


@pytest.mark.benchmark(group="a GPT-2 step")
def test_replay_on_the_host_with_pages_touched(benchmark, step):
    trace = gs.simulate(step).trace
    measured = benchmark.pedantic(Numpy(touch=True), (trace,), rounds=2)
    assert measured.peak == gs.simulate(step).peak
