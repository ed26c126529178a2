"""Numbers that are not known without running the model, and what code may do with them.

An unknown number stays unknown through arithmetic and rounding. Where code asks for a decision, there is a
policy, not an accident:

- *checks pass*: a loss is finite (``math.isfinite``, ``numpy.isfinite``), no gradient overflows, the arguments
  of a distribution are valid (`Values` and `reads` say the same of tensors);
- *what is only logged never matters*: text shows ``nan``, and a statement that prints or counts may have a
  plain number, of which a warning tells;
- *the rest is an error* that names the user's line and the ways out. A line that is named in ``assume`` gets
  its number from there.
"""

from __future__ import annotations

import ast
import linecache
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from graphsim.errors import CaptureError

OURS = str(Path(__file__).parent)
SCHEDULES = str(torch.optim.lr_scheduler.__file__)

FRAMEWORK = (
    *(str(Path(module.__file__ or "").parent) for module in (torch, np)),
    OURS,
    "<",
)
"""How the paths of code begin that is PyTorch's, NumPy's or ours."""

LOGGING = frozenset(
    (
        "print",
        "log",
        "log_dict",
        "log_metrics",
        "info",
        "debug",
        "warning",
        "write",
        "append",
        "extend",
        "update",
        "add_scalar",
        "add_scalars",
        "set_postfix",
        "set_description",
    )
)
"""Names of functions that take numbers and decide nothing by them."""

HARMLESS = frozenset(("int", "float", "round", "abs", "min", "max", "sum", "str", "format"))
"""Names of functions that only compute with numbers."""


def user_frame() -> FrameType | None:
    """Return the innermost frame outside of PyTorch, NumPy and this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(FRAMEWORK):
        frame = frame.f_back
    return frame


def _in_schedule() -> bool:
    """True where a schedule of learning rates asks how training goes: its answer changes no memory."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename == SCHEDULES


def python_line() -> str:
    """Return ``file:line`` of `user_frame`."""
    frame = user_frame()
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Policy:
    """What is assumed of numbers that are not known, and a note of each that was taken.

    Args:
        assume: values by ``file.py:line``, the place that reads them.

    Attributes:
        layer, position: say where in the model and in the recording the step is.
        notes: for the warnings of every output.
        varies: why a step with other numbers may be another one, and the position at which that showed last.
    """

    def __init__(self, assume: Mapping[str, Any] | None = None) -> None:
        self.assume = dict(assume or {})
        self.layer: Callable[[], str] = str
        self.position: Callable[[], int] = int
        self.notes: dict[str, None] = {}
        self.varies: dict[str, int] = {}

    def note(self, text: str) -> None:
        """Keep a warning, once."""
        self.notes.setdefault(text)

    def vary(self, text: str, position: int | None = None) -> None:
        """Keep a reason why another step may go another way, which shows here, or at *position*."""
        self.varies[text] = self.position() if position is None else position

    def given(self) -> Any:
        """Return what the user gave for the line that is running, or None."""
        if not self.assume:
            return None
        line = python_line()
        value = next((value for place, value in self.assume.items() if _names(place, line)), None)
        if value is not None:
            self.vary(f"{line}: decides by a number, of which the value was assumed")
        return value

    def undecided(self, what: str = "code decides by a number of a tensor") -> CaptureError:
        """Return the error of a decision by something unknown, with the ways out."""
        line = python_line()
        place = f"{Path(line.rpartition(':')[0]).name}:{line.rpartition(':')[2]}" if line else "file.py:LINE"
        return CaptureError(
            f"{what}, which is not known without running the model: give its value (--assume {place}=VALUE, or "
            f"assume={{'{place}': VALUE}}), or take it out of the step",
            self.layer(),
            line,
        )

    def unread(self, what: str) -> CaptureError:
        """Return the error of values that leave PyTorch where nobody can answer for them."""
        reason = f"{what}: its values are not known without running the model; take that out of the step"
        return CaptureError(reason, self.layer(), python_line())

    def number(self) -> float:
        """Return a plain number for one that is unknown: the given one, or 1 where it is only logged.

        Raises:
            CaptureError: it may decide something.
        """
        given = self.given()
        if given is not None:
            return float(given)
        frame = user_frame()
        if _in_schedule():
            return 1.0
        if frame is None or not _only_logged(frame):
            raise self.undecided("a number of a tensor is read")
        self.note(f"{python_line()}: 1 stands for a number that is not known, in a statement that logs or counts")
        return 1.0


def _names(place: str, line: str) -> bool:
    return line == place or line.endswith(f"/{place}")


def _only_logged(frame: FrameType) -> bool:
    """True if what *frame* evaluates goes into a call of one of `LOGGING`, or into a count, by way of `HARMLESS`."""
    place = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    return None not in place and _is_logged(frame.f_code.co_filename, place)


@lru_cache(maxsize=256)
def _is_logged(path: str, place: tuple[int | None, ...]) -> bool:
    try:
        tree = ast.parse("".join(linecache.getlines(path)))
    except SyntaxError:
        return False
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    node: ast.AST | None = next((n for n in parents if isinstance(n, ast.expr) and _span(n) == place), None)
    while node is not None and (parent := parents.get(node)) is not None:
        if isinstance(parent, ast.AugAssign):
            return node is parent.value and isinstance(parent.op, ast.Add)
        if isinstance(parent, ast.Call) and node is not parent.func and _called(parent) in LOGGING:
            return isinstance(parents.get(parent), ast.Expr)
        if not _passes_on(parent, node):
            return False
        node = parent
    return False


def _span(node: ast.expr) -> tuple[int | None, ...]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _passes_on(parent: ast.AST, node: ast.AST) -> bool:
    """True if *parent* computes with the value of *node* or holds it, and chooses nothing by it."""
    if isinstance(parent, ast.Call):
        return node is not parent.func and _called(parent) in HARMLESS
    if isinstance(parent, ast.IfExp):
        return node is not parent.test
    return isinstance(
        parent,
        ast.BinOp | ast.UnaryOp | ast.keyword | ast.Starred | ast.FormattedValue | ast.JoinedStr
        | ast.List | ast.Tuple | ast.Dict | ast.Set,
    )  # fmt: skip


class Unknown(float):
    """A number read from a tensor without known values: stays unknown, decides nothing, prints as ``nan``."""

    policy: Policy

    def __new__(cls, policy: Policy) -> Unknown:
        """Make one; *policy* answers for it."""
        self = super().__new__(cls, 1.0)  # what C code sees that asks no method: finite, so checks pass
        self.policy = policy
        return self

    def _same(self, *operands: Any, **_: Any) -> Any:
        if any(isinstance(operand, torch.Tensor | np.ndarray) for operand in operands):
            return NotImplemented
        return Unknown(self.policy)

    def _pair(self, *operands: Any) -> Any:
        return Unknown(self.policy), Unknown(self.policy)

    def _decide(self, *_: object) -> Any:
        given = self.policy.given()
        if given is not None:
            return given
        raise self.policy.undecided()

    def __bool__(self) -> bool:
        return bool(self._decide())

    def __float__(self) -> float:
        return self.policy.number()

    def __int__(self) -> int:
        return int(self.policy.number())

    def __index__(self) -> int:
        return int(self._decide())

    def _text(self, *_: object) -> str:
        return "nan"

    def __format__(self, spec: str) -> str:
        return format(math.nan, spec.rstrip("dxXobc,"))

    def __array_ufunc__(self, ufunc: Any, *_: Any, **__: Any) -> Any:
        return {np.isfinite: True, np.isnan: False, np.isinf: False}.get(ufunc, Unknown(self.policy))

    def is_integer(self) -> bool:
        """Ask for a decision."""
        return bool(self._decide())

    def __reduce__(self) -> Any:
        return float, (math.nan,)

    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _decide
    __hash__ = float.__hash__
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _same
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _same
    __neg__ = __pos__ = __abs__ = __round__ = __floor__ = __ceil__ = __trunc__ = conjugate = _same
    __divmod__ = __rdivmod__ = as_integer_ratio = _pair
    __str__ = __repr__ = hex = _text


_CHECKS = {"isfinite": True, "isnan": False, "isinf": False}


@contextmanager
def unknown_to_math() -> Iterator[None]:
    """Let the functions of `math` keep unknown numbers unknown, and answer that they are finite."""

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*operands: Any, **options: Any) -> Any:
            unknown = next((value for value in operands if isinstance(value, Unknown)), None)
            if unknown is None:
                return original(*operands, **options)
            return _CHECKS.get(name, Unknown(unknown.policy))

        return call

    with ExitStack() as stack:
        for name, function in list(vars(math).items()):
            if callable(function) and not name.startswith("_"):
                stack.enter_context(patch.object(math, name, wrapped(name, function)))
        yield
