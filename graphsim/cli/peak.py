"""``graphsim peak``: how much memory a training step takes, and what is alive at its peak."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphsim.cli.options import Allocator, AllocatorOptions, AsJson, Format, Plot, Policy, Source, takes_setting
from graphsim.cli.screen import end, show

EXAMPLES = (
    "Examples:\n\n"
    "graphsim peak gpt2 --batch 8 --seq 1024 --optimizer adamw\n\n"
    "graphsim peak specs/vgg16.toml --target cpu --json\n\n"
    "graphsim peak gpt2 --set layers=24 --set width=1024 --set heads=16 --precision amp-bf16\n\n"
    "graphsim peak gpt2 --allocator torch --allocator-options limit=16GiB,expandable_segments:True\n\n"
    "graphsim peak torch:mypackage.models:make_model --batch 8 --gpu t4 --allocator torch\n\n"
    "graphsim peak hf:path/to/config.json --batch 2 --seq 128\n\n"
    "graphsim peak model.onnx --batch 8 --set loss=cross_entropy"
)


@takes_setting
def peak(
    source: Source,
    policy: Policy = "eager",
    allocator: Allocator = "",
    allocator_options: AllocatorOptions = "",
    largest: Annotated[int, typer.Option(min=0, help="Live tensors to list with --json; 0: all.")] = 12,
    after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help='What was trained before in the same process, as "bert_base batch=8": its segments are in the '
            "allocator's cache. May be repeated.",
        ),
    ] = None,
    plot: Plot = None,
    reporter: Format = "",
    as_json: AsJson = False,
    *,
    setting: Any,
) -> None:
    """Print the peak memory of a training step: how much, where, and what is live there.

    Exit code 1 if the allocator runs out of a limit in its options.
    """
    from graphsim.answers.peak import report_of
    from graphsim.answers.reservation import chosen_allocator
    from graphsim.answers.setting import asked
    from graphsim.core.liveness import parse_policy

    question = asked(source, None, setting)
    report = report_of(
        *question,
        policy=parse_policy(policy),
        allocator=chosen_allocator(allocator, allocator_options),
        shown=(allocator, allocator_options),
        largest=largest or None,
        after=after or (),
    )
    if plot is not None:
        from graphsim.cli.report import write_picture

        write_picture(plot, question.source.steps(question.training).steady, policy)
    show(report, as_json, reporter)
    end(not (report.steady.out_of_memory or report.first.out_of_memory))
