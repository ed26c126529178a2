"""The static allocation problem, its solution, and their files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from graphsim.core.index import Bools, Ints
from graphsim.errors import LayoutError, UsageError

_MAX_FILE = 32 * 2**20
_MAX_BLOCKS = 200_000
_MAX_NUMBER = 2**48
_COLUMNS = ("id", "lower", "upper", "size")


@dataclass(frozen=True, eq=False)
class Instance:
    """Blocks, one per row: live in [lower, upper), any unit of time; size in bytes, at least 1."""

    lower: Ints
    upper: Ints
    size: Ints
    names: tuple[str, ...] = ()

    @cached_property
    def moments(self) -> tuple[Ints, Ints, int]:
        """(first, end, count): the live ranges in numbers of stretches of time in which nothing changes."""
        times = np.unique(np.concatenate([self.lower, self.upper]))
        return np.searchsorted(times, self.lower), np.searchsorted(times, self.upper), max(0, len(times) - 1)

    @cached_property
    def lower_bound(self) -> int:
        """Bytes live at once: no packing is lower."""
        first, end, count = self.moments
        change = np.zeros(count + 1, dtype=np.int64)
        np.add.at(change, first, self.size)
        np.subtract.at(change, end, self.size)
        return int(np.cumsum(change).max(initial=0))

    def overlapping(self, block: int) -> Bools:
        """Return which blocks are live at some time together with *block* (itself included)."""
        together: Bools = (self.lower < self.upper[block]) & (self.upper > self.lower[block])
        return together


@dataclass(frozen=True, eq=False)
class Packing:
    """Offsets of the blocks of an instance, in bytes.

    Attributes:
        lower_bound: no packing has a lower height.
    """

    offset: Ints
    height: int
    lower_bound: int

    @property
    def proved_optimal(self) -> bool:
        """Whether the height equals its bound."""
        return self.height == self.lower_bound

    @property
    def gap(self) -> float:
        """How far above the best height this one can be: height / lower bound - 1."""
        return self.height / self.lower_bound - 1 if self.lower_bound else 0.0


def packing(instance: Instance, offset: Ints) -> Packing:
    """Return *offset* as a packing of *instance*."""
    return Packing(offset, int((offset + instance.size).max(initial=0)), instance.lower_bound)


def check(instance: Instance, offset: Ints) -> None:
    """Check that no two blocks share bytes while both are live.

    Raises:
        LayoutError: names the two blocks.
    """
    if len(offset) != len(instance.size) or (offset < 0).any():
        raise LayoutError("every block needs an offset of at least 0")
    top = offset + instance.size
    for block in range(len(offset)):
        shared = instance.overlapping(block) & (offset < top[block]) & (top > offset[block])
        shared[block] = False
        if shared.any():
            raise LayoutError(f"blocks {block} and {int(shared.argmax())} overlap")


def read_instance(path: Path) -> Instance:
    """Read a CSV file with the columns id, lower, upper, size (the format of MiniMalloc).

    Raises:
        UsageError: names the file, the line and what is wrong.
    """
    try:
        if path.stat().st_size > _MAX_FILE:
            raise UsageError(f"{path}: larger than {_MAX_FILE >> 20} MiB")
        with path.open(newline="", encoding="utf-8") as file:
            return _parse(path, csv.DictReader(file))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise UsageError(f"{path}: not a CSV file in UTF-8") from None


def _parse(path: Path, reader: csv.DictReader[str]) -> Instance:
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UsageError(f"{path}: column {missing[0]} is missing; the first line must name {','.join(_COLUMNS)}")
    names: dict[str, None] = {}
    rows: list[tuple[int, int, int]] = []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        begin, end, nbytes = (_number(where, name, row[name]) for name in _COLUMNS[1:])
        if end <= begin:
            raise UsageError(f"{where}: upper ({end}) must be greater than lower ({begin})")
        if nbytes < 1:
            raise UsageError(f"{where}: size must be at least 1, not {nbytes}")
        if row["id"] in names:
            raise UsageError(f"{where}: id {row['id'][:40]!r} stands twice")
        names[row["id"]] = None
        rows.append((begin, end, nbytes))
        if len(rows) > _MAX_BLOCKS:
            raise UsageError(f"{path}: more than {_MAX_BLOCKS:,} blocks")
    lower, upper, size = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Instance(lower, upper, size, tuple(names))


def _number(where: str, column: str, text: str | None) -> int:
    try:
        number = int(text or "")
    except ValueError:
        raise UsageError(f"{where}: {column} must be a whole number, not {(text or '')[:40]!r}") from None
    if abs(number) > _MAX_NUMBER:
        raise UsageError(f"{where}: {column} is beyond 2^48")
    return number


def write_packing(path: Path, instance: Instance, offset: Ints) -> None:
    """Write the instance with the column offset added; the file appears whole or not at all.

    Raises:
        UsageError: the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*_COLUMNS, "offset"])
            columns = (instance.lower, instance.upper, instance.size, offset)
            writer.writerows(zip(instance.names, *(column.tolist() for column in columns), strict=True))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{path}: {error.strerror}") from None
