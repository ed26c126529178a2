"""A grid of settings as one table, from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from graphsim.answers.sweep.points import Settings, grid
from graphsim.answers.sweep.run import Summary
from graphsim.answers.sweep.run import sweep as run_sweep
from graphsim.answers.sweep.workers import dask_cluster, local_processes, this_process
from graphsim.sources.spec.expression import Value


def sweep(
    sources: str | Sequence[str],
    output: str | Path = "sweep.csv",
    *,
    batch: Sequence[int] = (),
    seq: Sequence[int] = (),
    params: Mapping[str, Sequence[Value]] | None = None,
    precision: Sequence[str] = (),
    optimizer: Sequence[str] = (),
    optimizer_impl: Sequence[str] = (),
    accumulation: Sequence[int] = (),
    strategy: Sequence[str] = (),
    budget: Sequence[str] = (),
    gpu: Sequence[str] = (),
    mode: Sequence[str] = (),
    target: Sequence[str] = (),
    policy: Sequence[str] = (),
    allocator: Sequence[str] = (),
    jobs: int = 1,
    scheduler: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Tabulate every combination of settings into *output*; a sweep that was killed goes on where it was.

    Args:
        sources: one or several, as `peak` takes them by name.
        output: a .csv or .parquet file; finished points are also in ``OUTPUT.journal``.
        batch, seq: values of these params; *params* are values of others, by name.
        precision, optimizer, optimizer_impl, accumulation, mode, target, policy, allocator: values, see `peak`.
        strategy, budget: who schedules the step, and within what (``8GiB`` or ``0.8x``).
        gpu: cards: does it fit there, how long is a step.
        jobs: 1: in this process; more: so many processes, which import the calling script anew, so that it must begin
            behind ``if __name__ == "__main__":``. *scheduler*: of a Dask cluster instead, ``tcp://host:8786``.
        progress: is told how many points of how many are done.

    Raises:
        UsageError: *output* holds something else or cannot be written, or an option is wrong.
        GraphSimError: no point at all can be evaluated.
    """
    lists: dict[str, Sequence[Value]] = {
        "source": [sources] if isinstance(sources, str) else sources,
        "batch": batch,
        "seq": seq,
        **dict(params or {}),
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
        "accumulation": accumulation,
    }
    axes: list[list[Settings]] = [[{name: value} for value in values] for name, values in lists.items() if values]
    processes = this_process() if jobs == 1 else local_processes(jobs)
    workers = dask_cluster(scheduler) if scheduler else processes
    return run_sweep(grid(axes), Path(output), workers, progress=progress)
