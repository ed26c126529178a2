"""The commands: parse, call, print. Errors are caught in `graphsim.__main__`, once."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphsim.errors import UnknownNameError, UsageError
from graphsim.frontends.expression import Value
from graphsim.units import parse_bytes

if TYPE_CHECKING:
    from graphsim.graph import Graph

app: typer.Typer = typer.Typer(
    name="graphsim",
    help="How much memory does training this model take, and what is alive at the peak? Exact, before anything is run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Spec = Annotated[str, typer.Argument(help="A spec file, a shipped spec's name, or a graph's .json file.")]
Batch = Annotated[int | None, typer.Option(help="Samples per (micro-)batch: param 'batch'.")]
Seq = Annotated[int | None, typer.Option(help="Sequence length: param 'seq'.")]
OptimizerName = Annotated[
    str,
    typer.Option(help="sgd, momentum, nesterov, adam, adamw, amsgrad, adagrad, rmsprop, lion, adafactor, adam8bit."),
]
OptimizerImpl = Annotated[
    str, typer.Option(help="forloop, foreach or fused.", show_default="what PyTorch picks on the target")
]
PrecisionName = Annotated[str, typer.Option(help="fp32, bf16, fp16, amp-bf16 or amp-fp16.")]
TargetName = Annotated[str, typer.Option(help="cuda or cpu: rules differ where PyTorch does.")]
DeviceName = Annotated[str, typer.Option(help="A GPU, where a rule depends on it, e.g. t4.", show_default="a100-80g")]
PolicyName = Annotated[str, typer.Option(help="eager (when PyTorch lets go) or liveness (right after the last use).")]
Mode = Annotated[str, typer.Option(help="train, evaluation (no update) or inference (no_grad).")]
Accumulation = Annotated[int, typer.Option(help="Micro-batches per optimizer step.")]
ZeroGrad = Annotated[str, typer.Option(help="Where gradients are reset: before-forward, before-backward, after-step.")]
SetToNone = Annotated[
    bool, typer.Option("--set-to-none/--no-set-to-none", help="Release gradients instead of zeroing them.")
]
MasterWeights = Annotated[bool, typer.Option("--master-weights", help="fp32 copies of bf16/fp16 parameters.")]
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
    "graphsim peak gpt2 --allocator torch --allocator-options limit=16GiB,expandable_segments:True"
)
def peak(
    spec: Spec,
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    optimizer: OptimizerName = "adamw",
    optimizer_impl: OptimizerImpl = "",
    precision: PrecisionName = "fp32",
    target: TargetName = "cuda",
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
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw it: a .png, .svg or .pdf file (extra 'plot').")
    ] = None,
) -> None:
    """Print the peak memory of a training step: how much, where, and what is live there."""
    from graphsim.report import peak as peak_report
    from graphsim.report import report_step
    from graphsim.reporters import REPORTERS
    from graphsim.training import Training, training_step

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
    answer: dict[str, Any] = {"policy": policy, "allocator": allocator, "allocator_options": allocator_options}
    graph = _load(spec, overrides)
    report = report_step(graph, **answer) if _is_step(spec) else peak_report(graph, training, **answer)
    reporter = REPORTERS["json"]() if as_json else REPORTERS["text"](width=_width(), color=_color())
    if plot is not None:
        cli_report.write_picture(plot, graph if _is_step(spec) else training_step(graph, training), policy)
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


@app.command(
    epilog="Examples:\n\n"
    "graphsim replay resnet50 --batch 8 --backend numpy\n\n"
    "graphsim replay gpt2 --seq 512 --backend cupy --lockstep\n\n"
    "graphsim replay vgg16 --batch 8 --backend cupy --backend-options limit=4GiB --json"
)
def replay(
    spec: Spec,
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    backend: Annotated[str, typer.Option(help="numpy (host), cupy or torch (GPU).")] = "numpy",
    backend_options: Annotated[
        str, typer.Option(metavar="NAME=VALUE,...", help="Its options: touch=True (numpy), limit=8GiB (cupy).")
    ] = "",
    lockstep: Annotated[
        bool, typer.Option("--lockstep", help="Tell the model which of equal free chunks CuPy's pool took.")
    ] = False,
    optimizer: OptimizerName = "adamw",
    optimizer_impl: OptimizerImpl = "",
    precision: PrecisionName = "fp32",
    target: TargetName = "cuda",
    device: DeviceName = "",
    policy: PolicyName = "eager",
    first: Annotated[bool, typer.Option("--first", help="Step 1, which creates the optimizer states.")] = False,
    as_json: AsJson = False,
) -> None:
    """Execute the predicted mallocs and frees of a step for real, and compare event by event.

    Exit code 1 if memory runs out or the bytes in use differ anywhere.
    """
    from graphsim.replay import replay as run_replay
    from graphsim.reporters.text import replay_text
    from graphsim.simulation import simulate

    graph = _step(
        spec,
        _overrides(settings, batch=batch, seq=seq),
        first,
        optimizer=optimizer,
        optimizer_impl=optimizer_impl,
        precision=precision,
        target=target,
        device=device,
    )
    run = simulate(graph, policy=policy)  # type: ignore[arg-type]
    with _working(f"replaying {run.trace.events_count:,} events"):
        result = run_replay(run, backend, options=backend_options, lockstep=lockstep)
    sys.stdout.write(result.to_json() + "\n" if as_json else replay_text(result))
    if not result.matches:
        raise typer.Exit(1)


@app.command(
    epilog="Examples:\n\n"
    "graphsim export resnet50 -o step.pickle --options expandable_segments:True\n\n"
    "graphsim export gpt2 --seq 512 -o step.json\n\n"
    "graphsim export vgg16 --batch 8 -o step.csv"
)
def export(
    spec: Spec,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file; its suffix chooses the format.")],
    file_format: Annotated[
        str, typer.Option("--format", help="snapshot, perfetto or csv.", show_default="by the suffix")
    ] = "",
    options: Annotated[
        str, typer.Option(metavar="NAME:VALUE,...", help="Of the allocator in a snapshot, as PYTORCH_ALLOC_CONF.")
    ] = "",
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    optimizer: OptimizerName = "adamw",
    optimizer_impl: OptimizerImpl = "",
    precision: PrecisionName = "fp32",
    target: TargetName = "cuda",
    device: DeviceName = "",
    policy: PolicyName = "eager",
    first: Annotated[bool, typer.Option("--first", help="Step 1, which creates the optimizer states.")] = False,
) -> None:
    """Write a step for other tools: pytorch.org/memory_viz (.pickle), ui.perfetto.dev (.json), tables (.csv)."""
    from graphsim.allocators.torch import TorchCaching
    from graphsim.exports import EXPORTS
    from graphsim.options import configure
    from graphsim.simulation import simulate

    formats = {EXPORTS[name].suffix: name for name in EXPORTS}
    if not file_format and output.suffix not in formats:
        raise UsageError(f"{output}: name it {' or '.join('*' + suffix for suffix in formats)}, or say --format")
    name = file_format or formats[output.suffix]
    if options and name != "snapshot":
        raise UsageError("--options are those of the allocator in a snapshot")
    plugin = EXPORTS[name](configure(TorchCaching, options)) if options else EXPORTS[name]()
    graph = _step(
        spec,
        _overrides(settings, batch=batch, seq=seq),
        first,
        optimizer=optimizer,
        optimizer_impl=optimizer_impl,
        precision=precision,
        target=target,
        device=device,
    )
    _write(output, plugin(simulate(graph, policy=policy)))  # type: ignore[arg-type]


@app.command(epilog="Example:\n\ngraphsim pack blocks.csv --capacity 1MiB --mode exact --seconds 60 -o offsets.csv")
def pack(
    file: Annotated[Path, typer.Argument(help="CSV with the columns id, lower, upper, size.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The same, with a column offset.")] = None,
    capacity: Annotated[str, typer.Option(help="Bytes of the arena, e.g. 64MiB; the search ends there.")] = "",
    mode: Annotated[str, typer.Option(help="greedy (with hill climbing) or exact (needs OR-Tools).")] = "greedy",
    seconds: Annotated[float, typer.Option(min=0, help="Time for the search.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Pack blocks of known live ranges into one arena, as low as possible; exit code 1 if they do not fit."""
    from graphsim.packing import climb, solve
    from graphsim.packing.instance import read_instance, write_packing

    if mode not in ("greedy", "exact"):
        raise UnknownNameError("mode", mode, ("greedy", "exact"))
    limit = parse_bytes(capacity) if capacity else None
    instance = read_instance(file)
    with _working(f"packing {len(instance.size):,} blocks"):
        if mode == "exact":
            packing = solve(instance, capacity=limit, seconds=seconds, seed=seed)
        else:
            packing = climb(instance, seconds=seconds, seed=seed, goal=limit or 0)
    if output is not None:
        write_packing(output, instance, packing.offset)
    fits = limit is None or packing.height <= limit
    answer = {
        "blocks": len(instance.size),
        "height": packing.height,
        "lower_bound": packing.lower_bound,
        "gap": packing.gap,
        "proved_optimal": packing.proved_optimal,
        "capacity": limit,
        "fits": fits,
    }
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        verdict = "optimal" if packing.proved_optimal else f"at most {packing.gap:.1%} above the best"
        within = "" if limit is None else f", {'within' if fits else 'above'} {limit:,}"
        sys.stdout.write(f"height {packing.height:,} bytes{within}; {verdict}\n")
    if not fits:
        raise typer.Exit(1)


def _is_step(source: str) -> bool:
    """Whether *source* is a graph, a whole step, and not the spec of a model."""
    return source.endswith(".json")


def _step(source: str, overrides: dict[str, Value], first: bool, **training: Any) -> Graph:
    """Return the training step of a spec, or the graph of a file as it stands."""
    from graphsim.training import Training, training_step

    graph = _load(source, overrides)
    return graph if _is_step(source) else training_step(graph, Training(**training), first=first)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{path}: {error.strerror}") from None


def _load(source: str, overrides: dict[str, Value]) -> Graph:
    from graphsim.frontends import load

    if _is_step(source) and overrides:
        raise UsageError(f"{source} is a graph, not a spec: it has no params to set")
    return load(source, **overrides)


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


def _working(text: str) -> AbstractContextManager[Any]:
    """Show on a terminal that something takes time."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


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


from graphsim import cli_report  # noqa: E402  # its commands register themselves
