"""``graphsim diff``: what changed in memory between two steps; a gate for CI."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from graphsim.cli.options import AsJson, Policy, params_of, takes_setting
from graphsim.cli.screen import color, end, say, width

EXAMPLES = (
    "Examples:\n\n"
    "graphsim diff gpt2 gpt2 --batch 8 --b precision=amp-bf16\n\n"
    "graphsim diff resnet50 resnet101 --batch 32\n\n"
    "graphsim diff torch:my.models:old torch:my.models:new --gpu t4\n\n"
    "graphsim peak my.toml --json --largest 0 > memory.json; graphsim diff memory.json my.toml --tolerance 1%"
)

Side = Annotated[
    str, typer.Argument(help="A source as for peak, or a saved result: the output of graphsim peak --json --largest 0.")
]


@takes_setting
def diff(
    a: Side,
    b: Side,
    only_b: Annotated[
        list[str] | None,
        typer.Option("--b", metavar="NAME=VALUE", help="For B only: an option below (precision=bf16) or a param."),
    ] = None,
    policy: Policy = "eager",
    tolerance: Annotated[str, typer.Option(help="Growth that is accepted: 10MiB, or 1% of A's peak.")] = "0",
    budget: Annotated[
        str, typer.Option(help="Also exit with 1 if B's peak is above this: 16GiB, or 1.1x of A's.")
    ] = "",
    rows: Annotated[int, typer.Option(min=0, help="Tensors to show; 0: all. --json has all.")] = 20,
    as_json: AsJson = False,
    *,
    setting: Any,
) -> None:
    """Say what changed in memory from A to B, tensor by tensor.

    Exit code 1 if a peak of B is larger than A's by more than the tolerance, or above the budget.
    """
    from graphsim.answers.diff import diff as run_diff
    from graphsim.show.reporters.difference import diff_text
    from graphsim.units import parse_budget

    found = run_diff(a, b, only_b=params_of(only_b), policy=policy, **setting)  # type: ignore[arg-type]
    limit = parse_budget(budget, max(found.steady.a or 0, found.first.a or 0)) if budget else None
    grown = found.exceeds(tolerance)
    above = limit is not None and max(found.steady.b or 0, found.first.b or 0) > limit
    if as_json:
        verdict = {"exceeds_tolerance": grown, "above_budget": above}
        say(json.dumps({**json.loads(found.to_json()), **verdict}, indent=2) + "\n")
    else:
        say(diff_text(found, tolerance=tolerance, budget=limit, rows=rows or None, width=width(), color=color()))
    end(not (grown or above))
