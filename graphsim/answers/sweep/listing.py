"""List files: the points of a sweep as a table, CSV or TOML."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from graphsim.answers.sweep.points import MAX_POINTS, OPTIONS
from graphsim.answers.sweep.table import RESULTS
from graphsim.core.files import read_text
from graphsim.errors import SpecError, UsageError
from graphsim.sources.spec import parse_toml
from graphsim.sources.spec.expression import Value, read_value

MAX_FILE = 2**22


def read_list(path: Path) -> list[dict[str, Value]]:
    """Return the settings of each point that a list file names: one axis of a `grid`.

    A CSV has a header of option names and params, and a row per point, where an empty cell sets nothing. A TOML
    file has a table ``[[point]]`` per point. A source in it is a spec: a list never names code to run.

    Raises:
        UsageError: the file cannot be read; the message names the line.
    """
    text = _text(path)
    points = _toml_points(text, path) if path.suffix == ".toml" else _csv_points(text, path)
    if not points:
        raise UsageError(f"{path}: no points in it")
    if len(points) > MAX_POINTS:
        raise UsageError(f"{path}: {len(points):,} points are too many (at most {MAX_POINTS:,})")
    for number, point in enumerate(points, start=1):
        if str(point.get("source", "")).startswith("torch:"):
            raise UsageError(f"{path}: point {number}: a list does not run code; name torch: sources as arguments")
    return points


def _text(path: Path) -> str:
    if path.suffix not in (".csv", ".toml"):
        raise UsageError(f"{path}: a list is a .csv or a .toml file")
    try:
        return read_text(path, MAX_FILE)
    except SpecError as error:
        raise UsageError(str(error)) from None


def _csv_points(text: str, path: Path) -> list[dict[str, Value]]:
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}") from None
    names = _names([name.strip() for name in rows[0][1]], path) if rows else []
    points = []
    for line, row in rows[1:]:
        if len(row) != len(names):
            raise UsageError(f"{path}, line {line}: {len(row)} cells under {len(names)} columns")
        cells = zip(names, (cell.strip() for cell in row), strict=True)
        points.append({name: _cell(name, cell, f"{path}, line {line}") for name, cell in cells if cell})
    return points


def _names(names: list[str], path: Path) -> list[str]:
    count = Counter(names)
    for name in names:
        if not name:
            raise UsageError(f"{path}: a column without a name; the first line names options and params")
        if count[name] > 1:
            raise UsageError(f"{path}: column '{name[:60]}' stands twice")
        if name in RESULTS:
            raise UsageError(f"{path}: '{name}' is a result, not an option or a param")
    return names


def _cell(name: str, cell: str, where: str) -> Value:
    value = read_value(cell)
    if name == "accumulation" and type(value) is not int:
        raise UsageError(f"{where}: accumulation is a whole number, not {cell[:40]!r}")
    return cell if name in OPTIONS and name != "accumulation" else value


def _toml_points(text: str, path: Path) -> list[dict[str, Value]]:
    data = parse_toml(text, str(path))
    points: Any = data.get("point")
    if set(data) != {"point"} or not isinstance(points, list) or not all(isinstance(p, dict) for p in points):
        raise UsageError(f"{path}: write a table [[point]] per point, and nothing else")
    for number, point in enumerate(points, start=1):
        for name, value in zip(_names(list(point), path), point.values(), strict=True):
            if not isinstance(value, int | float | str):
                raise UsageError(f"{path}: point {number}: '{name[:60]}' is a number, text, true or false")
    return points
