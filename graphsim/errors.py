"""The error tree. Every message says what is wrong, where, and what would be right.

GraphSimError
├─ SpecError            a spec is wrong: file, layer path, reason
├─ CaptureError         a PyTorch step cannot be captured: module, line, reason
├─ UsageError           an option of a call or a command is wrong
├─ GraphError           not a DAG, a tensor read before it is written, or written twice
├─ ScheduleError        an op runs before its inputs exist, or reads a mutated value
├─ LayoutError          two live blocks share bytes
├─ InfeasibleError      no schedule fits the budget
├─ OutOfMemoryError     an allocator passed its limit
├─ SolverError          the process of a solver ended, or does not answer
├─ UnknownNameError     no such plug-in, optimizer, op, ... (also a LookupError)
└─ MissingExtraError    an optional dependency is not installed (also an ImportError)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

DISTRIBUTION = "graphsim-memory"
"""What pip calls this package: ``graphsim`` on PyPI is a project of others."""


class GraphSimError(Exception):
    """Base of all errors that graphsim raises for a wrong input."""


class SpecError(GraphSimError):
    """A spec file is wrong; ``where`` is the file and the path of the layer."""

    def __init__(self, reason: str, where: str = "") -> None:
        self.reason = printable(reason, keep="")
        self.where = printable(where, keep="")
        super().__init__(f"{self.where}: {self.reason}" if where else self.reason)


class CaptureError(GraphSimError):
    """A PyTorch step cannot run without data; ``layer`` is the module, ``line`` the place in the code."""

    def __init__(self, reason: str, layer: str = "", line: str = "") -> None:
        self.reason = printable(reason, keep="")
        self.layer = printable(layer, keep="")
        self.line = printable(line, keep="")
        where = [f"module '{self.layer}'"] if layer else []
        where += [self.line] if line else []
        super().__init__(f"{', '.join(where)}: {self.reason}" if where else self.reason)


class UsageError(GraphSimError):
    """An option has a value that cannot be used."""


class GraphError(GraphSimError):
    """Ops and tensors do not form a valid graph."""


class ScheduleError(GraphSimError):
    """A schedule does not respect the graph."""


class LayoutError(GraphSimError):
    """Two blocks that are live at the same time share bytes, or a block has no place."""


class InfeasibleError(GraphSimError):
    """No schedule fits the budget."""

    def __init__(self, message: str, *, budget: int, memory_bound: int) -> None:
        self.budget = budget
        self.memory_bound = memory_bound
        super().__init__(message)


class OutOfMemoryError(GraphSimError):
    """An allocator passed its limit."""

    def __init__(self, message: str, *, requested: int, reserved: int, limit: int | None, event: int) -> None:
        self.requested = requested
        self.reserved = reserved
        self.limit = limit
        self.event = event
        super().__init__(message)


def out_of_memory(event: int, requested: int, in_use: int, limit: int | None = None) -> OutOfMemoryError:
    """Return the error of a request, event *event* of a trace, for more bytes than there are."""
    within = f" within {limit:,}" if limit is not None else ""
    return OutOfMemoryError(
        f"out of memory at event {event}: {requested:,} bytes more do not fit beside {in_use:,}{within}",
        requested=requested,
        reserved=in_use,
        limit=limit,
        event=event,
    )


class SolverError(GraphSimError):
    """The process of a solver ended without an answer, or does not answer in time."""


class UnknownNameError(GraphSimError, LookupError):
    """A name is not in its table; the message lists the close ones, or all."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        self.what = what
        self.name = name
        super().__init__(f"unknown {what} '{_shorten(printable(name, keep=''))}'; {suggest(name, known)}")

    def __str__(self) -> str:  # LookupError would otherwise show the repr of a key
        return str(self.args[0])


class MissingExtraError(GraphSimError, ImportError):
    """An optional dependency is missing."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs {module}: pip install '{DISTRIBUTION}[{extra}]'")


_LISTED = 30


def suggest(name: str, known: Iterable[str]) -> str:
    """Return 'did you mean ...' for close names, else the list of known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.6)
    if close:
        *others, last = (f"'{word}'" for word in close)
        return "did you mean " + (f"{', '.join(others)} or {last}" if others else last) + "?"
    shown = ", ".join(names[:_LISTED]) if names else "none"
    return f"known: {shown}" + (f", ... ({len(names)} in all)" if len(names) > _LISTED else "")


_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]P^_X]|[\x9d\x90\x9e\x9f\x98])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC and its kin: titles, links
    r"|\x1b[ -/]*[0-~]"  # other escapes
)
"""Terminal escapes of ECMA-48, with one or two bytes of introduction."""
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def printable(text: str, *, keep: str = "\n\t", colors: bool = False) -> str:
    """Return *text* as a terminal may show it: names come from strangers' files.

    Escape sequences, other control characters, what reverses the direction of writing, and lone surrogates become
    ``?``, but for the characters *keep* and, with *colors*, what sets colours.
    """
    if text.isascii() and text.isprintable():
        return text
    if colors:
        parts, shades = _COLORS.split(text), _COLORS.findall(text)
        return "".join(printable(part, keep=keep) + shade for part, shade in zip(parts, [*shades, ""], strict=True))
    return "".join(letter if letter.isprintable() or letter in keep else "?" for letter in _SEQUENCES.sub("?", text))


def preformatted(text: str) -> str:
    """Return *text* as HTML that a notebook shows line by line."""
    from html import escape

    return f"<pre>{escape(text)}</pre>"


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
