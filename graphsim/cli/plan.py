"""The commands that plan: which schedule fits a budget, and what every strategy makes of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphsim.cli.options import AsJson, Set, TargetName, overrides_of, step_of, training_of, width, write_file
from graphsim.errors import UsageError

if TYPE_CHECKING:
    from graphsim.core.graph import Graph
    from graphsim.emit import Emission
    from graphsim.emit.capture import Captured
    from graphsim.recompute.strategies import Plan, Strategy
    from graphsim.sources.spec.expression import Value

PLAN_EXAMPLES = (
    "Examples:\n\n"
    "graphsim plan gpt2 --batch 16 --budget 8GiB\n\n"
    "graphsim plan resnet50 --batch 128 --budget 0.5x --strategy rotor --json\n\n"
    "graphsim plan dag.json --budget 0.8x\n\n"
    "graphsim plan layered:250 --set seed=1 --set width=0.4 --budget 0.9x\n\n"
    "graphsim plan torch:mypackage.models:make_model --budget 0.6x --emit torch -o checkpoint_plan.py"
)
COMPARE_EXAMPLES = (
    "Examples:\n\n"
    "graphsim compare vgg16 --batch 256 --optimizer sgd\n\n"
    "graphsim compare resnet50 --batch 64 --budget 0.6x --plot pareto.svg\n\n"
    "graphsim compare dag.json --json"
)

Source = Annotated[
    str,
    typer.Argument(
        help="A spec file or a shipped spec's name (its step >= 2 is planned), or a graph's .json file: ours, or "
        "networkx node-link JSON with 'bytes' and 'time' per node; or a DTR log (.log, .jsonl); or your own model, "
        "torch:package.module:function, which returns (model, inputs); or layered:250, a random graph of so many nodes "
        "(--set seed=1, --set width=0.4)."
    ),
]
Budget = Annotated[str, typer.Option(help="8GiB, 512MiB, ...; or 0.8x: that share of the peak without recompute.")]
Batch = Annotated[int | None, typer.Option(help="Samples per batch: param 'batch'.")]
Seq = Annotated[int | None, typer.Option(help="Sequence length: param 'seq'.")]
Optimizer = Annotated[str, typer.Option(help="As for peak.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16, fp16, amp-bf16 or amp-fp16.")]
Gpu = Annotated[str, typer.Option("--device", help="The GPU whose roofline prices the ops.", show_default="a100-80g")]
Emit = Annotated[
    str,
    typer.Option(
        metavar="torch",
        help="Write the plan as a file of plain PyTorch that checkpoints the modules of your model (torch: sources).",
    ),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write it; default: standard output.")]
Costs = Annotated[
    str,
    typer.Option(
        help="What an op costs: unit, flops, or the name of a GPU (its roofline).",
        show_default="the graph's times, else the device's roofline, else flops",
    ),
]


def plan(
    source: Source,
    budget: Budget = "",
    strategy: Annotated[str, typer.Option(help="A name that compare lists; auto searches.")] = "auto",
    options: Annotated[
        str, typer.Option(metavar="NAME=VALUE,...", help="Of the strategy: seconds=60,seed=1 (auto), ...")
    ] = "",
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    optimizer: Optimizer = "adamw",
    precision: Precision = "fp32",
    target: TargetName = "",
    device: Gpu = "",
    costs: Costs = "",
    emit: Emit = "",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Print the cheapest schedule that fits a memory budget; exit code 1 and a witness if none does."""
    from graphsim.answers.plan import bounded, least_time, plan_as_dict, read_budget, witness
    from graphsim.options import configure
    from graphsim.recompute.strategies import STRATEGIES
    from graphsim.recompute.strategies.auto import Auto
    from graphsim.show.reporters.plans import plan_text

    if not budget and strategy == "auto":
        raise UsageError("plan needs a --budget, for example 8GiB or 0.8x; or a --strategy that has a way of its own")
    chosen: Any = configure(STRATEGIES[strategy], options)
    if hasattr(chosen, "progress"):
        chosen = replace(chosen, progress=_progress())
    overrides = overrides_of(settings, batch=batch, seq=seq)
    if emit or output:
        captured = _captured(source, overrides, emit, optimizer, precision, target, device, costs)
        _emit(captured, None if isinstance(chosen, Auto) else chosen, budget, output, as_json)
        return
    graph = _graph(source, overrides, optimizer, precision, target, device, costs)
    limit = read_budget(budget, graph) if budget else None
    least = least_time(graph, limit)
    best = bounded(chosen(graph, budget=limit), least)
    _clear()
    why = witness(graph, [best], limit) if limit is not None and not best.feasible else None
    if as_json:
        answer = plan_as_dict(best) | ({"witness": why.as_dict()} if why else {})
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    elif not why:
        sys.stdout.write(plan_text(best, least))
    if why:
        raise why.error()


def compare(
    source: Source,
    budget: Budget = "",
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    optimizer: Optimizer = "adamw",
    precision: Precision = "fp32",
    target: TargetName = "",
    device: Gpu = "",
    costs: Costs = "",
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw it: a .png, .svg or .pdf file (extra 'plot').")
    ] = None,
) -> None:
    """Print every strategy's peak, time and extra compute, and a chart of one against the other."""
    from graphsim.answers.plan import least_time, plan_as_dict, read_budget
    from graphsim.core.simulation import cost_unit
    from graphsim.show.reporters.pareto import plans_picture
    from graphsim.show.reporters.plans import comparison_text
    from graphsim.show.reporters.plot import check

    if plot is not None:
        check(plot.suffix.lower())  # before the minutes that planning may take
    graph = _graph(source, overrides_of(settings, batch=batch, seq=seq), optimizer, precision, target, device, costs)
    limit = read_budget(budget, graph) if budget else None
    plans = _all_plans(graph, limit)
    if plot is not None:
        write_file(plot, plans_picture(graph, plans, plot.suffix.lower()))
    if as_json:
        sys.stdout.write(json.dumps([plan_as_dict(one) for one in plans], indent=2) + "\n")
    else:
        sys.stdout.write(comparison_text(plans, cost_unit(graph), least_time(graph, limit), width()))


def _graph(
    source: str, overrides: dict[str, Value], optimizer: str, precision: str, target: str, device: str, costs: str
) -> Graph:
    """Return the graph to plan: that of a file as it stands, or the steady step of a spec or of the user's model."""
    from graphsim.core.simulation import with_costs

    training = {"optimizer": optimizer, "precision": precision, "target": target, "device": device}
    graph = step_of(source, overrides, False, **training)
    return with_costs(graph, costs) if costs else graph


def _captured(
    source: str,
    overrides: dict[str, Value],
    emit: str,
    optimizer: str,
    precision: str,
    target: str,
    device: str,
    costs: str,
) -> Captured:
    """Return the user's model, captured so that checkpoints can be applied to it."""
    from graphsim.emit.capture import captured_source

    if emit != "torch":
        raise UsageError(f"--emit {emit[:40]!r}: write --emit torch" if emit else "--output is for --emit torch")
    if not source.startswith("torch:"):
        raise UsageError(
            f"{source[:80]} is no PyTorch model: --emit torch needs torch:package.module:function, which returns "
            "(model, inputs), so that the modules can be named and the plan be verified"
        )
    training = training_of(source, optimizer=optimizer, precision=precision, target=target, device=device)
    if training.precision != "fp32":
        raise UsageError(f"precision = {training.precision!r} is for specs; {source} is captured as your code runs it")
    where = "cuda" if training.target == "cuda" else ""
    return captured_source(
        source, optimizer=optimizer, target=where, device=training.device, parameters=overrides, costs=costs
    )


def _emit(captured: Captured, strategy: Strategy | None, budget: str, output: Path | None, as_json: bool) -> None:
    """Write the plan of *strategy*, by default a search, as checkpoints of modules."""
    from graphsim.answers.plan import plan_as_dict, read_budget
    from graphsim.emit import emit_plan, emit_within

    limit = read_budget(budget, captured.graph) if budget else None
    try:
        if strategy is not None:
            made = emit_plan(captured, strategy(captured.graph, budget=limit))
        else:
            made = emit_within(captured, limit or 0, _progress())
    finally:
        _clear()
    if output:
        write_file(output, made.text.encode())
    if as_json:
        facts = {"modules": list(made.wrapped), "stored_peak_bytes": made.stored_peak}
        facts |= {"scheduled_peak_bytes": made.scheduled_peak, "file": str(output) if output else made.text}
        sys.stdout.write(json.dumps(plan_as_dict(made.plan) | {"emitted": facts}, indent=2) + "\n")
        return
    if not output:
        sys.stdout.write(made.text)
    _tell(made, output)


def _tell(made: Emission, output: Path | None) -> None:
    """Say what was written; beside the file itself on standard output, on standard error."""
    from graphsim.units import format_bytes

    plan = made.plan
    lines = [
        f"{plan.strategy}: {len(made.wrapped)} modules recomputed, peak {format_bytes(plan.peak_bytes)} "
        f"({plan.peak_bytes:,} bytes), {plan.overhead:+.2%} compute; without, {format_bytes(made.stored_peak)}",
        "  verified: this is the peak of the model captured with the file applied",
    ]
    if made.scheduled_peak not in (None, plan.peak_bytes):
        lines.append(
            f"  the schedule it stands for peaks at {made.scheduled_peak:,} bytes: a checkpoint runs a module again "
            "from its beginning and holds all that its backward needs"
        )
    if output:
        lines.append(f"  written: {output}")
    (sys.stdout if output else sys.stderr).write("\n".join(lines) + "\n")


def _all_plans(graph: Graph, budget: int | None) -> list[Plan]:
    from graphsim.answers.plan import compare as compare_all

    try:
        return compare_all(graph, budget, progress=_progress())
    finally:
        _clear()


def _progress() -> Callable[[str], None] | None:
    """Return what shows one line of progress on a terminal."""

    def show(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text[: width() - 1]}" + ("\n" if text.startswith("skipped") else ""))
        sys.stderr.flush()

    return show if sys.stderr.isatty() else None


def _clear() -> None:
    if show := _progress():
        show("")
