"""The commands that execute or write a step: replay, export; and pack."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from graphsim.cli.options import (
    AsJson,
    Batch,
    DeviceName,
    First,
    OptimizerImpl,
    OptimizerName,
    PolicyName,
    PrecisionName,
    Seq,
    Set,
    Spec,
    TargetName,
    overrides_of,
    step_of,
    working,
    write_file,
)
from graphsim.errors import UnknownNameError, UsageError
from graphsim.units import parse_bytes

REPLAY_EXAMPLES = (
    "Examples:\n\n"
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
    compute: Annotated[bool, typer.Option("--compute", help="Execute and time the arithmetic too.")] = False,
    optimizer: OptimizerName = "adamw",
    optimizer_impl: OptimizerImpl = "",
    precision: PrecisionName = "fp32",
    target: TargetName = "",
    device: DeviceName = "",
    policy: PolicyName = "eager",
    first: First = False,
    as_json: AsJson = False,
) -> None:
    """Execute the predicted mallocs and frees of a step for real, and compare event by event.

    Exit code 1 if memory runs out or the bytes in use differ anywhere.
    """
    from graphsim.core.simulation import simulate
    from graphsim.measured.replay import replay as run_replay
    from graphsim.show.reporters.text import replay_text

    graph = step_of(
        spec,
        overrides_of(settings, batch=batch, seq=seq),
        first,
        optimizer=optimizer,
        optimizer_impl=optimizer_impl,
        precision=precision,
        target=target,
        device=device,
    )
    run = simulate(graph, policy=policy)  # type: ignore[arg-type]
    with working(f"replaying {run.trace.events_count:,} events"):
        result = run_replay(run, backend, options=backend_options, lockstep=lockstep, compute=compute)
    sys.stdout.write(result.to_json() + "\n" if as_json else replay_text(result))
    if not result.matches:
        raise typer.Exit(1)


EXPORT_EXAMPLES = (
    "Examples:\n\n"
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
    target: TargetName = "",
    device: DeviceName = "",
    policy: PolicyName = "eager",
    first: First = False,
) -> None:
    """Write a step for other tools: pytorch.org/memory_viz (.pickle), ui.perfetto.dev (.json), tables (.csv)."""
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
    graph = step_of(
        spec,
        overrides_of(settings, batch=batch, seq=seq),
        first,
        optimizer=optimizer,
        optimizer_impl=optimizer_impl,
        precision=precision,
        target=target,
        device=device,
    )
    write_file(output, plugin(simulate(graph, policy=policy)))  # type: ignore[arg-type]


PACK_EXAMPLES = "Example:\n\ngraphsim pack blocks.csv --capacity 1MiB --mode exact --seconds 60 -o offsets.csv"


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
    from graphsim.memory.packing import climb, solve
    from graphsim.memory.packing.instance import read_instance, write_packing

    if mode not in ("greedy", "exact"):
        raise UnknownNameError("mode", mode, ("greedy", "exact"))
    limit = parse_bytes(capacity) if capacity else None
    instance = read_instance(file)
    with working(f"packing {len(instance.size):,} blocks"):
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
