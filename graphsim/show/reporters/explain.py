"""Why memory ran out, as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from graphsim.answers.explain import Explanation
from graphsim.answers.explain.moment import Moment
from graphsim.show.reporters.fit import measure_lines
from graphsim.units import format_bytes


def explanation_text(answer: Explanation, width: int) -> str:
    """Return an explanation in a few lines, none wider than *width* but for names."""
    lines = [*_wrapped(answer.headline[0].upper() + answer.headline[1:] + ".", "", width), ""]
    lines += [f"  {format_bytes(size):>11}  {what}" for size, what in _figures(answer.moment)]
    lines += ["", *_wrapped(f"What helps most: {answer.cause.change}.", "", width)]
    for note in answer.notes:
        lines += _wrapped(f"- {note}", "  ", width)
    if answer.suspects:
        lines += ["", "Which of your tensors:"]
    for one in answer.suspects:
        mark = ", where our count runs out" if one.here else ""
        lines.append(f"  {format_bytes(one.nbytes):>11}  {one.name}, made by {one.op} in {one.phase}, {one.step}{mark}")
    if answer.measures:
        lines += ["", "What would save memory:", *measure_lines(answer.measures)]
    lines += _table("Largest live", [(piece.nbytes, piece.name) for piece in answer.moment.live])
    gaps = [
        (gap.idle_bytes, f"of a segment of {format_bytes(gap.segment_bytes)}, kept by {gap.kept_by}")
        for gap in answer.moment.gaps
    ]
    lines += _table("Idle, but not to be given back", gaps)
    return "\n".join(lines) + "\n"


def _figures(now: Moment) -> Iterator[tuple[int, str]]:
    """Yield what is known, in bytes, and its name."""
    by = f" by {now.where}" if now.where else ""
    beside = "neither: CUDA context, libraries, other processes"
    for size, what in (
        (now.requested, f"asked for{by}"),
        (now.free, "free on the device"),
        (now.allocated, "in use by PyTorch's tensors"),
        (now.reserved, "reserved by PyTorch's allocator"),
        (now.idle if now.reserved is not None else None, "reserved, and not in use"),
        (now.hole, "the largest piece of that"),
        (now.allowed, "allowed to this process"),
        (now.outside if (now.outside or 0) > 0 else None, beside),
        (now.capacity, "the card"),
    ):
        if size is not None:
            yield size, what


def _table(title: str, rows: list[tuple[int, str]]) -> list[str]:
    lines = [f"  {format_bytes(size):>11}  {what}" for size, what in rows]
    return ["", f"{title}:", *lines] if rows else []


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
