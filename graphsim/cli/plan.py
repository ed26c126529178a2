"""``graphsim plan``: the cheapest schedule that fits a budget."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphsim.cli.options import AllocatorOptions, AsJson, Budget, Costs, First, Format, Output, Source, takes_setting
from graphsim.cli.output import write_output
from graphsim.cli.screen import INTERRUPTED, clear, progress, say, show, tell
from graphsim.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from graphsim.emit import Emission

EXAMPLES = (
    "Examples:\n\n"
    "graphsim plan gpt2 --batch 16 --budget 8GiB\n\n"
    "graphsim plan resnet50 --batch 128 --budget 0.5x --strategy rotor --json\n\n"
    "graphsim plan dag.json --budget 0.8x\n\n"
    "graphsim plan gpt2 --batch 16 --budget 14GiB --allocator torch\n\n"
    "graphsim plan gpt2 --batch 8 --budget 0.5x --offload --link pcie4x16\n\n"
    "graphsim plan layered:250 --set seed=1 --set width=0.4 --budget 0.9x\n\n"
    "graphsim plan torch:mypackage.models:make_model --budget 0.6x --emit torch -o checkpoint_plan.py"
)
Emit = Annotated[
    str,
    typer.Option(
        metavar="torch",
        help="Write the plan as a file of plain PyTorch that checkpoints the modules of your model (torch: sources).",
    ),
]


Offload = Annotated[
    bool,
    typer.Option("--offload", help="Tensors may move to host memory and back, where that is faster."),
]
Link = Annotated[
    str,
    typer.Option(
        metavar="LINK", help="Over which they do: 16GB/s each way, pcie4x16, ...", show_default="that of the GPU"
    ),
]


@takes_setting
def plan(
    source: Source,
    budget: Budget = "",
    strategy: Annotated[str, typer.Option(help="A name that compare lists; auto searches.")] = "auto",
    options: Annotated[
        str, typer.Option(metavar="NAME=VALUE,...", help="Of the strategy: seconds=60,seed=1 (auto), ...")
    ] = "",
    costs: Costs = "",
    first: First = False,
    allocator: Annotated[
        str,
        typer.Option(help="The budget is what it holds, step 1 included: torch, cupy, ...", show_default="live bytes"),
    ] = "",
    allocator_options: AllocatorOptions = "",
    offload: Offload = False,
    link: Link = "",
    emit: Emit = "",
    output: Output = None,
    reporter: Format = "",
    as_json: AsJson = False,
    *,
    setting: Any,
) -> None:
    """Print the cheapest schedule that fits a memory budget; exit code 1 and a witness if none does."""
    from graphsim.answers.planned import plan as run_plan

    if emit or output:
        if allocator or allocator_options:
            raise UsageError("--emit torch plans for live bytes: leave --allocator out")
        if offload or link:
            raise UsageError("--emit torch does not write offload: leave --offload and --link out")
        _emit(source, budget, strategy, options, costs, emit, output, as_json, setting)
        return
    try:
        made = run_plan(
            source,
            budget=budget,
            strategy=strategy,
            options=options,
            costs=costs,
            first=first,
            allocator=allocator,
            allocator_options=allocator_options,
            offload=offload,
            link=link,
            progress=progress(),
            **setting,
        )
    finally:
        clear()
    if as_json or made.plan.interrupted or not made.witness:
        show(made, as_json, reporter)
    if made.plan.interrupted:
        raise typer.Exit(INTERRUPTED)
    if made.witness:
        raise made.witness.error()


def _emit(
    source: str,
    budget: str,
    strategy: str,
    options: str,
    costs: str,
    emit: str,
    output: Path | None,
    as_json: bool,
    setting: Any,
) -> None:
    """Write the plan as checkpoints of modules."""
    from graphsim.answers.plan import plan_as_dict, read_budget
    from graphsim.answers.setting import asked
    from graphsim.emit import emit_plan, emit_within
    from graphsim.emit.capture import captured_source
    from graphsim.options import configure
    from graphsim.recompute.plan import make_plan
    from graphsim.recompute.strategies import STRATEGIES

    if emit != "torch":
        raise UsageError(f"--emit {emit[:40]!r}: write --emit torch" if emit else "--output is for --emit torch")
    if not source.startswith("torch:"):
        raise UsageError(
            f"{source[:80]} is no PyTorch model: --emit torch needs torch:package.module:function, which returns "
            "(model, inputs), so that the modules can be named and the plan be verified"
        )
    if not budget and strategy == "auto":
        raise UsageError("plan needs a --budget, for example 8GiB or 0.8x; or a --strategy that has a way of its own")
    question = asked(source, None, setting)
    captured = captured_source(question.source, question.training, costs=costs)
    limit = read_budget(budget, captured.graph) if budget else None
    try:
        if strategy != "auto":
            chosen = configure(STRATEGIES[strategy], options)
            made = emit_plan(captured, make_plan(captured.graph, chosen, limit))
        else:
            made = emit_within(captured, limit or 0, progress())
    finally:
        clear()
    if output:
        write_output(output, made.text.encode())
    if as_json:
        facts = {"modules": list(made.wrapped), "stored_peak_bytes": made.stored_peak}
        facts |= {"scheduled_peak_bytes": made.scheduled_peak, "file": str(output) if output else made.text}
        say(json.dumps(plan_as_dict(made.plan) | {"emitted": facts}, indent=2) + "\n")
        return
    if not output:
        say(made.text)
    _summarise(made, output)


def _summarise(made: Emission, output: Path | None) -> None:
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
    if output and str(output) != "-":
        say("\n".join([*lines, f"  written: {output}"]) + "\n")
    else:
        tell("\n".join(lines))
