"""The commands: parse, call, print. Errors are caught in `graphsim.__main__`, once."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from typing import Annotated, Any

import typer

from graphsim.errors import UsageError
from graphsim.frontends.expression import Value
from graphsim.graph import Graph
from graphsim.training import Training

app = typer.Typer(
    name="graphsim",
    help="How much memory does training this model take, and what is alive at the peak? Exact, before anything is run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set a param of the spec.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


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
    "graphsim peak torch:mypackage.models:make_model --batch 8"
)
def peak(
    spec: Annotated[
        str, typer.Argument(help="A spec file, a shipped spec's name, a graph's .json file, or torch:module:function.")
    ],
    batch: Annotated[int | None, typer.Option(help="Samples per (micro-)batch: param 'batch'.")] = None,
    seq: Annotated[int | None, typer.Option(help="Sequence length: param 'seq'.")] = None,
    settings: Set = None,
    optimizer: Annotated[
        str,
        typer.Option(
            help="sgd, momentum, nesterov, adam, adamw, amsgrad, adagrad, rmsprop, lion, adafactor, adam8bit."
        ),
    ] = "adamw",
    optimizer_impl: Annotated[
        str, typer.Option(help="forloop, foreach or fused.", show_default="what PyTorch picks on the target")
    ] = "",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, amp-bf16 or amp-fp16.")] = "fp32",
    target: Annotated[str, typer.Option(help="cuda or cpu: rules differ where PyTorch does.")] = "cuda",
    device: Annotated[
        str, typer.Option(help="A GPU, where a rule depends on it, e.g. t4.", show_default="a100-80g")
    ] = "",
    policy: Annotated[
        str, typer.Option(help="eager (when PyTorch lets go) or liveness (right after the last use).")
    ] = "eager",
    allocator: Annotated[
        str, typer.Option(help="What it would reserve: exact, cupy or torch.", show_default="none")
    ] = "",
    mode: Annotated[str, typer.Option(help="train, evaluation (no update) or inference (no_grad).")] = "train",
    accumulation: Annotated[int, typer.Option(help="Micro-batches per optimizer step.")] = 1,
    zero_grad: Annotated[
        str, typer.Option(help="Where gradients are reset: before-forward, before-backward, after-step.")
    ] = "before-forward",
    set_to_none: Annotated[
        bool, typer.Option("--set-to-none/--no-set-to-none", help="Release gradients instead of zeroing them.")
    ] = True,
    master_weights: Annotated[
        bool, typer.Option("--master-weights", help="fp32 copies of bf16/fp16 parameters.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the peak memory of a training step: how much, where, and what is live there."""
    from graphsim.frontends import load
    from graphsim.report import peak as peak_report
    from graphsim.report import report_step
    from graphsim.reporters import REPORTERS

    training = Training(
        optimizer=optimizer,
        optimizer_impl=optimizer_impl,
        precision=precision,
        target=target,  # type: ignore[arg-type]
        device=device,
        mode=mode,  # type: ignore[arg-type]
        accumulation=accumulation,
        zero_grad=zero_grad,  # type: ignore[arg-type]
        set_to_none=set_to_none,
        master_weights=master_weights,
    )
    overrides = _overrides(settings, batch=batch, seq=seq)
    if spec.startswith("torch:"):
        first, steady = _captured(spec, training, overrides)
        report = report_step(steady, first=first, policy=policy, allocator=allocator)  # type: ignore[arg-type]
    elif spec.endswith(".json"):
        if overrides:
            raise UsageError(f"{spec} is a graph, not a spec: it has no params to set")
        report = report_step(load(spec), policy=policy, allocator=allocator)  # type: ignore[arg-type]
    else:
        report = peak_report(load(spec, **overrides), training, policy=policy, allocator=allocator)  # type: ignore[arg-type]
    reporter = REPORTERS["json"]() if as_json else REPORTERS["text"](width=_width(), color=_color())
    sys.stdout.write(reporter(report))


@app.command()
def specs(
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of spec files.")] = False,
) -> None:
    """List the model specs that come with graphsim, and their params."""
    from graphsim.frontends.schema import spec_schema
    from graphsim.frontends.spec import describe_shipped

    if schema:
        sys.stdout.write(json.dumps(spec_schema(), indent=2) + "\n")
        return
    entries = describe_shipped()
    if as_json:
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
        return
    _print_table(
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
    from graphsim.ops import kind_of, kinds
    from graphsim.ops.kind import describe

    entries = [describe(kind_of(name))] if name else [describe(kind) for kind in kinds().values()]
    if as_json:
        sys.stdout.write(json.dumps(entries[0] if name else entries, indent=2) + "\n")
        return
    if not name:
        _print_table(
            ("op", "what it does", "attributes"),
            [(e["name"], e["about"], ", ".join(a["name"] for a in e["attributes"])) for e in entries],
        )
        return
    (entry,) = entries
    sys.stdout.write(f"{entry['name']}: {entry['about']}\n  operands: {entry['operands']}\n")
    if entry["source"]:
        sys.stdout.write(f"  source: {entry['source']}\n")
    if entry["attributes"]:
        _print_table(
            ("attribute", "type", "default", ""),
            [(a["name"], a["type"], a["default"], a["about"]) for a in entry["attributes"]],
        )


def _captured(source: str, training: Training, parameters: dict[str, Value]) -> tuple[Graph, Graph]:
    """Return step 1 and the steady step of the user's own model.

    Raises:
        UsageError: an option asks for something that the captured code decides.
    """
    from graphsim.frontends.torch import load_steps

    plain = replace(Training(optimizer=training.optimizer, optimizer_impl=training.optimizer_impl), target="cpu")
    for name, value in replace(training, target="cpu").as_dict().items():
        if value != getattr(plain, name):
            raise UsageError(f"{name} = {value!r} is for specs; of {source} the step is captured as your code runs it")
    implementation = training.optimizer_impl
    return load_steps(source, optimizer=training.optimizer, implementation=implementation, **parameters)


def _overrides(settings: list[str] | None, **named: int | None) -> dict[str, Value]:
    """Return the params that the command line sets."""
    overrides: dict[str, Value] = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {setting[:60]!r}: write NAME=VALUE, for example --set layers=24")
        if name.strip() in overrides:
            raise UsageError(f"--set {name.strip()[:60]} stands twice")
        overrides[name.strip()] = _value(text.strip())
    for name, value in named.items():
        if value is not None:
            if name in overrides:
                raise UsageError(f"--{name} and --set {name}=... both set '{name}'")
            overrides[name] = value
    return overrides


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _print_table(header: tuple[str, ...], rows: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(width=_width(), highlight=False).print(table)


def _width() -> int:
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))


def _color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
