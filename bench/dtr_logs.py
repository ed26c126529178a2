"""DTR's operator logs: extra compute of its heuristics, and of `auto`, at each share of the peak.

    python bench/dtr_logs.py resnet.log ... [--auto SECONDS]

The logs are those of DTR's simulator (github.com/uwsampl/dtr-prototype, simrd/logs.zip): its overheads are to be
compared with the columns of the heuristics. A run that spends twice the step without recompute counts as thrashing,
as in the paper (Kirisame et al., ICLR 2021, section 4.1).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from graphsim.core.graph import Graph
from graphsim.recompute.dtr.scores import HEURISTICS
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies.auto import Auto
from graphsim.recompute.strategies.dtr import simulate_log
from graphsim.sources.dtr import load_dtr

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
MOST = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--auto", type=float, default=45.0, metavar="SECONDS", help="for each plan; 0 for none")
    options = parser.parse_args()
    for log in options.logs:
        show(log, options.auto)


def show(log: Path, seconds: float) -> None:
    graph, planned = load_dtr(log, mutations="copy"), load_dtr(log)
    peak = simulate_log(graph, 1 << 62).peak
    print(f"\n{log.stem}: {len(graph.ops):,} ops, peak {peak:,} bytes\n")
    print("| budget | " + " | ".join([*HEURISTICS, "`auto`", "ops/s"]) + " |\n|---|" + "---:|" * (len(HEURISTICS) + 2))
    for share in SHARES:
        budget, begin, executed = int(share * peak), time.perf_counter(), 0
        cells = []
        for heuristic in HEURISTICS:
            run = simulate_log(graph, budget, heuristic, most=MOST)
            executed += len(run.order)
            why = "thrashes" if run.time > MOST * run.base_time else "out of memory"
            cells.append(f"x{1 + run.overhead:.3f}" if run.finished else why)
        speed = executed / (time.perf_counter() - begin)
        cells += [by_auto(planned, budget, seconds) if seconds else "", f"{speed:,.0f}"]
        print("| " + " | ".join([f"{share:.1f}x", *cells]) + " |", flush=True)


def by_auto(graph: Graph, budget: int, seconds: float) -> str:
    plan = make_plan(graph, Auto(seconds=seconds), budget)
    if plan.feasible:
        return f"x{1 + plan.overhead:.3f}"
    return "impossible" if budget < plan.memory_bound else "nothing found"


if __name__ == "__main__":
    main()
