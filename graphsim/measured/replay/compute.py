"""The arithmetic of a step, executed by an array library, so that its time is measured and not only its bytes.

An op runs as what dominates it: matrix products (linear layers, attention, convolutions as the product
that they are) of the op's flops, reductions and elementwise passes over the bytes that it moves. The
numbers are of no meaning; operands are scratch arrays, outside of what is replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

from graphsim.core.graph import Graph, Op, Phase
from graphsim.core.kernels import Kernel, kernel_of
from graphsim.core.simulation import Simulation

_ROWS = 4096
_WIDTH = 8192
_VECTOR = 2**24
"""Operands are cut to so many rows, columns and elements; an op that needs more runs over them again."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one execution of a schedule's arithmetic.

    Attributes:
        seconds: of each execution.
        by_phase: their sums; a forward op that runs again is in phase recompute.
    """

    seconds: tuple[float, ...]
    by_phase: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds)


def measure(run: Simulation, xp: Any) -> Timing:
    """Execute the arithmetic of *run* with the array library *xp* (numpy or cupy) and time each op.

    Every op of the graph runs once before, so that kernels are compiled and buffers exist.
    """
    arithmetic = _Arithmetic(run.graph, xp)
    works = [arithmetic.work(op) for op in run.graph.ops]
    for work in works:
        work()
    clock = _GpuClock(xp) if hasattr(xp, "cuda") else _HostClock()
    for op in run.schedule.ops.tolist():
        clock.time(works[op])
    seconds = clock.seconds()
    by_phase: dict[str, float] = {str(phase): 0.0 for phase in Phase if phase in run.phases}
    for phase, spent in zip(run.phases, seconds, strict=True):
        by_phase[str(phase)] += spent
    return Timing(tuple(seconds), by_phase)


class _Arithmetic:
    """What each op executes, over scratch arrays that all ops share."""

    def __init__(self, graph: Graph, xp: Any) -> None:
        self.graph, self.xp = graph, xp
        self._scratch: dict[tuple[str, str], Any] = {}

    def work(self, op: Op) -> Callable[[], None]:
        """Return the function that executes *op*: nothing for views and holds."""
        kernel = kernel_of(op.kind)
        if kernel.multiplies and op.flops:
            return self._product(op)
        elements = op.moved // 4
        if not elements:
            return lambda: None
        if kernel is Kernel.REDUCTION:
            return self._over_vector(elements, lambda x: x.sum())
        return self._over_vector(elements // 2, lambda x: self.xp.add(x, x, out=x))

    def _product(self, op: Op) -> Callable[[], None]:
        tensor = self.graph.tensors[(op.outputs or op.inputs)[0]]
        columns = tensor.shape[1] if len(tensor.shape) > 1 else 1
        rows = max(1, prod(tensor.shape) // max(1, columns))
        inner = max(1, round(op.flops / (2 * rows * columns)))
        dtype = "float16" if tensor.dtype in ("float16", "bfloat16") else "float32"
        m, n, k = min(rows, _ROWS), min(columns, _WIDTH), min(inner, _WIDTH)
        times = max(1, round(op.flops / (2 * m * n * k)))
        left, right, out = (
            self._array(name, dtype, shape) for name, shape in zip("abc", ((m, k), (k, n), (m, n)), strict=True)
        )

        def run() -> None:
            for _ in range(times):
                self.xp.matmul(left, right, out=out)

        return run

    def _over_vector(self, elements: int, function: Callable[[Any], Any]) -> Callable[[], None]:
        whole, rest = divmod(max(1, elements), _VECTOR)
        pieces = [self._array("v", "float32", (size,)) for size in [_VECTOR] * whole + [rest] * bool(rest)]

        def run() -> None:
            for piece in pieces:
                function(piece)

        return run

    def _array(self, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return a view of *shape* of the scratch array *name*; that one is made in its full size."""
        key = (name, dtype)
        if key not in self._scratch:
            most = {"a": _ROWS * _WIDTH, "b": _WIDTH * _WIDTH, "c": _ROWS * _WIDTH, "v": _VECTOR}[name]
            self._scratch[key] = self.xp.zeros(most, dtype=dtype)
        return self._scratch[key][: prod(shape)].reshape(shape)


class _HostClock:
    def __init__(self) -> None:
        self._spent: list[float] = []

    def time(self, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self._spent.append(time.perf_counter() - start)

    def seconds(self) -> list[float]:
        return self._spent


class _GpuClock:
    """Events on the current stream: the host only enqueues, the device says how long each op took."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._events = [self._mark()]

    def time(self, work: Callable[[], None]) -> None:
        work()
        self._events.append(self._mark())

    def seconds(self) -> list[float]:
        self._events[-1].synchronize()
        elapsed = self._xp.cuda.get_elapsed_time
        pairs = zip(self._events, self._events[1:], strict=False)
        return [elapsed(begin, end) / 1000 for begin, end in pairs]

    def _mark(self) -> Any:
        event = self._xp.cuda.Event()
        event.record()
        return event
