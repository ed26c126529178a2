"""Plans that a training loop can run: what forward and backward pass run again, the optimizer as it is after them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphsim.core.graph import Graph, Phase
from graphsim.core.schedule import Schedule
from graphsim.recompute.case import Case, case_of
from graphsim.recompute.plan import Plan, judge, make_plan, name_of
from graphsim.recompute.strategies import Proposal, Strategy

Make = Callable[[Case, str | Strategy, int | None], Plan]
"""As `make_plan` is."""


def pass_of(graph: Graph) -> Graph:
    """Return *graph* up to the last op of its backward pass; what is read after it stays to its end."""
    places = [at for at, op in enumerate(graph.ops) if op.phase is not Phase.OPTIMIZER and not graph.index.hold[at]]
    ops, rest = graph.ops[: places[-1] + 1 if places else 0], graph.ops[places[-1] + 1 if places else 0 :]
    gone = {name for op in rest for name in op.outputs}
    tensors = [tensor for tensor in graph.tensors.values() if tensor.name not in gone]
    later = {graph.tensors[name].base for op in rest for name in op.inputs} - gone
    kept = dict.fromkeys((*(name for name in graph.outputs if name not in gone), *sorted(later)))
    return Graph(ops, tensors, outputs=kept, name=graph.name, attributes=graph.attributes)


def make_emittable(
    graph: Graph | Case, strategy: str | Strategy, budget: int | None = None, *, make: Make = make_plan
) -> Plan:
    """Return what *strategy* makes of *graph* if nothing may run again once the backward pass is over.

    Args:
        graph, strategy, budget: as `make_plan` takes them.
        make: plans the pass.

    Raises:
        GraphSimError: as `make_plan`.
    """
    whole = case_of(graph)
    part = Case(pass_of(whole.given))
    made = make(part, strategy, budget)
    rest = np.arange(len(part.given.ops), len(whole.given.ops))
    after = float(whole.given_costs[rest].sum())
    proposal = Proposal(
        Schedule(np.concatenate([made.schedule.ops, rest])),
        time_bound=made.time_bound + after,
        interrupted=made.interrupted,
        releases=True,
    )
    return judge(whole, proposal, strategy=name_of(strategy), budget=budget, seconds=made.seconds)
