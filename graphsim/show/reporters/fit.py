"""The answer to 'will it fit?' as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphsim.answers.fit import Fit
from graphsim.answers.measures import Measure
from graphsim.answers.unknown import OUTSIDE, Unknown
from graphsim.units import format_bytes, format_cost


def fit_text(answer: Fit) -> str:
    """Return the answer to 'will it fit?' in a few lines."""
    lines = [
        answer.headline,
        f"  {format_bytes(answer.need_bytes):>11}  held by PyTorch's caching allocator at its peak",
        *(unknown_line(one) for one in answer.unknown),
        unknown_line(Unknown(OUTSIDE, *answer.context_bytes, False, answer.context_source)),
        f"  {format_bytes(answer.margin_bytes):>11}  left, with the most of all that",
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
    if answer.plans:
        lines += ["", *_plans(answer)]
    return "\n".join(lines) + "\n"


def unknown_line(unknown: Unknown) -> str:
    """Return one line on what is unknown."""
    least, most = format_bytes(unknown.least), format_bytes(unknown.most)
    size = f"{least} to {most}" if unknown.least != unknown.most else f"{most:>11}"
    where = "" if unknown.inside else " outside of PyTorch's allocator"
    return f"  {size}  {unknown.what}{where}: {'unknown, ' * (unknown.least != unknown.most)}{unknown.source}"


def measure_lines(measures: Sequence[Measure]) -> Iterator[str]:
    """Yield a line on each of *measures*."""
    for measure in measures:
        stacked = (
            "" if measure.stacked_need_bytes is None else f"; then {format_bytes(measure.stacked_need_bytes)} in all"
        )
        yield f"  {format_bytes(measure.saved_bytes):>11}  {measure.name}, {measure.time:+.0%} time{stacked}"


def _plans(answer: Fit) -> Iterator[str]:
    """Yield the table of plans for several GPUs, and what DeepSpeed's estimators say beside it."""
    many = answer.provenance["training"]["gpus"]
    yield f"Plans for {many} GPUs, those that fit first, by the least time that a sample takes:"
    yield _row(("peak", "reserved", "batch", "sent", "kernels", answer.link, "a sample", "plan"))
    for number, plan in enumerate(answer.plans):
        if not (plan.fits or plan.perhaps) and (number == 0 or answer.plans[number - 1].fits):
            yield "  do not fit:"
        batch = "?" if plan.max_batch is None else f"{plan.max_batch:,}"
        peak, reserved, sent = map(format_bytes, (plan.peak_bytes, plan.need_bytes, plan.sent_bytes))
        times = (plan.compute_seconds, plan.communication_seconds, plan.sample_seconds)
        yield _row((peak, reserved, batch, sent, *(format_cost(time, "seconds") for time in times), plan.options))
    yield "Of the rank that needs most. Batch: the largest that fits; of the first plan as captured, of the others by"
    yield f"the line through two batches. Sent: in a step. Times: at least, by roofline of kernels and {answer.link}."
    states = ", ".join(f"{stage} {format_bytes(size)}" for stage, size in answer.deepspeed.items())
    yield f"DeepSpeed's estimators, of states alone in mixed precision with Adam: {states}"


def _row(cells: Sequence[str]) -> str:
    widths = (10, 10, 7, 10, 9, 9, 9)
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)) + f"  {cells[-1]}"


def _sizes(answer: Fit) -> list[str]:
    if answer.max_batch is None:
        return []
    sequence = f"; largest sequence: {answer.max_seq:,}" if answer.max_seq is not None else ""
    without = "".join(f", without the {one.what}" for one in answer.unknown if one.inside)
    return [f"  largest batch that fits{without}: {answer.max_batch:,}{sequence}"]
