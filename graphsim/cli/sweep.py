"""``graphsim sweep``: a grid of settings as one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphsim.cli.options import AsJson, params_of
from graphsim.cli.screen import say
from graphsim.errors import UsageError

if TYPE_CHECKING:
    from graphsim.answers.sweep.run import Progress, Summary
    from graphsim.sources.spec.expression import Value

EXAMPLES = (
    "Examples:\n\n"
    "graphsim sweep gpt2 bert_base --batch 1,2,4,8 --precision fp32,amp-bf16 --gpu t4,a100-80g -o sweep.csv\n\n"
    "graphsim sweep gpt2 --set layers=12,24 --optimizer adamw,adam8bit --allocator torch -o sweep.parquet\n\n"
    "graphsim sweep resnet50 --batch 64 --strategy sqrt,rotor --budget 0.5x,0.7x\n\n"
    "graphsim sweep --list points.csv --scheduler tcp://10.0.0.1:8786 --json"
)


def sweep(
    sources: Annotated[list[str] | None, typer.Argument(help="Sources, as for peak.")] = None,
    points: Annotated[
        Path | None, typer.Option("--list", help="A .csv or .toml of points instead of, or times, the grid.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The table: .csv, or .parquet (extra 'sweep').")
    ] = Path("sweep.csv"),
    batch: Annotated[str, typer.Option(metavar="N,...", help="Samples per (micro-)batch: param 'batch'.")] = "",
    seq: Annotated[str, typer.Option(metavar="N,...", help="Sequence lengths: param 'seq'.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE,...", help="Values of another param of the spec.")
    ] = None,
    precision: Annotated[str, typer.Option(metavar="NAME,...", show_default="fp32")] = "",
    optimizer: Annotated[str, typer.Option(metavar="NAME,...", show_default="adamw")] = "",
    optimizer_impl: Annotated[str, typer.Option(metavar="NAME,...", help="forloop, foreach or fused.")] = "",
    accumulation: Annotated[str, typer.Option(metavar="N,...", help="Micro-batches per optimizer step.")] = "",
    strategy: Annotated[str, typer.Option(metavar="NAME,...", help="Who schedules the step, see compare.")] = "",
    budget: Annotated[str, typer.Option(metavar="SIZE,...", help="Of the strategies: 8GiB, or 0.8x of the peak.")] = "",
    gpu: Annotated[str, typer.Option(metavar="NAME,...", help="Does it fit there, how long is a step: t4, ...")] = "",
    mode: Annotated[str, typer.Option(metavar="NAME,...", help="train, evaluation or inference.")] = "",
    target: Annotated[str, typer.Option(metavar="NAME,...", help="cuda or cpu.", show_default="cuda")] = "",
    policy: Annotated[str, typer.Option(metavar="NAME,...", help="eager or liveness.", show_default="eager")] = "",
    allocator: Annotated[str, typer.Option(metavar="NAME,...", help="What it would reserve: torch, cupy, ...")] = "",
    allocator_options: Annotated[str, typer.Option(metavar="NAME=VALUE,...", help="Its options.")] = "",
    jobs: Annotated[int, typer.Option(min=0, max=1024, help="Processes.", show_default="one per core")] = 0,
    scheduler: Annotated[str, typer.Option(help="Of a Dask cluster, tcp://host:8786 (extra 'dask').")] = "",
    as_json: AsJson = False,
) -> None:
    """Tabulate every combination of settings, in parallel; a killed sweep goes on where it was.

    Each option takes several values, separated by commas. A point that cannot be computed is a row with an error.
    Finished results are kept in OUTPUT.journal: the same command, or one with more points, computes only the rest.
    """
    from graphsim.answers.sweep import dask_cluster, grid, local_processes, read_list
    from graphsim.answers.sweep import sweep as run_sweep
    from graphsim.answers.sweep.run import journal_of

    if jobs and scheduler:
        raise UsageError("--jobs is for this machine; the cluster behind --scheduler has its own workers")
    axes: list[list[dict[str, Value]]] = []
    if sources:
        axes.append([{"source": source} for source in sources])
    if points is not None:
        axes.append(read_list(points))
    axes += [_numbers("batch", batch), _numbers("seq", seq), *(_param(setting) for setting in settings or [])]
    options = {
        "precision": precision,
        "optimizer": optimizer,
        "optimizer_impl": optimizer_impl,
        "mode": mode,
        "target": target,
        "policy": policy,
        "strategy": strategy,
        "budget": budget,
        "gpu": gpu,
        "allocator": allocator,
    }
    axes += [[{name: item} for item in _items(name, text)] for name, text in options.items()]
    axes.append(_numbers("accumulation", accumulation))
    if allocator_options:
        axes.append([{"allocator_options": allocator_options}])
    grid_points = grid([axis for axis in axes if axis])
    workers = dask_cluster(scheduler) if scheduler else local_processes(jobs)
    try:
        with _progress() as progress:
            summary = run_sweep(grid_points, output, workers, progress=progress)
    except KeyboardInterrupt:
        kept = f"; finished points are in {journal_of(output)}: the same command goes on from there"
        sys.stderr.write(f"interrupted{kept if journal_of(output).exists() else ''}\n")
        raise typer.Exit(130) from None
    if summary.damaged:
        said = f"{summary.damaged} damaged lines of {summary.journal} were dropped; their points were computed anew"
        sys.stderr.write(f"graphsim: {said}\n")
    say(json.dumps(summary.as_dict(), indent=2) + "\n" if as_json else _text(summary))


def _items(name: str, text: str) -> list[str]:
    """Return the values that *text* lists."""
    items = [item.strip() for item in text.split(",")] if text else []
    if not all(items):
        raise UsageError(f"--{name.replace('_', '-')} {text[:60]!r}: write values separated by commas")
    return items


def _numbers(name: str, text: str) -> list[dict[str, Value]]:
    try:
        return [{name: int(item)} for item in _items(name, text)]
    except ValueError:
        raise UsageError(f"--{name} {text[:60]!r}: write whole numbers separated by commas") from None


def _param(setting: str) -> list[dict[str, Value]]:
    """Return the axis of ``NAME=VALUE,...``."""
    from graphsim.answers.sweep.points import OPTIONS

    name, equals, text = setting.partition("=")
    axis = [params_of([f"{name}={item}" if equals else setting]) for item in _items("set", text) or [""]]
    if name.strip() in OPTIONS:
        raise UsageError(f"--set {name.strip()}: this is an option of sweep, not a param of a spec")
    return axis


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """Give what shows a bar on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sweep", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _text(summary: Summary) -> str:
    """Return what a person wants to know at once; the rest is in the table."""
    lines = [
        f"{summary.output}: {summary.points:,} points in {summary.seconds:.1f} s, {summary.computed:,} computed, "
        f"{summary.reused:,} reused from {summary.journal.name}"
    ]
    fits = summary.as_dict()["fits"]
    lines += [f"  {gpu}: {count['fits']:,} of {count['points']:,} fit" for gpu, count in fits.items()]
    if summary.failed:
        first = next(row for row in summary.rows if row["error"])
        lines.append(f"  {summary.failed:,} failed, see the column 'error'; the first: {first['error']}")
    return "\n".join(lines) + "\n"
