"""The answer to 'will it fit?' as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphsim.answers.fit import Fit
from graphsim.answers.measures import Measure
from graphsim.units import format_bytes


def fit_text(answer: Fit) -> str:
    """Return the answer to 'will it fit?' in a few lines."""
    least, most = (format_bytes(size) for size in answer.context_bytes)
    lines = [
        answer.headline,
        f"  {format_bytes(answer.need_bytes):>11}  held by PyTorch's caching allocator at its peak",
        f"  {least} to {most}  CUDA context and library handles: unknown, depends on driver and versions",
        f"  {format_bytes(answer.margin_bytes):>11}  left, with the most of that",
        *_sizes(answer),
        *(f"  {note}" for note in answer.notes),
        *(f"  warning: {warning}" for warning in answer.warnings),
    ]
    if answer.choices:
        lines += ["", "What the choices save, one after the other:"]
        lines += [f"  {format_bytes(answer.choices[0].need_bytes + answer.choices[0].saved_bytes):>11}  without them"]
    for choice in answer.choices:
        rest = f"{choice.time:+.0%} time; then {format_bytes(choice.need_bytes)} in all"
        lines.append(f"  {format_bytes(choice.saved_bytes):>11}  {choice.name}, {rest}")
    if answer.measures:
        lines += ["", "What would save memory:", *measure_lines(answer.measures)]
    return "\n".join(lines) + "\n"


def measure_lines(measures: Sequence[Measure]) -> Iterator[str]:
    """Yield a line on each of *measures*."""
    for measure in measures:
        stacked = (
            "" if measure.stacked_need_bytes is None else f"; then {format_bytes(measure.stacked_need_bytes)} in all"
        )
        yield f"  {format_bytes(measure.saved_bytes):>11}  {measure.name}, {measure.time:+.0%} time{stacked}"


def _sizes(answer: Fit) -> list[str]:
    if answer.max_batch is None:
        return []
    sequence = f"; largest sequence: {answer.max_seq:,}" if answer.max_seq is not None else ""
    return [f"  largest batch that fits: {answer.max_batch:,}{sequence}"]
