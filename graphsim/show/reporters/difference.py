"""What changed between two steps, for people at a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from rich.text import Text

from graphsim.answers.diff import Change, Diff
from graphsim.display import NARROW
from graphsim.units import format_bytes


def diff_text(
    diff: Diff,
    *,
    tolerance: str = "0",
    budget: int | None = None,
    rows: int | None = 20,
    width: int = 100,
    color: bool = False,
) -> str:
    """Return *diff* as text: the peaks, where they are, by role, by layer, and the tensors that changed most."""
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=color, no_color=not color, highlight=False)
    console.print(Text.assemble(("A  ", "bold"), diff.a), Text.assemble(("B  ", "bold"), diff.b), sep="\n")
    if diff.same:
        console.print("\nNo change.")
    else:
        _print(console, "", [diff.steady, diff.first])
        _print_move(console, diff)
        _print(console, "Live at the peak, by role", [change for change in diff.roles if change.a or change.b])
        _print(console, "By layer", sorted(diff.layers, key=lambda change: -abs(change.bytes))[:rows])
        shown = diff.tensors[:rows]
        _print(console, f"Tensors that changed: {len(diff.tensors):,}", shown)
        if len(shown) < len(diff.tensors):
            console.print(f"  and {len(diff.tensors) - len(shown):,} more: --rows 0")
    if any(diff.unlisted):
        a, b = (format_bytes(size) for size in diff.unlisted)
        console.print(f"\nNot listed by tensor in the reports: {a} of A, {b} of B (save with --largest 0).")
    _print_verdict(console, diff, tolerance, budget)
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())


def _print(console: Console, title: str, changes: list[Change] | tuple[Change, ...]) -> None:
    if not changes:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    table.add_column(title)
    columns = ("A", "B", "change", "") if console.width >= NARROW else ("B", "change")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for change in changes:
        style = "red" if change.bytes > 0 else "green" if change.bytes < 0 else ""
        share = f"{change.bytes / change.a:+.1%}" if change.a and change.b is not None and change.bytes else ""
        cells = {"A": _size(change.a), "B": _size(change.b), "change": _signed(change.bytes), "": share}
        name = Text(change.name or "(no layer)", overflow="fold")
        table.add_row(name, *(Text(cells[column], style="" if column in ("A", "B") else style) for column in columns))
    console.print()
    console.print(table)


def _print_move(console: Console, diff: Diff) -> None:
    (phase_a, op_a), (phase_b, op_b) = diff.peaks
    if diff.peaks[0] != diff.peaks[1]:
        console.print(f"\nThe peak moves from {phase_a} ({op_a}) to {phase_b} ({op_b}).")
    if diff.ops[0] != diff.ops[1]:
        console.print(f"{diff.ops[0]:,} ops in A, {diff.ops[1]:,} in B.")


def _print_verdict(console: Console, diff: Diff, tolerance: str, budget: int | None) -> None:
    if diff.exceeds(tolerance):
        allowed = f", more than {tolerance}" if tolerance not in ("", "0") else ""
        console.print(f"\nB needs {format_bytes(diff.grown)} more{allowed}.", style="bold red")
    peak = max(diff.steady.b or 0, diff.first.b or 0)
    if budget is not None:
        above = peak > budget
        text = f"\nB's peak of {format_bytes(peak)} is {'above' if above else 'within'} {format_bytes(budget)}."
        console.print(text, style="bold red" if above else "")


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_bytes(nbytes)


def _signed(nbytes: int) -> str:
    return "0" if not nbytes else ("+" if nbytes > 0 else "-") + format_bytes(abs(nbytes))
