"""Which of our tensors asked, and what a change of the training would save, where the source is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graphsim.answers.explain.moment import Moment
from graphsim.core.index import NOTHING
from graphsim.core.simulation import Simulation, in_succession, simulate
from graphsim.core.trace import Trace
from graphsim.errors import OutOfMemoryError
from graphsim.memory.allocators.torch import TorchCaching, TorchPool
from graphsim.sources.source import Steps
from graphsim.units import format_bytes

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Suspect:
    """A tensor of ours that asks for as much.

    Attributes:
        step: 'step 1' or 'later steps'.
        here: under as much memory as there was, our count runs out at this very request.
    """

    name: str
    nbytes: int
    op: str
    phase: str
    step: str
    here: bool


def suspects(steps: Steps, now: Moment) -> tuple[tuple[Suspect, ...], str]:
    """Return the tensors that ask for what was asked for, and what our count says of the room there was.

    PyTorch's allocator is simulated with the room that it had; where that runs out comes first.
    """
    assert now.requested is not None, "there was a request"
    asks = _asker(now)
    options = TorchCaching(limit=now.room, expandable_segments=bool(now.expandable))
    runs = [("step 1", simulate(steps.first))]
    if steps.steady is not steps.first:
        runs.append(("later steps", simulate(steps.steady)))
    found = [
        Suspect(*what, step, here=False)
        for step, run in runs
        for row in range(len(run.trace.nbytes))
        if run.trace.execution[row] != NOTHING and asks(int(run.trace.nbytes[row]))
        for what in [_what(run, row)]
    ]
    where, said = (None, "") if now.room is None else _runs_out(runs, options, asks)
    if where is not None:
        found = [where, *(one for one in found if (one.name, one.op) != (where.name, where.op))]
    return tuple({(one.name, one.op): one for one in reversed(found)}.values())[::-1][:_SHOWN], said


def _runs_out(
    runs: list[tuple[str, Simulation]], options: TorchCaching, asks: Callable[[int], bool]
) -> tuple[Suspect | None, str]:
    """Return the tensor with which our count runs out of memory, if that asks for as much, and a sentence on it."""
    for step, run, trace, rows in _streams(runs):
        try:
            options(trace)
        except OutOfMemoryError as error:
            block = int(trace.stream[0][error.event])
            row = rows.get(block)
            if row is None or run.trace.execution[row] == NOTHING:
                return None, f"by our count the room that there was does not hold what exists before {step}"
            suspect = Suspect(*_what(run, row), step, here=True)
            if asks(suspect.nbytes):
                return suspect, f"by our count memory runs out in {step}, at this very request"
            other = f"{suspect.name}, which asks for {format_bytes(suspect.nbytes)}"
            return None, f"by our count memory runs out in {step} at another place: at {other}"
    return None, "by our count this training fits in the room that there was: something else held memory too"


def _streams(runs: list[tuple[str, Simulation]]) -> Iterator[tuple[str, Simulation, Trace, dict[int, int]]]:
    """Yield step 1, and later ones after it, as the allocator sees them, with the row of each block in the step."""
    (name, first), *later = runs
    yield name, first, first.trace, {row: row for row in range(len(first.trace.nbytes))}
    for name, run in later:
        joined = in_succession(first, run)
        yield name, run, joined.trace, {int(block): row for row, block in enumerate(joined.rows)}


def _asker(now: Moment) -> Callable[[int], bool]:
    """Return what says if bytes ask for what was asked for: a message tells the segment, a snapshot the block."""
    pool, requested = TorchPool(TorchCaching()), now.requested or 0
    told = pool.asked_of_device if now.precision else pool.rounded
    return lambda nbytes: abs(told(nbytes) - requested) <= now.precision


def _what(run: Simulation, row: int) -> tuple[str, int, str, str]:
    trace = run.trace
    execution, tensor = int(trace.execution[row]), int(trace.tensor[row])
    op = run.op_at(execution)
    name = f"workspace of {op.name}" if tensor == NOTHING else list(run.graph.tensors)[tensor]
    return name, int(trace.nbytes[row]), op.name, str(run.phases[execution])
