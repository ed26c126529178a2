"""Plans: a schedule with its judgement, the same for every strategy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphsim.graph import Graph
from graphsim.liveness import Policy
from graphsim.schedule import Schedule
from graphsim.simulation import simulate


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule and what it costs.

    Attributes:
        strategy: name of the strategy that made it.
        budget: bytes that were asked for, if any.
        feasible: the peak is within the budget.
        peak_bytes: peak live bytes of the schedule.
        time, base_time: cost of the schedule, and of executing every op once.
        lower_bound: bytes that no schedule can do without.
        proved_optimal: no schedule within the budget is cheaper.
        seconds: time that the search took.
    """

    schedule: Schedule
    strategy: str
    budget: int | None
    feasible: bool
    peak_bytes: int
    time: float
    base_time: float
    lower_bound: int
    proved_optimal: bool
    seconds: float

    @property
    def overhead(self) -> float:
        """Extra cost over executing every op once: time / base_time - 1."""
        return self.time / self.base_time - 1 if self.base_time else 0.0


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
    run = simulate(graph, schedule, policy=policy)
    peak, bound = run.peak, lower_bound(graph)
    time, base = run.time, sum(op.time for op in graph.ops)
    feasible = budget is None or peak <= budget
    return Plan(
        schedule=schedule,
        strategy=strategy,
        budget=budget,
        feasible=feasible,
        peak_bytes=peak,
        time=time,
        base_time=base,
        lower_bound=bound,
        proved_optimal=feasible and time == base,
        seconds=seconds,
    )


def lower_bound(graph: Graph) -> int:
    """Return bytes that every schedule needs: what is resident, and all that one op touches at once."""
    index = graph.index
    resident = index.resident & (index.storage == np.arange(index.tensors))
    always = int(index.nbytes[resident].sum())
    least = always
    for op in range(index.ops):
        touched = np.concatenate(
            [
                index.input_tensor[index.input_start[op] : index.input_start[op + 1]],
                index.output_tensor[index.output_start[op] : index.output_start[op + 1]],
            ]
        )
        if index.hold[op]:
            continue
        storages = np.unique(index.storage[touched])
        storages = storages[~resident[storages]]
        least = max(least, always + int(index.nbytes[storages].sum()) + int(index.workspace[op]))
    return least
