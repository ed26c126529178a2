"""What all commands share: options, the params of a spec, tables."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Annotated, Any

import typer

from graphsim.errors import UsageError
from graphsim.frontends.expression import Value

Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set a param of the spec.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def overrides_of(settings: list[str] | None, **named: int | None) -> dict[str, Value]:
    """Return the params that the command line sets."""
    overrides: dict[str, Value] = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {setting[:60]!r}: write NAME=VALUE, for example --set layers=24")
        if name.strip() in overrides:
            raise UsageError(f"--set {name.strip()[:60]} stands twice")
        overrides[name.strip()] = _value(text.strip())
    for name, value in named.items():
        if value is not None:
            if name in overrides:
                raise UsageError(f"--{name} and --set {name}=... both set '{name}'")
            overrides[name] = value
    return overrides


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def print_table(header: tuple[str, ...], rows: list[Any]) -> None:
    """Print *rows* under *header*, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(width=width(), highlight=False).print(table)


def width() -> int:
    """Return the columns of the terminal, within reason."""
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))


def color() -> bool:
    """Whether standard output shows colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
