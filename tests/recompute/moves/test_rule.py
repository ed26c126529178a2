"""The rule of a drop: interpreted and as machine code it is one, and what it plans is what it says."""

from __future__ import annotations

from math import inf

import numpy as np
from generators import training_steps
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphsim.core.graph import Graph
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.moves.columns import LAST, UNIT, USED, VALUE, columns_of, scratch
from graphsim.recompute.moves.drops import bytes_saved, plan_drop
from graphsim.recompute.moves.repair import apply, idle_at
from graphsim.recompute.moves.repair import plan_drop as plan_drop_interpreted
from graphsim.recompute.moves.walk import walk
from graphsim.recompute.problem import problem_of
from graphsim.sources.layered import layered

share = st.floats(0, 1, exclude_max=True)
graphs = st.one_of(training_steps(), st.integers(0, 50).map(lambda seed: Graph.from_networkx(layered(25, seed, 0.3))))


def some_drops(state: Evaluation, moment: int) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in idle_at(state, moment)), strict=True))


@given(
    graph=graphs,
    where=st.lists(share, min_size=1, max_size=4),
    part=st.floats(0.3, 1),
    keep=st.sampled_from([0.0, 0.3, 1.0]),
)
@example(graph=Graph.from_networkx(layered(25, 36, 0.3)), where=[0.125], part=0.3046875, keep=0.0)  # a value > budget
@settings(max_examples=80, deadline=None)
def test_interpreted_and_compiled_it_plans_the_same_units_and_counts_the_same_bytes(graph, where, part, keep):
    problem = problem_of(graph)
    state = evaluate(problem, np.arange(problem.ops))
    budget, columns = int(part * state.peak), columns_of(problem)
    for fraction in where:  # each on the sequence that the drops before it have made
        above = state.excess(budget)
        moment = int(fraction * len(state.nodes))
        walked, drops = scratch(problem, len(state.nodes))
        walk(columns, walked, state.nodes, len(state.nodes), budget)
        taken = None
        for stamp, (row, last, before) in enumerate(some_drops(state, moment), 1):
            drop = plan_drop_interpreted(state, budget, above, row, last, before, keep)
            same = same_row(walked, int(state.value[row]), int(state.last[row]))
            walked[USED, same] = last
            units, kept = plan_drop(columns, walked, drops, budget, same, before, keep, inf, stamp)
            assert tuple(problem.ops + drops.plan[UNIT, :units]) == (drop.units if drop else ())
            if drop is not None:
                saved = bytes_saved(columns, walked, drops, state.nodes, budget, same, before, units, kept)
                assert saved == drop.saved
                taken = drop
        if taken is not None:
            state = apply(state, taken)


def same_row(walked: np.ndarray, value: int, last: int) -> int:
    """The row of the walk that is the version of *value* with that last use."""
    return int(np.flatnonzero((walked[VALUE] == value) & (walked[LAST] == last))[-1])


@given(graph=graphs, fraction=share, keep=st.sampled_from([0.0, 1.0]))
@settings(max_examples=80, deadline=None)
def test_what_stays_for_the_units_is_live_until_they_run_and_what_is_dropped_is_not(graph, fraction, keep):
    problem = problem_of(graph)
    state = evaluate(problem, np.arange(problem.ops))
    for row, last, before in some_drops(state, int(fraction * problem.ops)):
        drop = plan_drop_interpreted(state, 0, state.excess(0), row, last, before, keep)
        if drop is None:
            continue
        after = apply(state, drop)  # the executions up to *before* keep their places
        versions = after.latest_row(int(state.value[row]), before)
        assert after.last[versions] == last
        for node in drop.units:
            assert problem.may_run(node - problem.ops, int(state.next_op[before]))
