"""``graphsim export``: write a step for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphsim.cli.options import First, Policy, Source, takes_setting
from graphsim.cli.output import write_output
from graphsim.errors import UsageError

EXAMPLES = (
    "Examples:\n\n"
    "graphsim export resnet50 -o step.pickle --options expandable_segments:True\n\n"
    "graphsim export gpt2 --seq 512 -o step.json\n\n"
    "graphsim export vgg16 --batch 8 --format csv -o -"
)


@takes_setting
def export(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file; its suffix chooses the format.")],
    file_format: Annotated[
        str, typer.Option("--format", help="snapshot, perfetto or csv.", show_default="by the suffix")
    ] = "",
    options: Annotated[
        str, typer.Option(metavar="NAME:VALUE,...", help="Of the allocator in a snapshot, as PYTORCH_ALLOC_CONF.")
    ] = "",
    policy: Policy = "eager",
    first: First = False,
    *,
    setting: Any,
) -> None:
    """Write a step for other tools: pytorch.org/memory_viz (.pickle), ui.perfetto.dev (.json), tables (.csv)."""
    from graphsim.answers.setting import asked
    from graphsim.core.liveness import parse_policy
    from graphsim.core.simulation import simulate
    from graphsim.memory.allocators.torch import TorchCaching
    from graphsim.options import configure
    from graphsim.show.exports import EXPORTS

    formats = {EXPORTS[name]().suffix: name for name in EXPORTS}
    if not file_format and output.suffix not in formats:
        raise UsageError(f"{output}: name it {' or '.join('*' + suffix for suffix in formats)}, or say --format")
    name = file_format or formats[output.suffix]
    if options and name != "snapshot":
        raise UsageError("--options are those of the allocator in a snapshot")
    plugin = EXPORTS[name](configure(TorchCaching, options)) if options else EXPORTS[name]()
    question = asked(source, None, setting)
    steps = question.source.steps(question.training)
    run = simulate(steps.step(first=first), policy=parse_policy(policy))
    write_output(output, plugin(run))
