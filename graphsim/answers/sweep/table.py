"""The table of a sweep: its columns, as CSV and as Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from graphsim.answers.sweep.points import Point
from graphsim.display import defused
from graphsim.errors import MissingExtraError
from graphsim.sources.spec.expression import Value

SCHEMA = "graphsim-sweep/1"

RESULTS: dict[str, type] = {
    "parameters": int,
    "peak_bytes": int,
    "peak_phase": str,
    "peak_op": str,
    "first_peak_bytes": int,
    "reserved_peak_bytes": int,
    "first_reserved_peak_bytes": int,
    "out_of_memory": str,
    "memory_bytes": int,
    "need_bytes": int,
    "fits": bool,
    "perhaps": bool,
    "budget_bytes": int,
    "feasible": bool,
    "overhead": float,
    "step_seconds": float,
    "error": str,
    "graphsim": str,
    "schema": str,
}
"""Columns behind those that say what was asked, and their types."""

Row = Mapping[str, Any]


def columns(points: Sequence[Point]) -> dict[str, type]:
    """Return the columns of a table of *points*: the model, its params, the options, the results."""
    params: dict[str, set[type]] = {"batch": {int}, "seq": {int}}
    for point in points:
        for name, value in point.params:
            params.setdefault(name, set()).add(_type(value))
    asked = {name: int if name == "accumulation" else str for name in points[0].settings() if name not in params}
    source = {"source": asked.pop("source")}
    return {**source, **{name: _common(types) for name, types in params.items()}, **asked, **RESULTS}


def _type(value: Value) -> type:
    """Return the type of *value* in a file: an integer of more than 64 bits is text."""
    return str if isinstance(value, int) and abs(value) >= 2**63 else type(value)


def _common(types: set[type]) -> type:
    """Return the type of a column of values of *types*."""
    if len(types) == 1:
        return next(iter(types))
    return float if types == {int, float} else str


def to_csv(header: Mapping[str, type], rows: Sequence[Row]) -> bytes:
    """Return the table as CSV in UTF-8; what is None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(defused, header))
    writer.writerows([_cell(row.get(name)) for name in header] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    return "" if value is None else defused(_text(value)) if isinstance(value, bool | str) else value


def _text(value: Any) -> str:
    """Return *value* as a table has it; names come from file systems and need not be Unicode."""
    return str(value).lower() if isinstance(value, bool) else str(value).encode("utf-8", "replace").decode()


def need_parquet() -> None:
    """Check that Parquet can be written.

    Raises:
        MissingExtraError: PyArrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtraError("PyArrow", "sweep") from None


def to_parquet(header: Mapping[str, type], rows: Sequence[Row]) -> bytes:
    """Return the table as a Parquet file, every column with its type, `SCHEMA` in the file's metadata."""
    need_parquet()
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    arrays = []
    for name, kind in header.items():
        convert = _text if kind is str else kind
        column = [None if (value := row.get(name)) is None else convert(value) for row in rows]
        arrays.append(pa.array(column, types[kind]))
    table = pa.table(arrays, names=list(header)).replace_schema_metadata({"schema": SCHEMA})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


FORMATS = {".csv": to_csv, ".parquet": to_parquet}
"""By the suffix of the output."""
