"""Where the time of a plan goes: the graph, what follows from it, the search, the judgement; a share is asserted.

    python bench/plan_profile.py [--seconds 3]

What ``graphsim plan resnet50 --batch 8 --budget 0.6x --options seconds=3`` does, in one process, after imports and with
the searches compiled. *Search* is the call of the strategy alone: candidates of the cheap strategies, DTR, and the
rounds. All else is outside of it; a tenth of the whole is the most that it may take, the making of the graph apart.
The search is given its time by the clock; the rest, which is one thread, is counted in CPU time, so that what else the
machine does is not counted against it.
"""

from __future__ import annotations

import argparse
import time

import graphsim as gs
from graphsim.answers.plan import read_budget
from graphsim.answers.planned import Planned
from graphsim.recompute.case import Case
from graphsim.recompute.plan import judge
from graphsim.recompute.strategies.auto import Auto
from graphsim.show.reporters.plans import plan_text

MOST = 0.1
"""Share of the time that may be spent outside of the search, once there is a graph."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="what the search may take")
    seconds = parser.parse_args().seconds
    run(1.0)  # imports, and machine code from disk
    spent = run(seconds)
    whole = sum(spent.values())
    for name, part in spent.items():
        print(f"{name:<28}{part:8.3f} s{part / whole:8.1%}")
    outside = whole - spent["search"]
    share = (outside - spent["graph"]) / (whole - spent["graph"])
    print(f"{'outside of the search':<28}{outside:8.3f} s{outside / whole:8.1%}; without the graph {share:.1%}")
    assert share <= MOST


def run(seconds: float) -> dict[str, float]:
    """Return the seconds that each part of a plan takes."""
    spent: dict[str, float] = {}
    begin = time.process_time()

    def lap(name: str) -> None:
        nonlocal begin
        spent[name] = time.process_time() - begin
        begin = time.process_time()

    graph = gs.training_step(gs.load("resnet50", batch=8))
    lap("graph")
    budget, case = read_budget("0.6x", graph), Case(graph)
    facts = (case.stored, case.passes, case.one_more_forward, case.problem, case.program_order, case.program)
    assert all(fact is not None for fact in facts)
    lap("what follows from it")
    case.least_time(budget)
    lap("the bound")
    start = time.perf_counter()
    proposal = Auto(seconds=seconds)(case, budget)
    spent["search"], begin = time.perf_counter() - start, time.process_time()
    plan = judge(case, proposal, strategy="auto", budget=budget, seconds=seconds)
    assert plan.feasible
    assert plan_text(Planned(graph, plan, case.least_time(budget)))
    lap("judgement")
    return spent


if __name__ == "__main__":
    main()
