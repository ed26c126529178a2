"""Plans: a schedule with its judgement, the same for every strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.index import Ints
from graphsim.core.liveness import Policy
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import op_costs, simulate

S = TypeVar("S")
Options = ParamSpec("Options")


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule and what it costs.

    Attributes:
        strategy: name of the strategy that made it.
        budget: bytes that were asked for, if any.
        feasible: the peak is within the budget.
        peak_bytes: peak live bytes of the schedule.
        time, base_time: cost of the schedule, and of executing every op once (see `op_costs`).
        memory_bound: bytes that no schedule can do without.
        time_bound: what any schedule within the budget costs, if it first runs the ops in program order.
        proved_optimal: none of these is cheaper.
        seconds: time that the search took.
    """

    schedule: Schedule
    strategy: str
    budget: int | None
    feasible: bool
    peak_bytes: int
    time: float
    base_time: float
    memory_bound: int
    proved_optimal: bool
    seconds: float
    time_bound: float

    @property
    def overhead(self) -> float:
        """Extra cost over executing every op once: time / base_time - 1."""
        return self.time / self.base_time - 1 if self.base_time else 0.0

    @property
    def least_overhead(self) -> float:
        """What the bound of the time is as an overhead."""
        return self.time_bound / self.base_time - 1 if self.base_time else 0.0

    @property
    def gap(self) -> float:
        """How far from optimal it is at most: time / time_bound - 1."""
        return self.time / self.time_bound - 1 if self.time_bound else 0.0


def under_names(
    strategy: Callable[Concatenate[S, Graph, Options], Plan],
) -> Callable[Concatenate[S, Graph, Options], Plan]:
    """Let a strategy evict what only names keep: it plans the graph without its ops of kind `release`."""

    @wraps(strategy)
    def planned(self: S, graph: Graph, /, *args: Options.args, **kwargs: Options.kwargs) -> Plan:
        bare, ops = without_releases(graph)
        plan = strategy(self, bare, *args, **kwargs)
        return plan if bare is graph else replace(plan, schedule=Schedule(ops[plan.schedule.ops]))

    return planned


def without_releases(graph: Graph) -> tuple[Graph, Ints]:
    """Return *graph* without its ops of kind `release`, and which of its ops are left; itself if there are none."""
    ops = np.flatnonzero(~graph.index.release)
    if len(ops) == len(graph.ops):
        return graph, ops
    left = [graph.ops[op] for op in ops.tolist()]
    return Graph(left, graph.tensors.values(), outputs=graph.outputs, name=graph.name, attributes=graph.attributes), ops


def judge(
    graph: Graph,
    schedule: Schedule,
    *,
    strategy: str,
    budget: int | None,
    seconds: float,
    policy: Policy = "eager",
) -> Plan:
    """Return *schedule* as a plan: simulated, priced, compared with the budget.

    Raises:
        ScheduleError: the schedule does not respect the graph.
    """
    run, base_time = simulate(graph, schedule, policy=policy), float(op_costs(graph).sum())
    feasible = budget is None or run.peak <= budget
    return Plan(
        schedule=schedule,
        strategy=strategy,
        budget=budget,
        feasible=feasible,
        peak_bytes=run.peak,
        time=run.time,
        base_time=base_time,
        memory_bound=memory_bound(graph),
        proved_optimal=feasible and not schedule.repeats.any(),
        seconds=seconds,
        time_bound=base_time,
    )


def memory_bound(graph: Graph) -> int:
    """Return bytes that every schedule needs: what is resident, and all that one op touches at once."""
    index = graph.index
    resident = index.resident & (index.storage == np.arange(index.tensors))
    op, storage = _touched(graph)
    together = index.workspace.copy()
    np.add.at(together, op, index.nbytes[storage])
    return int(index.nbytes[resident].sum()) + int(together.max(initial=0))


def pinning_op(graph: Graph) -> tuple[Op, tuple[Tensor, ...]] | None:
    """Return the op that sets the lower bound, and the storages it touches that are not resident."""
    if not graph.ops:
        return None
    op, storage = _touched(graph)
    together = graph.index.workspace.copy()
    np.add.at(together, op, graph.index.nbytes[storage])
    first = int(together.argmax())
    tensors = tuple(graph.tensors.values())
    return graph.ops[first], tuple(tensors[i] for i in storage[op == first].tolist())


def _touched(graph: Graph) -> tuple[Ints, Ints]:
    """Return pairs of op and storage, each once: what an op reads or writes and is not resident."""
    index = graph.index
    resident = index.resident & (index.storage == np.arange(index.tensors))
    op = np.concatenate([index.input_op, index.output_op])
    storage = np.concatenate([index.input_storage, index.storage[index.output_tensor]])
    counts = ~(resident[storage] | index.hold[op])
    width = max(1, index.tensors)
    touched = np.unique(op[counts] * width + storage[counts])
    return touched // width, touched % width
