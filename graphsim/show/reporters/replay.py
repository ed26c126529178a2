"""A replay as a person reads it in a terminal."""

from __future__ import annotations

from graphsim.measured.replay import Replay
from graphsim.units import format_bytes


def replay_text(result: Replay) -> str:
    """Return a replay in a few lines: predicted and measured, and the first event at which they differ."""
    lines = [
        f"{result.spec} · replayed by {result.backend} on {result.device} · {result.events:,} events "
        f"in {result.seconds:.2f} s",
        "",
    ]
    if result.out_of_memory:
        at = result.out_of_memory if result.out_of_memory == "before the step" else f"at {result.out_of_memory}"
        lines += [f"Out of memory {at}, with {format_bytes(result.measured_peak_bytes)} in use; everything is freed."]
        return "\n".join(lines) + "\n"
    rows = (
        ("in use", result.predicted_peak_bytes, result.measured_peak_bytes, result.matched_used),
        ("held", result.predicted_total_bytes, result.measured_total_bytes, result.matched_total),
    )
    lines.append(f"{'peak of bytes':14}{'predicted':>20}{'measured':>20}   equal after")
    for name, predicted, measured, matched in rows:
        lines.append(f"{name:14}{predicted:>20,}{measured:>20,}   {matched:,} of {result.events:,} events")
    if result.compute_seconds:
        parts = ", ".join(f"{phase} {seconds * 1000:,.1f} ms" for phase, seconds in result.compute_seconds.items())
        lines.append(f"arithmetic of the step: {sum(result.compute_seconds.values()) * 1000:,.1f} ms ({parts})")
    low, high = result.total_interval
    if low != high:
        lines.append(f"bytes held depend on ties between equal free chunks: {low:,} to {high:,} over the rules tried")
    if result.first_mismatch:
        miss = result.first_mismatch
        lines += [
            "",
            f"First difference: event {miss.event:,}, {miss.kind} of {miss.nbytes:,} bytes, {miss.op}: "
            f"in use {miss.predicted_used:,} predicted, {miss.measured_used:,} measured; "
            f"held {miss.predicted_total:,} and {miss.measured_total:,}",
        ]
    return "\n".join(lines) + "\n"
