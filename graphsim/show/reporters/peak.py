"""The report as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import StringIO
from itertools import pairwise
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text as Styled

from graphsim.answers.folk import FORMULAS
from graphsim.answers.peak import Report, StepReport
from graphsim.answers.reservation import BEFORE, HISTORY
from graphsim.answers.unknown import Unknown
from graphsim.core.graph import Phase
from graphsim.core.simulation import Part
from graphsim.display import NARROW, words
from graphsim.show.reporters.fit import unknown_line
from graphsim.units import format_bytes, format_count

_ROLE_STYLE: dict[str, str] = {
    Part.PARAMETERS: "blue",
    Part.GRADIENTS: "cyan",
    Part.OPTIMIZER_STATE: "magenta",
    Part.SAVED_ACTIVATIONS: "yellow",
    Part.TRANSIENT_ACTIVATIONS: "bright_yellow",
    Part.WORKSPACE: "red",
    Part.INPUTS: "green",
    Part.BUFFERS: "bright_black",
}
_PHASE_STYLE: dict[str, str] = {
    Phase.FORWARD: "green",
    Phase.BACKWARD: "yellow",
    Phase.RECOMPUTE: "red",
    Phase.OPTIMIZER: "magenta",
}
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 6


def report_text(report: Report, *, width: int = 100, color: bool = False) -> str:
    """Return *report* as text of *width* characters; *color* writes terminal colours."""
    stream = StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        legacy_windows=False,
    )
    console.print(_page(report, width))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _page(report: Report, width: int) -> RenderableType:
    parts: list[RenderableType] = [_headline(report), ""]
    if report.ranks:
        parts += [_ranks(report), ""]
    parts += [_roles(report.steady, width), ""]
    if report.steady.largest and report.steady.peak_bytes:
        parts += [_largest(report.steady, width), "", _timeline(report.steady, width), ""]
    if report.mode == "train" and report.folk and report.steady.peak_bytes:
        parts += [_folk(report), ""]
    parts.append(_advice(report) if report.steady.peak_bytes else Styled("Nothing is live: the peak is zero.", "bold"))
    return Group(*parts)


def _setting(report: Report) -> list[str]:
    """Return what was asked, in words; of a step that stands as it is, only what is known of it."""
    said = [report.spec]
    if report.kind == "step" and not report.optimizer:
        return [*said, "a graph as it stands", f"{report.policy} release"]
    params = {name: value for name, value in report.provenance["params"].items() if name != "batch"}
    said.append(f"batch {report.batch}")
    if report.kind == "capture":
        said += [f"{name} {value}" for name, value in params.items()]
    if report.mode == "train":
        form = f" ({report.optimizer_impl})" if report.optimizer_impl else ""
        said.append(f"{report.optimizer}{form}" if report.optimizer else "no optimizer")
    said += [report.precision, report.target, f"{report.policy} release"]
    if report.mode != "train":
        said.append(report.mode)
    if report.rank is not None:
        said.append(f"rank {report.rank} of {report.provenance['training']['gpus']}")
    return [word for word in said if word]


def _where(out_of_memory: str) -> str:
    return out_of_memory if out_of_memory in ("before the step", "in step 1", BEFORE) else f"at {out_of_memory}"


def _by(short: int | None) -> str:
    return "" if short is None else f", which asks for {format_bytes(short)} ({short:,} bytes) too much"


def _headline(report: Report) -> RenderableType:
    step = report.steady
    lines = Styled(" · ".join(_setting(report)), "dim")
    lines.append("\n\n")
    lines.append(f"Peak memory of a training step: {format_bytes(step.peak_bytes)}", "bold")
    lines.append(f"  ({step.peak_bytes:,} bytes)\n", "dim")
    if step.peak_op:
        lines.append(f"  reached in {step.peak_phase}, by {step.peak_op}\n")
    if report.mode == "train" and report.optimizer:
        first = report.first
        where = f" in {first.peak_phase}" if first.peak_phase else ""
        lines.append(f"  step 1, which creates the optimizer states: {format_bytes(first.peak_bytes)}{where}\n")
    if step.out_of_memory:
        lines.append(
            f"  does not fit: the {report.allocator} allocator ({report.allocator_options}) "
            f"runs out of memory {_where(step.out_of_memory)}{_by(step.out_of_memory_bytes)}\n",
            "bold red",
        )
    if step.reserved_peak_bytes is not None:
        lines.append(
            f"  reserved by the {report.allocator} allocator: {format_bytes(step.reserved_peak_bytes)}, "
            f"of which {step.fragmentation:.1%} never in use\n"
        )
    if report.after:
        lines.append(f"  after {', then '.join(report.after)} in the same process\n")
    elif report.allocator == "torch":
        lines.append(f"  {HISTORY}: --after\n")
    peaks = ", ".join(f"{phase} {format_bytes(size)}" for phase, size in step.phase_peak_bytes.items())
    if peaks:
        lines.append(f"  peak of each phase: {peaks}\n")
    for unknown in _shown(report):
        lines.append(f"{unknown_line(unknown)}\n")
    counted = "" if report.activations is None else f"{format_count(report.activations)} activations per sample, "
    parameters = f"{report.parameters:,} parameters ({format_bytes(report.parameter_bytes)})"
    lines.append(f"  {parameters}, {counted}{report.ops:,} ops")
    return _said(report, lines)


def _said(report: Report, lines: Styled) -> Styled:
    """Add to *lines* how the model was wrapped, and the warnings."""
    for choice in report.parallel:
        lines.append(f"\n  {choice}")
    for warning in report.warnings:
        lines.append(f"\n  warning: {warning}", "yellow")
    return lines


def _shown(report: Report) -> Iterator[Unknown]:
    """Yield what is to be said of the unknown: all where a card or PyTorch's allocator was asked for."""
    card = report.allocator == "torch" or report.provenance["training"]["device"]
    yield from (one for one in report.unknown if one.inside or card)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _ranks(report: Report) -> RenderableType:
    table = _table("Ranks, worst first")
    table.add_column("rank", header_style="dim")
    table.add_column("peak", justify="right", header_style="dim")
    table.add_column("step 1", justify="right", header_style="dim")
    table.add_column("sent per step", header_style="dim")
    for row in report.ranks:
        parts = ", ".join(f"{words(kind)} {format_bytes(size)}" for kind, size in row.sent.items())
        sent = f"{format_bytes(row.sent_bytes)}: {parts}" if parts else "nothing"
        numbers = ", ".join(map(str, row.ranks))
        table.add_row(numbers, format_bytes(row.peak_bytes), format_bytes(row.first_peak_bytes), sent)
    return Padding(table, (0, 0, 0, 2))


def _roles(step: StepReport, width: int) -> RenderableType:
    table = _table("Live at the peak")
    columns: dict[str, Literal["left", "right"]] = {"role": "left", "bytes": "right", "share": "right", "": "left"}
    for name, justify in columns.items():
        table.add_column(name, justify=justify, header_style="dim", no_wrap=name != "role")
    longest = max(6, min(30, width - 48))
    for role, size in sorted(step.by_role_at_peak.items(), key=lambda item: -item[1]):
        if size:
            share = size / step.peak_bytes
            bar = "█" * max(1, round(share * longest))
            table.add_row(words(role), format_bytes(size), f"{share:.1%}", Styled(bar, _ROLE_STYLE.get(role, "")))
    return Padding(table, (0, 0, 0, 2))


def _largest(step: StepReport, width: int) -> RenderableType:
    table = _table("Largest live tensors at the peak")
    table.add_column("bytes", justify="right", header_style="dim", no_wrap=True)
    wide = width >= NARROW  # else roles take two lines, so that numbers and names stay whole
    names = max(20, width - 50) if wide else width - 28
    table.add_column("tensor", header_style="dim", overflow="ellipsis", no_wrap=True, max_width=names)
    table.add_column("role", header_style="dim", no_wrap=wide)
    for tensor in step.largest[:8]:
        name = tensor.name if tensor.name != "workspace" else f"workspace of {tensor.op}"
        style = _ROLE_STYLE.get(tensor.role, "")
        table.add_row(format_bytes(tensor.nbytes), name, Styled(words(tensor.role), style))
    return Padding(table, (0, 0, 0, 2))


def _timeline(step: StepReport, width: int) -> RenderableType:
    """A bar chart of live bytes over the ops of the step, coloured by phase, the peak marked."""
    columns = min(len(step.timeline), max(20, width - 16))
    bounds = [round(i * len(step.timeline) / columns) for i in range(columns + 1)]
    pairs = list(pairwise(bounds))
    heights = [max(step.timeline[low:high]) for low, high in pairs]
    phases = [step.timeline_phase[low] for low, _ in pairs]
    top = max(heights)
    peak_at = heights.index(top)
    chart = Styled("Live bytes over one step\n", "bold")
    chart.append(" " * (12 + peak_at) + "▼ peak\n" if peak_at + 6 < columns else " " * (7 + peak_at) + "peak ▼\n")
    for row in range(_HEIGHT, 0, -1):
        label = format_bytes(top) if row == _HEIGHT else ""
        chart.append(f"{label:>11} ", "dim")
        for height, phase in zip(heights, phases, strict=True):
            eighths = round(height / top * _HEIGHT * 8) - (row - 1) * 8
            chart.append(_EIGHTHS[max(0, min(8, eighths))], _PHASE_STYLE[phase])
        chart.append("\n")
    chart.append(" " * 12)
    start = 0
    for i in range(1, columns + 1):
        if i == columns or phases[i] != phases[start]:
            room = i - start
            label = phases[start] if len(phases[start]) + 2 <= room else phases[start][: max(0, room - 1)]
            chart.append(("╰" + label.center(room - 1, "─"))[:room], _PHASE_STYLE[phases[start]])
            start = i
    return Padding(chart, (0, 0, 0, 2))


def _folk(report: Report) -> RenderableType:
    table = _table("What the folk formulas say")
    columns: dict[str, Literal["left", "right"]] = {"formula": "left", "bytes": "right", "error": "right"}
    for name, justify in columns.items():
        table.add_column(name, justify=justify, header_style="dim")
    for name, size in report.folk.items():
        text = (FORMULAS[name].__doc__ or name).partition(" (")[0].rstrip(".:").partition(":")[0]
        error = size / report.steady.peak_bytes - 1
        table.add_row(text, format_bytes(size), f"{error:+.0%}")
    return Padding(table, (0, 0, 0, 2))


def _advice(report: Report) -> RenderableType:
    text = Styled("What would reduce it most: ", "bold")
    text.append(advice(report.steady.by_role_at_peak, report.mode), "")
    return text


def advice(roles: Mapping[str, int], mode: str) -> str:
    """Return what would reduce a peak of these *roles* most, in a step of this *mode*."""
    role = max(roles, key=lambda name: roles[name])
    share = roles[role] / max(1, sum(roles.values()))
    remedy = _REMEDY[role]
    if role == Part.PARAMETERS and mode == "train" and roles[Part.OPTIMIZER_STATE]:
        remedy = _REMEDY[Part.OPTIMIZER_STATE]
    return f"{role.replace('_', ' ')} are {share:.0%} of the peak; {remedy}"


_REMEDY: dict[str, str] = {
    Part.PARAMETERS: "hold them in a 16-bit format (--precision bf16).",
    Part.GRADIENTS: "hold them in a 16-bit format (--precision bf16), or let the optimizer consume them in backward.",
    Part.OPTIMIZER_STATE: "a lighter optimizer (--optimizer adam8bit, lion or adafactor) shrinks the states.",
    Part.SAVED_ACTIVATIONS: "they grow with the batch: a smaller --batch with --accumulation, --precision amp-bf16, or "
    "checkpointing the blocks.",
    Part.TRANSIENT_ACTIVATIONS: "they grow with the batch: a smaller --batch with --accumulation, "
    "or --precision amp-bf16.",
    Part.WORKSPACE: "another optimizer implementation (--optimizer-impl fused) or kernel needs less scratch memory.",
    Part.INPUTS: "a smaller --batch.",
    Part.BUFFERS: "they are part of the model.",
}
