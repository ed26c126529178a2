"""What changed between two steps, tensor by tensor: for people who made a change, and for a gate in CI.

Both sides are reports, as ``graphsim peak --json --largest 0`` prints them, so that a result that was saved
can stand against a new one. A gate in GitHub Actions, with the result of the main branch in the repository::

    - run: pip install ./graphsim  # a checkout; graphsim-memory once that is on PyPI
    - run: graphsim diff memory.json specs/my_model.toml --batch 32 --tolerance 1% --budget 16GiB

and ``graphsim peak specs/my_model.toml --batch 32 --json --largest 0 > memory.json`` to accept a change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack, cast

from graphsim.answers.peak import SCHEMA as REPORT
from graphsim.answers.peak import Report, report_of
from graphsim.answers.setting import Setting, asked, spelled_out, with_one_name
from graphsim.core.files import parse_json, read_text
from graphsim.core.graph import MAX_BYTES
from graphsim.core.liveness import Policy
from graphsim.display import Answer
from graphsim.errors import SpecError
from graphsim.sources import source_of
from graphsim.units import format_bytes, parse_bytes, parse_share

SCHEMA = "graphsim-diff/1"
MAX_FILE = 2**28


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes of one thing on both sides; None on the side where there is no such thing.

    Attributes:
        role: of a tensor; empty for others.
        layer: of a tensor; empty for others.
    """

    name: str
    a: int | None
    b: int | None
    role: str = ""
    layer: str = ""

    @property
    def bytes(self) -> int:
        """By how much B is larger."""
        return (self.b or 0) - (self.a or 0)


@dataclass(frozen=True, slots=True, repr=False)
class Diff(Answer):
    """What B has that A has not, in bytes.

    Attributes:
        a, b: what the sides are, in words.
        steady, first: peak of any later step, and of step 1.
        peaks: where the steady peak is reached, on both sides: (phase, op).
        ops: number of ops on both sides.
        phases: the peak of each phase of the steady step.
        roles: what is live at the steady peaks; differences add up to that of `steady`.
        layers: the same by the first part of a layer's path, without what did not change.
        tensors: tensors that are live at one of the steady peaks and not, or with other bytes, at the other.
        unlisted: bytes at the peaks that a report does not list by tensor, on both sides.
    """

    a: str
    b: str
    steady: Change
    first: Change
    peaks: tuple[tuple[str, str], tuple[str, str]]
    ops: tuple[int, int]
    phases: tuple[Change, ...]
    roles: tuple[Change, ...]
    layers: tuple[Change, ...]
    tensors: tuple[Change, ...]
    unlisted: tuple[int, int]

    @property
    def grown(self) -> int:
        """Bytes by which a peak of B, in step 1 or later, is above that of A."""
        return max(self.steady.bytes, self.first.bytes)

    @property
    def same(self) -> bool:
        """Whether nothing changed that a report knows of."""
        parts = (self.steady, self.first, *self.phases, *self.roles, *self.tensors)
        return not any(part.bytes for part in parts) and self.peaks[0] == self.peaks[1] and self.ops[0] == self.ops[1]

    def exceeds(self, tolerance: str = "0") -> bool:
        """Whether a peak has grown by more than *tolerance*: bytes (``10MiB``) or a share of A's (``1%``).

        Raises:
            UsageError: *tolerance* is neither.
        """
        share = parse_share(tolerance)
        if share is None:
            return self.grown > parse_bytes(tolerance)
        return any(part.bytes > share * (part.a or 0) for part in (self.steady, self.first))

    @property
    def headline(self) -> str:
        """The answer in one line."""
        peaks = " to ".join(format_bytes(size or 0) for size in (self.steady.a, self.steady.b))
        return f"{self.a} to {self.b}: peak {peaks} ({self.steady.bytes:+,} bytes)"

    def to_json(self) -> str:
        """Return one JSON object; `schema` names the version."""
        return json.dumps({"schema": SCHEMA, "grown_bytes": self.grown, "same": self.same, **asdict(self)}, indent=2)


@spelled_out
def diff(
    a: Any,
    b: Any,
    *,
    only_b: Mapping[str, Any] | None = None,
    policy: Policy = "eager",
    **setting: Unpack[Setting],
) -> Diff:
    """Return what changed in memory from *a* to *b*, tensor by tensor.

    Examples:
        >>> diff("lenet5", "lenet5", batch=8, only_b={"batch": 16}).grown > 0
        True

    Args:
        a: a source as `peak` takes it, a `Report`, or a saved one: the output of ``graphsim peak --json --largest 0``.
        b: the other one.
        only_b: options (``precision``) and params that are for *b* only.
        policy: as of `peak`.

    Raises:
        GraphSimError: a side cannot be read or trained, or an option is wrong.
    """
    options = {name: value for name, value in (only_b or {}).items() if name in OPTIONS}
    params = {name: value for name, value in (only_b or {}).items() if name not in OPTIONS}
    policy_b = options.pop("policy", policy)
    options = with_one_name(options)
    both: dict[str, Any] = with_one_name(setting)
    inherited = {name: value for name, value in dict(both.get("params") or {}).items() if name not in options}
    for_b = {**both, **options, "params": {**inherited, **params}}
    changes = [f"{name}={value}" for name, value in (only_b or {}).items()]
    names = (_side_name(a), " ".join([_side_name(b), *changes]))
    return changed(_side(a, policy, both), _side(b, policy_b, for_b), names=names)


OPTIONS = frozenset({*Setting.__annotations__, "policy", "device"} - {"params", "training"})
"""What can be said of one side only, besides params."""


def _side(side: Any, policy: Any, setting: dict[str, Any]) -> Mapping[str, Any]:
    """Return the report of one side, saved or made now, as plain data."""
    if isinstance(side, str | Path) and is_report(str(side)):
        return load_report(str(side))
    if isinstance(side, Report):
        report = side
    else:
        report = report_of(*asked(side, None, cast(Setting, setting)), policy=policy, largest=None)
    data: Mapping[str, Any] = json.loads(report.to_json())
    return data


def _side_name(side: Any) -> str:
    if isinstance(side, str):
        return side
    return side.spec if isinstance(side, Report) else source_of(side).name


def changed(a: Mapping[str, Any], b: Mapping[str, Any], *, names: tuple[str, str] = ("A", "B")) -> Diff:
    """Return what changed from report *a* to report *b*: reports as ``Report.to_json`` makes them."""
    steady = a["steady"], b["steady"]
    tensors = tuple(_changes(*({t["name"]: t for t in side["largest"]} for side in steady)))
    listed = [sum(int(t["nbytes"]) for t in side["largest"]) for side in steady]
    return Diff(
        a=names[0],
        b=names[1],
        steady=Change("peak", steady[0]["peak_bytes"], steady[1]["peak_bytes"]),
        first=Change("peak of step 1", a["first"]["peak_bytes"], b["first"]["peak_bytes"]),
        peaks=((steady[0]["peak_phase"], steady[0]["peak_op"]), (steady[1]["peak_phase"], steady[1]["peak_op"])),
        ops=(a["ops"], b["ops"]),
        phases=_pairs(*(side["phase_peak_bytes"] for side in steady)),
        roles=_pairs(*(side["by_role_at_peak"] for side in steady)),
        layers=tuple(change for change in _pairs(*(_by_layer(side["largest"]) for side in steady)) if change.bytes),
        tensors=tensors,
        unlisted=(steady[0]["peak_bytes"] - listed[0], steady[1]["peak_bytes"] - listed[1]),
    )


def _pairs(a: Mapping[str, int], b: Mapping[str, int]) -> tuple[Change, ...]:
    return tuple(Change(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]))


def _changes(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """Return the tensors that differ, the largest difference first."""
    changes = []
    for name in dict.fromkeys([*a, *b]):
        sizes = [side[name]["nbytes"] if name in side else None for side in (a, b)]
        if sizes[0] != sizes[1]:
            tensor = b.get(name) or a[name]
            changes.append(Change(name, sizes[0], sizes[1], tensor["role"], tensor["layer"]))
    return sorted(changes, key=lambda change: (-abs(change.bytes), change.name))


def _by_layer(tensors: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for tensor in tensors:
        part = str(tensor["layer"]).partition(".")[0]
        sums[part] = sums.get(part, 0) + int(tensor["nbytes"])
    return sums


def is_report(source: str) -> bool:
    """Whether the file *source* is a saved report.

    Raises:
        SpecError: it is a file that cannot be read.
    """
    path = Path(source)
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return REPORT.partition("/")[0].encode() in file.read(200)
    except OSError as error:
        raise SpecError(error.strerror or str(error), source) from None


def load_report(source: str) -> dict[str, Any]:
    """Return the saved report of a file.

    Raises:
        SpecError: it cannot be read, or is no report of this version.
    """
    text = read_text(source, MAX_FILE)
    try:
        data = parse_json(text)
    except ValueError as error:
        raise SpecError(f"not JSON: {error}", source) from None
    if not isinstance(data, dict) or data.get("schema") != REPORT:
        raise SpecError(f"not a report of this version ({REPORT}): save one with graphsim peak --json", source)
    problem = _malformed(data)
    if problem:
        raise SpecError(f"not a whole report: {problem}; save it anew with graphsim peak --json --largest 0", source)
    return data


def _malformed(data: Mapping[str, Any]) -> str:
    """Return what is wrong with a report, as far as a diff reads it; empty if nothing is."""
    if not _is_size(data.get("ops")):
        return "'ops' is no number"
    for step in ("first", "steady"):
        part = data.get(step)
        if not isinstance(part, dict):
            return f"'{step}' is missing"
        if not _is_size(part.get("peak_bytes")):
            return f"'{step}.peak_bytes' is no number of bytes"
        if not all(isinstance(part.get(key), str) for key in ("peak_phase", "peak_op")):
            return f"'{step}' does not say where the peak is"
        for key in ("phase_peak_bytes", "by_role_at_peak"):
            table = part.get(key)
            if not isinstance(table, dict) or not all(_is_size(size) for size in table.values()):
                return f"'{step}.{key}' is no table of bytes"
        tensors = part.get("largest")
        if not isinstance(tensors, list) or not all(_is_tensor(tensor) for tensor in tensors):
            return f"'{step}.largest' is no list of tensors"
    return ""


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_BYTES


def _is_tensor(value: Any) -> bool:
    texts = ("name", "role", "layer")
    return (
        isinstance(value, dict) and _is_size(value.get("nbytes")) and all(isinstance(value.get(t), str) for t in texts)
    )
