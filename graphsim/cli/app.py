"""The commands: parse, call, print. Errors are caught in `graphsim.__main__`, once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphsim.cli import diff as cli_diff
from graphsim.cli import fit as cli_fit
from graphsim.cli import plan as cli_plan
from graphsim.cli import report as cli_report
from graphsim.cli import run as cli_run
from graphsim.cli import sweep as cli_sweep
from graphsim.cli.options import (
    Accumulation,
    AsJson,
    Batch,
    DeviceName,
    MasterWeights,
    Mode,
    OptimizerImpl,
    OptimizerName,
    PolicyName,
    PrecisionName,
    Seq,
    Set,
    SetToNone,
    Spec,
    TargetName,
    ZeroGrad,
    captured_steps,
    color,
    is_captured,
    is_step,
    load_source,
    overrides_of,
    print_table,
    training_of,
    width,
)

app = typer.Typer(
    name="graphsim",
    help="How much memory does training this model take, and what is alive at the peak? Exact, before anything is run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from graphsim.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command(
    epilog="Examples:\n\n"
    "graphsim peak gpt2 --batch 8 --seq 1024 --optimizer adamw\n\n"
    "graphsim peak specs/vgg16.toml --target cpu --json\n\n"
    "graphsim peak gpt2 --set layers=24 --set width=1024 --set heads=16 --precision amp-bf16\n\n"
    "graphsim peak gpt2 --allocator torch --allocator-options limit=16GiB,expandable_segments:True\n\n"
    "graphsim peak torch:mypackage.models:make_model --batch 8\n\n"
    "graphsim peak torch:mypackage.models:make_model --target cuda --device t4 --allocator torch\n\n"
    "graphsim peak hf:path/to/config.json --batch 2 --seq 128\n\n"
    "graphsim peak model.onnx --batch 8 --set loss=cross_entropy"
)
def peak(
    spec: Spec,
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    optimizer: OptimizerName = "adamw",
    optimizer_impl: OptimizerImpl = "",
    precision: PrecisionName = "fp32",
    target: TargetName = "",
    device: DeviceName = "",
    policy: PolicyName = "eager",
    allocator: Annotated[
        str, typer.Option(help="What it would reserve: torch, cupy, bfc, arena or exact.", show_default="none")
    ] = "",
    allocator_options: Annotated[
        str, typer.Option(metavar="NAME=VALUE,...", help="Its options, e.g. limit=16GiB,expandable_segments=True.")
    ] = "",
    mode: Mode = "train",
    accumulation: Accumulation = 1,
    zero_grad: ZeroGrad = "before-forward",
    set_to_none: SetToNone = True,
    master_weights: MasterWeights = False,
    largest: Annotated[int, typer.Option(min=0, help="Live tensors to list with --json; 0: all.")] = 12,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw it: a .png, .svg or .pdf file (extra 'plot').")
    ] = None,
) -> None:
    """Print the peak memory of a training step: how much, where, and what is live there."""
    from graphsim.answers.peak import peak as peak_report
    from graphsim.answers.peak import report_step
    from graphsim.show.reporters import REPORTERS
    from graphsim.step.training import training_step

    training = training_of(
        spec,
        optimizer=optimizer,
        optimizer_impl=optimizer_impl,
        precision=precision,
        target=target,
        device=device,
        mode=mode,
        accumulation=accumulation,
        zero_grad=zero_grad,
        set_to_none=set_to_none,
        master_weights=master_weights,
    )
    overrides = overrides_of(settings, batch=batch, seq=seq)
    answer: dict[str, Any] = {"policy": policy, "allocator": allocator, "allocator_options": allocator_options}
    answer["largest"] = largest or None
    if is_captured(spec):
        first, step = captured_steps(spec, training, overrides)
        report = report_step(step, first=first, **answer)
    elif is_step(spec):
        step = load_source(spec, overrides)
        report = report_step(step, **answer)
    else:
        graph = load_source(spec, overrides, mode)
        report = peak_report(graph, training, **answer)
        step = training_step(graph, training) if plot else graph
    if plot is not None:
        cli_report.write_picture(plot, step, policy)
    reporter = REPORTERS["json"]() if as_json else REPORTERS["text"](width=width(), color=color())
    text = reporter(report)
    sys.stdout.write(text if isinstance(text, str) else text.decode())


app.command(epilog=cli_diff.DIFF_EXAMPLES)(cli_diff.diff)
app.command(epilog=cli_fit.FIT_EXAMPLES)(cli_fit.fit)
app.command(epilog=cli_sweep.SWEEP_EXAMPLES)(cli_sweep.sweep)
app.command(epilog=cli_plan.PLAN_EXAMPLES)(cli_plan.plan)
app.command(epilog=cli_plan.COMPARE_EXAMPLES)(cli_plan.compare)
app.command(epilog=cli_report.REPORT_EXAMPLES)(cli_report.report)
app.command(epilog=cli_run.REPLAY_EXAMPLES)(cli_run.replay)
app.command(epilog=cli_run.EXPORT_EXAMPLES)(cli_run.export)
app.command(epilog=cli_run.PACK_EXAMPLES)(cli_run.pack)


@app.command()
def specs(
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of spec files.")] = False,
) -> None:
    """List the model specs that come with graphsim, and their params."""
    from graphsim.sources.spec import describe_shipped
    from graphsim.sources.spec.schema import spec_schema

    if schema:
        sys.stdout.write(json.dumps(spec_schema(), indent=2) + "\n")
        return
    entries = describe_shipped()
    if as_json:
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
        return
    print_table(
        ("spec", "model", "params (--set)"),
        [
            (entry["name"], entry["about"], " ".join(f"{name}={value}" for name, value in entry["params"].items()))
            for entry in entries
        ],
    )


@app.command()
def ops(
    name: Annotated[str | None, typer.Argument(help="An op kind, for its attributes and source.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the op kinds that specs can use, or describe one."""
    from graphsim.step.ops import kind_of, kinds
    from graphsim.step.ops.kind import describe

    entries = [describe(kind_of(name))] if name else [describe(kind) for kind in kinds().values()]
    if as_json:
        sys.stdout.write(json.dumps(entries[0] if name else entries, indent=2) + "\n")
        return
    if not name:
        print_table(
            ("op", "what it does", "attributes"),
            [(e["name"], e["about"], ", ".join(a["name"] for a in e["attributes"])) for e in entries],
        )
        return
    (entry,) = entries
    sys.stdout.write(f"{entry['name']}: {entry['about']}\n  operands: {entry['operands']}\n")
    if entry["source"]:
        sys.stdout.write(f"  source: {entry['source']}\n")
    if entry["attributes"]:
        print_table(
            ("attribute", "type", "default", ""),
            [(a["name"], a["type"], a["default"], a["about"]) for a in entry["attributes"]],
        )
