"""``graphsim plan``: the cheapest schedule that fits a budget."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphsim.cli.options import AllocatorOptions, AsJson, Budget, Costs, First, Format, Output, Source, takes_setting
from graphsim.cli.screen import INTERRUPTED, clear, progress, show
from graphsim.errors import UsageError

EXAMPLES = (
    "Examples:\n\n"
    "graphsim plan gpt2 --batch 16 --budget 8GiB\n\n"
    "graphsim plan resnet50 --batch 128 --budget 0.5x --strategy rotor --json\n\n"
    "graphsim plan dag.json --budget 0.8x\n\n"
    "graphsim plan gpt2 --batch 16 --budget 14GiB --allocator torch\n\n"
    "graphsim plan gpt2 --batch 8 --budget 0.5x --offload --link pcie4x16\n\n"
    "graphsim plan layered:250 --set seed=1 --set width=0.4 --budget 0.9x\n\n"
    "graphsim plan torch:mypackage.models:make_model --budget 0.6x --emit torch -o planned.py"
)
Emit = Annotated[
    str,
    typer.Option(
        metavar="torch|checkpoints",
        help="Write the plan of a torch: source as a file of plain PyTorch, to train by: the very plan (torch), or "
        "checkpoints of modules (checkpoints).",
    ),
]
Emittable = Annotated[
    bool, typer.Option("--emittable", help="Run nothing again once the optimizer steps, as --emit torch does.")
]
Reorder = Annotated[bool, typer.Option("--reorder", help="Ops may run in any order that the data allow.")]


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
    reorder: Reorder = False,
    emittable: Emittable = False,
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
            raise UsageError("--emit plans for live bytes: leave --allocator out")
        if first:
            raise UsageError("--emit plans the steady step, which every later one is: leave --first out")
        if offload or link:
            raise UsageError("--emit does not write offload: leave --offload and --link out")
        from graphsim.cli.emitted import Wanted
        from graphsim.cli.emitted import emit as emit_plan

        emit_plan(source, emit, Wanted(budget, strategy, options, costs, reorder), output, as_json, setting)
        return
    try:
        made = run_plan(
            source,
            budget=budget,
            strategy=strategy,
            options=options,
            costs=costs,
            first=first,
            reorder=reorder,
            emittable=emittable,
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
