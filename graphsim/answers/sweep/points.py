"""Points of a sweep, and grids of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from graphsim.errors import UsageError
from graphsim.sources.spec.expression import Value
from graphsim.step.ops.tape import parse_target
from graphsim.step.training import Training, parse_mode

MAX_POINTS = 100_000

Settings = Mapping[str, Value]
"""Options of a `Point` by name; any other name is a param of the spec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting: a model and what is asked of it. Empty text: not asked.

    Attributes:
        source: a spec file, the name of a shipped spec, or ``torch:package.module:function``.
        params: what is set of the spec's params, ``batch`` and ``seq`` among them: names and values.
        gpu: a device of the catalogue, for whose rules the step is made: does it fit, how long does it take.
        strategy: chooses the schedule, within *budget* (``8GiB`` or ``0.8x``) if there is one.
        allocator: whose reservation is asked for, with *allocator_options*.

    The others are those of `Training` and of `report.peak`.
    """

    source: str
    params: tuple[tuple[str, Value], ...] = ()
    precision: str = "fp32"
    optimizer: str = "adamw"
    optimizer_impl: str = ""
    accumulation: int = 1
    mode: str = "train"
    target: str = "cuda"
    policy: str = "eager"
    strategy: str = "none"
    budget: str = ""
    gpu: str = ""
    allocator: str = ""
    allocator_options: str = ""

    def training(self) -> Training:
        """Return how the model is trained.

        Raises:
            UnknownNameError, UsageError: an option is wrong.
        """
        return Training(
            optimizer=self.optimizer,
            optimizer_impl=self.optimizer_impl,
            precision=self.precision,
            target=parse_target(self.target),
            device=self.gpu,
            mode=parse_mode(self.mode),
            accumulation=self.accumulation,
        )

    def settings(self) -> dict[str, Any]:
        """Return source, params and options in one table."""
        options = {name: getattr(self, name) for name in OPTIONS if name != "source"}
        return {"source": self.source, "batch": None, "seq": None, **dict(self.params), **options}


OPTIONS = tuple(field.name for field in fields(Point) if field.name != "params")
"""Names that are not params."""


def grid(axes: Sequence[Sequence[Settings]]) -> list[Point]:
    """Return the points of the product of *axes*, the last fastest; each point once.

    Args:
        axes: each a sequence of settings; a point takes one of each axis.

    Raises:
        UsageError: there are too many points, or none, or two axes set the same, or an option has the wrong type.
    """
    size = math.prod(len(axis) for axis in axes)
    if size > MAX_POINTS:
        raise UsageError(f"{size:,} points are too many for one sweep (at most {MAX_POINTS:,})")
    seen: set[str] = set()
    for axis in axes:
        names = {name for settings in axis for name in settings}
        if twice := sorted(seen & names):
            raise UsageError(f"'{twice[0][:60]}' is set twice, by two options or by an option and the list")
        seen |= names
    points = dict.fromkeys(_point(_merged(chosen)) for chosen in itertools.product(*axes))
    if not points:
        raise UsageError("a sweep of no points: name at least one model")
    return list(points)


def _merged(chosen: Sequence[Settings]) -> dict[str, Value]:
    return {name: value for settings in chosen for name, value in settings.items()}


def _point(settings: Settings) -> Point:
    options: dict[str, Any] = {name: value for name, value in settings.items() if name in OPTIONS}
    if not options.get("source"):
        raise UsageError("a point without a model: name a source on the command line or in the list")
    for name, value in options.items():
        kind = int if name == "accumulation" else str
        if type(value) is not kind:
            raise UsageError(f"{name} is {'a whole number' if kind is int else 'text'}, not {str(value)[:40]!r}")
    return Point(params=tuple((name, value) for name, value in settings.items() if name not in OPTIONS), **options)
