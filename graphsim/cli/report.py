"""``graphsim report``: one page to look at; and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphsim.cli.options import Allocator, AllocatorOptions, First, Policy, Source, takes_setting
from graphsim.cli.output import write_output
from graphsim.cli.screen import working
from graphsim.errors import UsageError

if TYPE_CHECKING:
    from graphsim.core.graph import Graph

EXAMPLES = (
    "Examples:\n\n"
    "graphsim report gpt2 --batch 8 --seq 1024 -o gpt2.html\n\n"
    "graphsim report resnet50 --batch 32 --optimizer momentum --compare --budget 4GiB --budget 2GiB\n\n"
    "graphsim report step.json -o step.html --allocator cupy"
)


@takes_setting
def report(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page; -: standard output.")] = Path("report.html"),
    policy: Policy = "eager",
    first: First = False,
    allocator: Allocator = "torch",
    allocator_options: AllocatorOptions = "",
    strategy: Annotated[
        str, typer.Option(help="Show the step as this strategy schedules it.", show_default="none")
    ] = "",
    compare: Annotated[bool, typer.Option("--compare", help="Compare all strategies: memory against time.")] = False,
    budgets: Annotated[
        list[str] | None, typer.Option("--budget", help="Budget of the strategies, e.g. 8GiB; may be repeated.")
    ] = None,
    *,
    setting: Any,
) -> None:
    """Write one page on a training step: timeline, live tensors, modules, allocator. It needs no network."""
    from graphsim.core.liveness import parse_policy
    from graphsim.show.page import report as run_report

    if budgets and not (compare or strategy):
        raise UsageError("--budget is for --strategy or --compare")
    if strategy and budgets and len(budgets) > 1 and not compare:
        raise UsageError("--strategy takes one --budget")
    with working("comparing strategies" if compare else "simulating"):
        page = run_report(
            source,
            policy=parse_policy(policy),
            first=first,
            allocator=allocator,
            allocator_options=allocator_options,
            strategy=strategy,
            compare=compare,
            budgets=budgets or (),
            **setting,
        )
    write_output(output, page.content)
    if str(output) != "-":
        typer.echo(f"{output}: {len(page.content):,} bytes")


def write_picture(path: Path, graph: Graph, policy: str) -> None:
    """Draw a step, simulated in program order, into a file whose suffix chooses the format."""
    from graphsim.core.simulation import simulate
    from graphsim.show.reporters.plot import picture

    write_output(path, picture(simulate(graph, policy=policy), path.suffix.lower()))  # type: ignore[arg-type]
