"""The commands that make something to look at: the page of a step, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphsim import cli
from graphsim.errors import UsageError
from graphsim.units import parse_bytes

if TYPE_CHECKING:
    from graphsim.graph import Graph
    from graphsim.reporters.html import PlanPoint
    from graphsim.simulation import Simulation


@cli.app.command(
    epilog="Examples:\n\n"
    "graphsim report gpt2 --batch 8 --seq 1024 -o gpt2.html\n\n"
    "graphsim report resnet50 --batch 32 --optimizer momentum --compare --budget 4GiB --budget 2GiB\n\n"
    "graphsim report step.json -o step.html --allocator cupy"
)
def report(
    spec: cli.Spec,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("report.html"),
    batch: cli.Batch = None,
    seq: cli.Seq = None,
    settings: cli.Set = None,
    optimizer: cli.OptimizerName = "adamw",
    optimizer_impl: cli.OptimizerImpl = "",
    precision: cli.PrecisionName = "fp32",
    target: cli.TargetName = "cuda",
    device: cli.DeviceName = "",
    policy: cli.PolicyName = "eager",
    mode: cli.Mode = "train",
    accumulation: cli.Accumulation = 1,
    first: Annotated[bool, typer.Option("--first", help="Step 1, which creates the optimizer states.")] = False,
    allocator: Annotated[
        str, typer.Option(help="Whose reservation to show: torch, cupy, bfc, arena, exact or none.")
    ] = "torch",
    allocator_options: Annotated[
        str, typer.Option(metavar="NAME=VALUE,...", help="Its options, e.g. limit=16GiB,expandable_segments=True.")
    ] = "",
    strategy: Annotated[
        str, typer.Option(help="Show the step as this strategy schedules it.", show_default="none")
    ] = "",
    compare: Annotated[bool, typer.Option("--compare", help="Compare all strategies: memory against time.")] = False,
    budgets: Annotated[
        list[str] | None, typer.Option("--budget", help="Budget of the strategies, e.g. 8GiB; may be repeated.")
    ] = None,
) -> None:
    """Write one page on a training step: timeline, live tensors, modules, allocator. It needs no network."""
    from graphsim.reporters.html import allocation_data, html_page

    limits = [parse_bytes(budget) for budget in budgets or []]
    if limits and not (compare or strategy):
        raise UsageError("--budget is for --strategy or --compare")
    if strategy and len(limits) > 1 and not compare:
        raise UsageError("--strategy takes one --budget")
    training: dict[str, Any] = {
        "optimizer": optimizer,
        "optimizer_impl": optimizer_impl,
        "precision": precision,
        "target": target,
        "device": device,
        "mode": mode,
        "accumulation": accumulation,
    }
    graph = cli._step(spec, cli._overrides(settings, batch=batch, seq=seq), first, **training)
    with cli._working("simulating"):
        run = _scheduled(graph, strategy, limits[0] if limits else None, policy)
        allocation = None if allocator in ("", "none") else allocation_data(run, allocator, allocator_options)
    plans = _plans(graph, limits, policy) if compare else []
    page = html_page(run, facts=_facts(run, first, strategy, training), allocation=allocation, plans=plans)
    cli._write(output, page.encode("utf-8", "replace"))
    typer.echo(f"{output}: {len(page.encode('utf-8', 'replace')):,} bytes")


def _scheduled(graph: Graph, strategy: str, budget: int | None, policy: str) -> Simulation:
    """Return *graph* simulated in program order, or as *strategy* schedules it."""
    from graphsim.simulation import simulate
    from graphsim.strategies import STRATEGIES

    schedule = STRATEGIES[strategy]()(graph, budget=budget).schedule if strategy else None
    return simulate(graph, schedule, policy=policy)  # type: ignore[arg-type]


def _plans(graph: Graph, limits: list[int], policy: str) -> list[PlanPoint]:
    from graphsim.reporters.html import compare_plans
    from graphsim.strategies import STRATEGIES

    with cli._working("comparing strategies"):
        return compare_plans(graph, STRATEGIES.names(), [None, *limits], policy=policy)  # type: ignore[arg-type]


def _facts(run: Simulation, first: bool, strategy: str, asked: dict[str, Any]) -> dict[str, str]:
    """Return what the head of the page says: what a graph knows of its own training, else what was asked."""
    from graphsim.training import Training

    training = {**asked, **dict(run.graph.attributes.get("training", {}))}
    chosen = Training(**training)
    facts = {
        "batch": str(run.graph.attributes.get("batch", "")),
        "optimizer": f"{chosen.optimizer} ({chosen.implementation})" if chosen.mode == "train" else "",
        "precision": chosen.precision,
        "target": chosen.target,
        "mode": chosen.mode,
        "micro-batches": str(chosen.accumulation) if chosen.accumulation != 1 else "",
        "step": ("1, which creates the optimizer states" if first else "2 and later") if chosen.mode == "train" else "",
        "strategy": strategy,
    }
    return {label: text for label, text in facts.items() if text}


def write_picture(path: Path, graph: Graph, policy: str) -> None:
    """Draw a step, simulated in program order, into a file whose suffix chooses the format."""
    from graphsim.reporters.plot import picture
    from graphsim.simulation import simulate

    cli._write(path, picture(simulate(graph, policy=policy), path.suffix.lower()))  # type: ignore[arg-type]
