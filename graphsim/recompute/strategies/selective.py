"""Selective recompute: only attention's core runs again, the part with much memory and little work.

Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023
(arXiv 2205.05198), section 4.2: the scores, their softmax and dropout, and the product with the values.

Fused attention kernels store none of these, so where a model runs them there is nothing to save:
the plan is then the schedule that stores all.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphsim.core.graph import Op
from graphsim.core.kernels import Kernel, base_kind, kernel_of
from graphsim.core.schedule import Schedule
from graphsim.recompute.candidates import chain_candidate, pick
from graphsim.recompute.case import Case
from graphsim.recompute.spans import ChainPlan, ForwardPass, drop_spans

_SOFTMAX = ("softmax", "safe_softmax")


@dataclass(frozen=True, slots=True)
class Selective:
    """Recomputes the core of each attention, right before backward first reads from inside it."""

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule:
        """Return the schedule, whatever the budget."""
        return pick(case, [chain_candidate(case, _choose)], None).schedule


def _choose(forward: ForwardPass) -> ChainPlan:
    bounds = [position for core in attention_cores(forward) for position in (core.start, core.stop)]
    spans = forward.split_at(position for position in bounds if forward.ops.start < position < forward.ops.stop)
    cores = {core.start for core in attention_cores(forward)}
    return drop_spans(spans, (i for i, span in enumerate(spans) if span.start in cores))


def attention_cores(forward: ForwardPass) -> list[range]:
    """Return the ops from the product before each softmax to the product after it."""
    cores: list[range] = []
    ops = forward.graph.ops
    for position in forward.ops:
        if base_kind(ops[position].kind) in _SOFTMAX:
            begin = _nearest(ops, range(position - 1, forward.ops.start - 1, -1))
            end = _nearest(ops, range(position + 1, forward.ops.stop))
            if begin is not None and end is not None and (not cores or begin >= cores[-1].stop):
                cores.append(range(begin, end + 1))
    return cores


def _nearest(ops: tuple[Op, ...], positions: range) -> int | None:
    """Return the first of *positions* with a batched product, unless another softmax comes first."""
    for position in positions:
        if kernel_of(ops[position].kind) is Kernel.BATCHED:
            return position
        if base_kind(ops[position].kind) in _SOFTMAX:
            return None
    return None
