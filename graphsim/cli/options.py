"""What all commands share: options, the params of a spec, tables."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphsim.errors import UsageError
from graphsim.sources.spec.expression import Value, read_value

if TYPE_CHECKING:
    from graphsim.core.graph import Graph
    from graphsim.step.training import Training

Spec = Annotated[
    str,
    typer.Argument(
        help="A spec file, a shipped spec's name, an .onnx file, a graph's .json file, torch:module:function, "
        "hf:config.json, or layered:250, a random graph of so many nodes."
    ),
]
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
TargetName = Annotated[
    str,
    typer.Option(
        help="cuda or cpu: rules differ where PyTorch does.", show_default="cuda; of torch: sources where the model is"
    ),
]
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

First = Annotated[bool, typer.Option("--first", help="Step 1, which creates the optimizer states.")]


def overrides_of(settings: list[str] | None, **named: int | None) -> dict[str, Value]:
    """Return the params that the command line sets."""
    overrides: dict[str, Value] = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {setting[:60]!r}: write NAME=VALUE, for example --set layers=24")
        if name.strip() in overrides:
            raise UsageError(f"--set {name.strip()[:60]} stands twice")
        overrides[name.strip()] = read_value(text.strip())
    for name, value in named.items():
        if value is not None:
            if name in overrides:
                raise UsageError(f"--{name} and --set {name}=... both set '{name}'")
            overrides[name] = value
    return overrides


def print_table(header: tuple[str, ...], rows: list[Any]) -> None:
    """Print *rows* under *header*, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(width=width(), highlight=False).print(table)


def width() -> int:
    """Return the columns of the terminal, within reason."""
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))


def color() -> bool:
    """Whether standard output shows colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def is_step(source: str) -> bool:
    """Whether *source* is a graph, a whole step, and not the spec of a model."""
    from graphsim.sources import GRAPH_FILES

    return source.endswith(GRAPH_FILES) or source.startswith("layered:")


def is_captured(source: str) -> bool:
    """Whether the step of *source* is captured from a PyTorch model: your own, or one of transformers."""
    return source.startswith(("torch:", "hf:"))


def training_of(source: str, *, target: str, **options: Any) -> Training:
    """Return how *source* is trained: for CUDA, but a captured model where that is."""
    from graphsim.step.training import Training

    return Training(target=target or ("cpu" if is_captured(source) else "cuda"), **options)  # type: ignore[arg-type]


def step_of(source: str, overrides: dict[str, Value], first: bool, **options: Any) -> Graph:
    """Return the training step of a spec or of the user's own model, or the graph of a file as it stands."""
    from graphsim.step.training import training_step

    training = training_of(source, **options)
    if is_captured(source):
        steps = captured_steps(source, training, overrides)
        return steps[0] if first else steps[1]
    graph = load_source(source, overrides, training.mode)
    return graph if is_step(source) else training_step(graph, training, first=first)


def captured_steps(source: str, training: Training, parameters: dict[str, Value]) -> tuple[Graph, Graph]:
    """Return step 1 and the steady step of a model that is captured.

    Raises:
        UsageError: an option asks for something that the captured code decides.
    """
    from graphsim.sources.captured import captured_steps as capture

    return capture(source, training, parameters)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{path}: {error.strerror}") from None


def load_source(source: str, overrides: dict[str, Value], mode: str = "train") -> Graph:
    """Return the graph of *source*: a spec with its params set, or a file.

    An ONNX file has no loss of its own; it gets one to be trained.
    """
    from graphsim.sources import GRAPH_FILES, load

    if source.endswith(GRAPH_FILES) and overrides:
        raise UsageError(f"{source} is a graph, not a spec: it has no params to set")
    if source.endswith(".onnx") and mode != "train":
        overrides = {"loss": "none", **overrides}
    return load(source, **overrides)


def working(text: str) -> AbstractContextManager[Any]:
    """Show on a terminal that something takes time."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)
