"""Every strategy on random graphs, with mutations, views, holds and micro-batches: valid, and honest about it."""

from __future__ import annotations

import numpy as np
import pytest
from exhaustive import only
from generators import graphs, training_steps
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from quick import quick
from reference import interpret

from graphsim.core.graph import Phase
from graphsim.recompute.dtr.scores import HEURISTICS
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies import STRATEGIES
from graphsim.recompute.strategies.dtr import Dtr

SHARES = st.sampled_from([0.0, 0.3, 0.6, 0.8, 0.9, 1.0])


@pytest.mark.parametrize("name", STRATEGIES)
@given(graph=training_steps(), share=SHARES)
@settings(max_examples=100, deadline=None)
def test_the_schedule_does_what_program_order_does_and_the_plan_says_what_it_costs(name, graph, share):
    stored = max(interpret(graph, range(len(graph.ops)), "eager").during)
    budget = int(stored * share) if share < 1 else None
    plan = make_plan(graph, quick(name), budget)
    order = plan.schedule.ops.tolist()
    assume(order)  # there may be nothing but releases
    assert plan.peak_bytes == max(interpret(graph, order, "eager").during)
    assert plan.feasible == (budget is None or plan.peak_bytes <= budget)
    assert plan.time == sum(graph.ops[i].time for i in order)
    assert plan.memory_bound <= plan.peak_bytes
    counts = np.bincount(order)
    again = {graph.ops[i].phase for i in np.flatnonzero(counts > 1)}
    assert Phase.OPTIMIZER not in again
    if name not in ("dtr", "checkmate", "checkmate_lp", "moccasin", "auto"):  # these may also make a gradient again
        assert again <= {Phase.FORWARD}


@pytest.mark.parametrize("name", only(("dtr", "size"), HEURISTICS))
@given(graph=graphs(max_ops=20), share=st.sampled_from([0.5, 0.7, 0.8, 0.9]))
@settings(max_examples=150, deadline=None)
def test_every_heuristic_of_dtr_evicts_only_what_can_come_back(name, graph, share):
    stored = max(interpret(graph, range(len(graph.ops)), "eager").during)
    plan = make_plan(graph, Dtr(name), int(stored * share))
    assume(len(plan.schedule))
    assert plan.peak_bytes == max(interpret(graph, plan.schedule.ops.tolist(), "eager").during) <= stored
