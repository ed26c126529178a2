"""The commands that make something to look at: the page of a step, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphsim.cli.options import (
    Accumulation,
    Batch,
    DeviceName,
    First,
    Mode,
    OptimizerImpl,
    OptimizerName,
    PolicyName,
    PrecisionName,
    Seq,
    Set,
    Spec,
    TargetName,
    overrides_of,
    step_of,
    working,
    write_file,
)
from graphsim.errors import UsageError

if TYPE_CHECKING:
    from graphsim.core.graph import Graph
    from graphsim.core.simulation import Simulation
    from graphsim.show.reporters.html import PlanPoint


REPORT_EXAMPLES = (
    "Examples:\n\n"
    "graphsim report gpt2 --batch 8 --seq 1024 -o gpt2.html\n\n"
    "graphsim report resnet50 --batch 32 --optimizer momentum --compare --budget 4GiB --budget 2GiB\n\n"
    "graphsim report step.json -o step.html --allocator cupy"
)


def report(
    spec: Spec,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("report.html"),
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    optimizer: OptimizerName = "adamw",
    optimizer_impl: OptimizerImpl = "",
    precision: PrecisionName = "fp32",
    target: TargetName = "",
    device: DeviceName = "",
    policy: PolicyName = "eager",
    mode: Mode = "train",
    accumulation: Accumulation = 1,
    first: First = False,
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
    from graphsim.answers.plan import read_budget
    from graphsim.show.reporters.html import allocation_data, html_page

    if budgets and not (compare or strategy):
        raise UsageError("--budget is for --strategy or --compare")
    if strategy and len(budgets or []) > 1 and not compare:
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
    graph = step_of(spec, overrides_of(settings, batch=batch, seq=seq), first, **training)
    limits = [read_budget(budget, graph) for budget in budgets or []]
    with working("simulating"):
        run = _scheduled(graph, strategy, limits[0] if limits else None, policy)
        allocation = None if allocator in ("", "none") else allocation_data(run, allocator, allocator_options)
    plans = _plans(graph, limits, policy) if compare else []
    page = html_page(run, facts=_facts(run, first, strategy, training), allocation=allocation, plans=plans)
    write_file(output, page.encode("utf-8", "replace"))
    typer.echo(f"{output}: {len(page.encode('utf-8', 'replace')):,} bytes")


def _scheduled(graph: Graph, strategy: str, budget: int | None, policy: str) -> Simulation:
    """Return *graph* simulated in program order, or as *strategy* schedules it."""
    from graphsim.core.simulation import simulate
    from graphsim.recompute.strategies import STRATEGIES

    schedule = STRATEGIES[strategy]()(graph, budget=budget).schedule if strategy else None
    return simulate(graph, schedule, policy=policy)  # type: ignore[arg-type]


def _plans(graph: Graph, limits: list[int], policy: str) -> list[PlanPoint]:
    from graphsim.recompute.strategies import STRATEGIES
    from graphsim.show.reporters.html import compare_plans

    with working("comparing strategies"):
        return compare_plans(graph, STRATEGIES.names(), [None, *limits], policy=policy)  # type: ignore[arg-type]


def _facts(run: Simulation, first: bool, strategy: str, asked: dict[str, Any]) -> dict[str, str]:
    """Return what the head of the page says: what a graph knows of its own training, else what was asked."""
    from graphsim.step.training import Training

    if "training" not in run.graph.attributes:  # a plain DAG
        return {"strategy": strategy} if strategy else {}
    training = {**asked, **dict(run.graph.attributes["training"])}
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
    from graphsim.core.simulation import simulate
    from graphsim.show.reporters.plot import picture

    write_file(path, picture(simulate(graph, policy=policy), path.suffix.lower()))  # type: ignore[arg-type]
