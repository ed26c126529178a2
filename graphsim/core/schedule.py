"""Schedules: the order in which ops are executed, repeats allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.index import Ints
from graphsim.core.offload import Offloads
from graphsim.errors import ScheduleError


@dataclass(frozen=True, eq=False)
class Schedule:
    """Positions (in program order) of the ops to execute, one entry per execution.

    An op that stands again is rematerialized: each execution yields fresh values, and a consumer
    reads the latest value of its input. No free is written down; liveness decides. Every op stands
    at least once, but for those of kind `release`.

    Attributes:
        ops: the executions.
        offloads: what stays on the host meanwhile, if anything.
    """

    ops: Ints
    offloads: Offloads | None = None

    def __len__(self) -> int:
        return len(self.ops)

    def __repr__(self) -> str:
        stays = f", {len(self.offloads):,} offloads" if self.offloads else ""
        return f"<Schedule of {len(self.ops):,} executions{stays}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule) or not np.array_equal(self.ops, other.ops):
            return False
        return (self.offloads or None) == (other.offloads or None)

    @staticmethod
    def of(graph: Graph, names: Iterable[str] | None = None) -> Schedule:
        """Return the schedule that executes the ops *names*, by default all in program order.

        Raises:
            ScheduleError: a name is not an op of the graph.
        """
        if names is None:
            return Schedule(np.arange(len(graph.ops)))
        number = {op.name: i for i, op in enumerate(graph.ops)}
        try:
            return Schedule(np.array([number[name] for name in names], dtype=np.int64))
        except KeyError as error:
            raise ScheduleError(f"the schedule executes '{error.args[0]}', which is no op of the graph") from None

    @property
    def repeats(self) -> np.typing.NDArray[np.bool_]:
        """True at each execution whose op was executed before."""
        seen = np.ones(len(self.ops), bool)
        seen[np.unique(self.ops, return_index=True)[1]] = False
        return seen
