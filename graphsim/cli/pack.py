"""``graphsim pack``: static offsets for blocks of known live ranges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from graphsim.cli.options import AsJson
from graphsim.cli.screen import end, say, working
from graphsim.errors import UnknownNameError
from graphsim.units import parse_bytes

EXAMPLES = "Example:\n\ngraphsim pack blocks.csv --capacity 1MiB --mode exact --seconds 60 -o offsets.csv"


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
        say(json.dumps(answer, indent=2) + "\n")
    else:
        verdict = "optimal" if packing.proved_optimal else f"at most {packing.gap:.1%} above the best"
        within = "" if limit is None else f", {'within' if fits else 'above'} {limit:,}"
        say(f"height {packing.height:,} bytes{within}; {verdict}\n")
    end(fits)
