"""A sweep: what the journal has, what the workers find, and the table in the order of the grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphsim.answers.sweep.evaluation import FOUND, Found, Task, check, tasks_of
from graphsim.answers.sweep.journal import Journal, digest, opened, write_durably
from graphsim.answers.sweep.points import Point
from graphsim.answers.sweep.table import FORMATS, SCHEMA, Row, columns, need_parquet
from graphsim.answers.sweep.workers import Workers, outcomes
from graphsim.errors import UsageError
from graphsim.version import __version__

Progress = Callable[[int, int], None]
"""Is told (finished points, all points)."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a sweep did. `rows` are those of the table.

    Attributes:
        computed, reused: points that were evaluated now, and those that the journal had.
        damaged: lines of the journal that are not as they were written; their points were evaluated now.
        failed: points whose row has an error.
        seconds: time it took.
    """

    output: Path
    journal: Path
    points: int
    computed: int
    reused: int
    damaged: int
    failed: int
    seconds: float
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, without the rows; `fits` has (points that fit, points that were computed) by GPU."""
        fits: dict[str, dict[str, int]] = {}
        for row in self.rows:
            if row["fits"] is not None:
                count = fits.setdefault(row["gpu"], {"fits": 0, "points": 0})
                count["fits"] += row["fits"]
                count["points"] += 1
        data = asdict(self) | {"output": str(self.output), "journal": str(self.journal), "fits": fits}
        del data["rows"]
        return {"schema": SCHEMA, "graphsim": __version__, **data}


def journal_of(output: Path) -> Path:
    """Return the path of the journal of a table."""
    return output.with_name(output.name + ".journal")


def sweep(points: Sequence[Point], output: Path, workers: Workers, *, progress: Progress | None = None) -> Summary:
    """Evaluate *points* and write their table to *output*, whole or not at all.

    What the journal of *output* has is not computed again, and what is finished when this is interrupted or
    killed is in it. A table that is there already is replaced only by one that has all of its rows.

    Args:
        points: as `grid` makes them.
        output: a .csv or .parquet file.
        workers: see `local_processes` and `dask_cluster`.
        progress: is told how far it is.

    Raises:
        UsageError: *output* holds something else or cannot be written, or another sweep is writing it.
        GraphSimError: no point at all can be evaluated.
    """
    start = time.monotonic()
    _check_output(output)
    tasks = tasks_of(points)
    check(tasks)
    with opened(journal_of(output)) as journal:
        _check_table(output, journal, {task.key for task in tasks})
        missing = [task for task in tasks if not _is_result(journal.found.get(task.key))]
        found = {task.key: journal.found[task.key] for task in tasks if _is_result(journal.found.get(task.key))}
        found |= _evaluated(missing, journal, workers, progress, len(found))
        rows = [task.point.settings() | _known(found[task.key]) for task in tasks]
        header = columns(points)
        content = FORMATS[output.suffix](header, rows)
        journal.add_table(content, [task.key for task in tasks])
        write_durably(output, content)
    return Summary(
        output=output,
        journal=journal_of(output),
        points=len(tasks),
        computed=len(missing),
        reused=len(tasks) - len(missing),
        damaged=journal.damaged,
        failed=sum(bool(row["error"]) for row in rows),
        seconds=time.monotonic() - start,
        columns=tuple(header),
        rows=tuple(rows),
    )


def _check_output(output: Path) -> None:
    if output.suffix not in FORMATS:
        raise UsageError(f"{output}: name it *.csv or *.parquet")
    if output.suffix == ".parquet":
        need_parquet()
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}")
    if output.exists() and not journal_of(output).exists():
        raise UsageError(f"{output} is there already, and no sweep wrote it; choose another --output or remove it")


def _check_table(output: Path, journal: Journal, keys: set[str]) -> None:
    """Check that a table which is there loses no row: that this journal knows it, and *keys* has all of its."""
    if not output.exists():
        return
    try:
        written = journal.tables.get(digest(output.read_bytes()))
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}") from None
    if written is None:
        raise UsageError(f"{output} has changed since a sweep wrote it; choose another --output or remove it")
    if not written <= keys:
        raise UsageError(
            f"{output} holds {len(written - keys):,} points that are not in this sweep; choose another --output, or "
            "remove it: its results stay in the journal"
        )


def _is_result(found: Found | None) -> bool:
    return found is not None and found.keys() == set(FOUND)


def _known(found: Found) -> Found:
    """Return what was found; what a failed point was asked stays in its row."""
    return {name: value for name, value in found.items() if name not in ("batch", "seq") or value is not None}


def _evaluated(
    tasks: Sequence[Task], journal: Journal, workers: Workers, progress: Progress | None, done: int
) -> dict[str, Found]:
    """Return what is found of *tasks* by key; each result is in the journal before the next one is looked at."""
    results: dict[str, Found] = {}
    show = progress or (lambda done, total: None)
    show(done, done + len(tasks))
    with closing(outcomes(tasks, workers)) as finished:
        for task, outcome in finished:
            found = outcome.found
            if found["graphsim"] != __version__:
                raise UsageError(f"a worker has graphsim {found['graphsim']}, this is {__version__}: install the same")
            if outcome.lasting:
                journal.add(task.key, found)
            results[task.key] = found
            show(done + len(results), done + len(tasks))
    return results
