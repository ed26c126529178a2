"""``graphsim compare``: what every strategy makes of a step."""

from __future__ import annotations

from typing import Any

import typer

from graphsim.cli.options import AsJson, Budget, Costs, First, Format, Plot, Source, takes_setting
from graphsim.cli.output import write_output
from graphsim.cli.screen import INTERRUPTED, clear, progress, show

EXAMPLES = (
    "Examples:\n\n"
    "graphsim compare vgg16 --batch 256 --optimizer sgd\n\n"
    "graphsim compare resnet50 --batch 64 --budget 0.6x --plot pareto.svg\n\n"
    "graphsim compare dag.json --json"
)


@takes_setting
def compare(
    source: Source,
    budget: Budget = "",
    costs: Costs = "",
    first: First = False,
    plot: Plot = None,
    reporter: Format = "",
    as_json: AsJson = False,
    *,
    setting: Any,
) -> None:
    """Print every strategy's peak, time and extra compute, and a chart of one against the other."""
    from graphsim.answers.planned import compare as run_compare
    from graphsim.show.reporters.pareto import plans_picture
    from graphsim.show.reporters.plot import check

    if plot is not None:
        check(plot.suffix.lower())  # before the minutes that planning may take
    try:
        made = run_compare(source, budget=budget, costs=costs, first=first, progress=progress(), **setting)
    finally:
        clear()
    if plot is not None:
        write_output(plot, plans_picture(made.graph, made.plans, plot.suffix.lower()))
    show(made, as_json, reporter)
    if made.plans[-1].interrupted:
        raise typer.Exit(INTERRUPTED)
