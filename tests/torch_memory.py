"""Live bytes of PyTorch on the CPU, from the profiler's record of every malloc and free."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import NamedTuple


class Measured(NamedTuple):
    """Live bytes in one marked range: the maximum, and what is left at its end."""

    peak: int
    end: int


def measure(run: Callable[[], object]) -> dict[str, Measured]:
    """Run *run* and return what each of its ``record_function('##name')`` ranges held.

    Bytes count from the start of *run*, which should build all that it uses.
    """
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # garbage of tests before must not be freed within
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    events = list(profiler.profiler.kineto_results.events())
    memory = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]")
    ranges = {e.name()[2:]: (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name()[:2] == "##"}
    measured = {}
    for name, (begin, end) in ranges.items():
        live = sum(nbytes for time, _, nbytes in memory if time < begin)
        peak = live
        for time, _, nbytes in memory:
            if begin <= time <= end:
                live += nbytes
                peak = max(peak, live)
        measured[name] = Measured(peak, live)
    return measured
