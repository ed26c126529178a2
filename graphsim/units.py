"""Bytes, dtypes and costs, to and from text. Numbers elsewhere are plain integers of bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from graphsim.errors import UnknownNameError, UsageError

ITEMSIZE: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8": 1,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}
"""Bytes of one element, by dtype name (PyTorch's names without the ``torch.`` prefix)."""

SHORT_NAMES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float8": "fp8"}
"""What people call floating dtypes."""

FLOATING = frozenset({"float8", "float16", "bfloat16", "float32", "float64"})

_NUMBER = r"\d{1,18}(?:\.\d{1,18})?"
_SIZE = re.compile(rf"({_NUMBER})\s*(?:([KMGT])(i?))?(B?)", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(rf"({_NUMBER})\s*([x%])", re.IGNORECASE | re.ASCII)
_BARE = 2**20
"""A budget of fewer bytes without a unit is taken for a slip: no model trains in it."""


def itemsize(dtype: str) -> int:
    """Return the bytes of one element of *dtype*."""
    try:
        return ITEMSIZE[dtype]
    except KeyError:
        raise UnknownNameError("dtype", dtype, ITEMSIZE) from None


def format_bytes(nbytes: int) -> str:
    """Return *nbytes* in the largest binary unit that keeps three digits: ``1.25 GiB``."""
    size = abs(nbytes)
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            value = nbytes / scale
            return f"{value:,.{2 if abs(value) < 100 else 1}f} {unit}"
    return f"{nbytes:,} B"


def parse_bytes(text: str) -> int:
    """Return the bytes named by *text*: ``8GiB``, ``8GB`` (decimal), ``512M`` (binary), ``4096``."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"'{text[:80]}' is not a size; write for example 8GiB, 512MiB or 1000000")
    number, prefix, binary, unit = match.groups()
    power = "KMGT".index(prefix.upper()) + 1 if prefix else 0
    scale = (1000 if unit and not binary else 1024) ** power
    return int(Fraction(number) * scale)


def parse_share(text: str) -> Fraction | None:
    """Return the share named by *text*, ``0.6x`` or ``60 %``; None if it names none."""
    match = _SHARE.fullmatch(text.strip())
    return Fraction(match[1]) / (100 if match[2] == "%" else 1) if match else None


def parse_budget(text: str, reference: Callable[[], int] | int | None = None) -> int:
    """Return the bytes of a budget: ``8GiB``, ``512MiB``, or ``0.6x`` and ``60%``, a share of *reference* bytes.

    *reference* may be a function, which is called only for a share.

    Raises:
        UsageError: it is none of these, a share of nothing, less than one byte, or a small number without a unit.
    """
    share = parse_share(text)
    if share is None:
        budget = parse_bytes(text)
        if text.strip().isdecimal() and 0 < budget < _BARE:
            raise UsageError(
                f"{budget} bytes? write {budget}{'GiB' if budget < 1024 else 'MiB'}, or {budget}B for bytes"
            )
    elif reference is None:
        raise UsageError(f"'{text[:40]}' is a share, but of nothing that is known here; write a size, for example 8GiB")
    else:
        budget = int(share * (reference() if callable(reference) else reference))
    if budget < 1:
        raise UsageError(f"a budget is at least one byte, not '{text[:40]}'")
    return budget


def as_budget(budget: str | int, reference: Callable[[], int] | int | None = None) -> int:
    """Return a budget given as a number of bytes or as text, see `parse_budget`.

    Raises:
        UsageError: it is less than one byte, or no budget.
    """
    if isinstance(budget, str):
        return parse_budget(budget, reference)
    if budget < 1:
        raise UsageError(f"a budget is at least one byte, not {budget}")
    return budget


def format_count(count: int) -> str:
    """Return a count in words people use: ``124.4 M``."""
    for unit, scale in ((" T", 10**12), (" G", 10**9), (" M", 10**6), (" k", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f}{unit}"
    return str(count)


def format_number(number: float) -> str:
    """Return a number in few digits, however large: ``50001``, ``9.9e+31``."""
    if isinstance(number, int) and abs(number) < 10**12:
        return str(number)
    try:
        return f"{number:.3g}"
    except OverflowError:
        return "more than 1e308"


def format_cost(cost: float, unit: str) -> str:
    """Return a cost in *unit* (see `simulation.cost_unit`): ``12.3 ms``, ``4.56 TFLOP``, ``1,234`` of anything else."""
    if unit == "seconds":
        return _scaled(cost, (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)))
    if unit == "flops":
        return _scaled(cost, (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("FLOP", 1.0)))
    return f"{cost:,.0f}" if cost == round(cost) or cost >= 1e6 else f"{cost:,.6g}"


def _scaled(number: float, units: Sequence[tuple[str, float]]) -> str:
    """Return *number* with three digits in the largest of *units* of which there is one, else in the last."""
    unit, scale = next((entry for entry in units if number >= entry[1]), units[-1])
    value = number / scale
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
