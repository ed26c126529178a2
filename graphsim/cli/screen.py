"""What a person sees: text as wide as the terminal, colours and progress only where one is, ASCII where it must be."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn, TextIO

import typer

from graphsim.display import REPORTERS, Answer
from graphsim.errors import UsageError, printable

INTERRUPTED = 130
"""The exit code after Ctrl-C, as of a shell: 128 and the number of SIGINT."""

_PLAIN = str.maketrans("█▇▆▅▄▃▂▁▼│┊└─╰·…µ", "#######.v||`-`..u")
"""Stand-ins for a terminal that cannot print bars and lines."""


def say(text: str) -> None:
    """Write *text* to standard output, without escapes but colours, in ASCII where its encoding cannot hold it."""
    stream = _standard_output()
    text = printable(text, colors=color())
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(stream.encoding, "replace").decode(stream.encoding)
    with _reported():
        stream.write(text)
        stream.flush()


def _standard_output() -> TextIO:
    if sys.stdout is None:
        raise UsageError("standard output is closed: there is nowhere to write the answer")
    return sys.stdout


@contextmanager
def _reported() -> Iterator[None]:
    """Say in one line why standard output cannot be written, and write no more to it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise UsageError(f"standard output: {error.strerror}") from None


def tell(text: str) -> None:
    """Write a line beside the answer, to standard error."""
    encoding, text = sys.stderr.encoding or "utf-8", printable(text)
    sys.stderr.write(text.encode(encoding, "replace").decode(encoding) + "\n")


def show(answer: Answer, as_json: bool, reporter: str = "") -> None:
    """Write *answer* as text, as JSON, or as the *reporter* of that name renders it.

    Raises:
        UnknownNameError: there is no such reporter.
    """
    name = reporter or ("json" if as_json else "text")
    rendered = REPORTERS[name](**({"width": width(), "color": color()} if name == "text" else {}))(answer)
    if isinstance(rendered, bytes):
        stream = _standard_output()
        with _reported():
            stream.flush()
            stream.buffer.write(rendered)
            stream.buffer.flush()
    else:
        say(rendered)


def end(yes: bool) -> None:
    """Leave with exit code 1 if the answer is no."""
    if not yes:
        raise typer.Exit(1)


def print_table(header: tuple[str, ...], rows: Sequence[Sequence[Any]]) -> None:
    """Print *rows* under *header*, as wide as the terminal."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    stream = StringIO()
    Console(file=stream, width=width(), highlight=False, force_terminal=color()).print(table)
    say("\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n")


def width() -> int:
    """Return the columns of the terminal, within reason."""
    return max(40, min(120, shutil.get_terminal_size((100, 24)).columns))


def color() -> bool:
    """Whether standard output shows colours: a terminal that is not dumb, NO_COLOR and FORCE_COLOR heeded."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    return console.color_system is not None and not console.no_color


def working(text: str) -> AbstractContextManager[Any]:
    """Show on a terminal that something takes time."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def progress() -> Callable[[str], None] | None:
    """Return what shows one line of progress on a terminal; None where there is none."""

    def line(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text[: width() - 1]}" + ("\n" if text.startswith("skipped") else ""))
        sys.stderr.flush()

    return line if sys.stderr.isatty() else None


def clear() -> None:
    """Take the line of progress away."""
    if line := progress():
        line("")


def interrupted(text: str) -> NoReturn:
    """Leave after Ctrl-C, saying what there is."""
    tell(text)
    raise typer.Exit(130)
