"""Plans as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from math import isfinite
from string import ascii_lowercase

from rich.console import Console
from rich.table import Table

from graphsim.answers.plan import pareto
from graphsim.answers.planned import Planned
from graphsim.recompute.plan import Offloading, Plan
from graphsim.units import format_bytes, format_cost

_HEIGHT = 10
"""Lines of the scatter."""
_LEFT = 9
"""Columns to the left of its axis."""


def plan_text(answer: Planned) -> str:
    """Return a plan that fits, or is the best so far, in a few lines."""
    plan, least, held = answer.plan, answer.least, answer.reserved_bytes
    within = "" if plan.budget is None else f" within {format_bytes(plan.budget)}"
    lines = [
        f"{plan.strategy}: peak {format_bytes(plan.peak_bytes)} ({plan.peak_bytes:,} bytes)"
        f"{within if held is None else ''}, {plan.overhead:+.2%} {'time' if plan.offloading else 'compute'}"
    ]
    if plan.offloading is not None:
        lines += _offload(plan, plan.offloading)
    if held is not None:
        lines.append(f"  {answer.allocator} holds {format_bytes(held)} ({held:,} bytes){within}, in step 1 and later")
    if plan.interrupted:
        lines.append("  interrupted: the best so far" + ("" if plan.feasible else ", which does not fit"))
    if plan.budget is not None and plan.feasible and plan.offloading is None:
        lines.append(f"  {_optimality(plan, least)}")
        if plan.base_time < plan.time_bound_in_any_order and plan.schedule.repeats.any():
            lines.append(f"  in any other order, {_as_overhead(plan, plan.time_bound_in_any_order):+.2%} at least")
    lines.append(
        f"  no schedule needs less than {format_bytes(plan.memory_bound)}; {len(plan.schedule):,} executions; "
        f"planned in {plan.seconds:.2f} s"
    )
    return "\n".join(lines) + "\n"


def _offload(plan: Plan, offloading: Offloading) -> list[str]:
    """What waits on the host, and what that saves."""
    alone, runs = offloading.recompute_time, int(plan.schedule.repeats.sum())
    alone_takes = f"takes {_as_overhead(plan, alone):+.2%}" if isfinite(alone) else "does not fit"
    if not offloading.count:
        return [f"  nothing is offloaded: {runs:,} executions run an op again"]
    waits = f"; ops wait for copies {offloading.stalled / plan.base_time:.2%} of the step" if offloading.stalled else ""
    held, copied = format_bytes(offloading.host_peak_bytes), format_bytes(offloading.copied_bytes)
    return [
        f"  a tensor waits on the host {offloading.count:,} times, at most {held} at once; copied are {copied} "
        f"at {offloading.rate / 1e9:.3g} GB/s each way{waits}",
        f"  {runs:,} executions run an op again; recompute alone {alone_takes}",
    ]


def _optimality(plan: Plan, least: float) -> str:
    """How much cheaper a plan could be: none, or none of the form that the strategy's own bound is about."""
    if not plan.schedule.repeats.any():
        return "optimal: it runs no op twice"
    if plan.proved_optimal:
        return "proved optimal: no plan that keeps the order of ops costs less"
    kind = "that keeps the order of ops" if plan.time_bound <= least * (1 + 1e-9) else f"of {plan.strategy}'s form"
    if plan.gap <= 1e-9:
        return (
            f"the cheapest {kind}; no plan that keeps the order of ops costs less than {_as_overhead(plan, least):+.2%}"
        )
    return f"at most {plan.gap:.2%} from optimal: no plan {kind} costs less than {plan.least_overhead:+.2%}"


def _as_overhead(plan: Plan, time: float) -> float:
    return time / plan.base_time - 1 if plan.base_time else 0.0


def comparison_text(plans: Sequence[Plan], unit: str, least: float, width: int) -> str:
    """Return plans side by side, their times in *unit*, and below that each as a letter: memory against time.

    *least* bounds the time of any plan (see `Case.least_time`).
    """
    marks = [mark.upper() if best else mark for mark, best in zip(_marks(len(plans)), pareto(plans), strict=True)]
    stream = StringIO()
    Console(file=stream, width=width, highlight=False).print(_table(plans, marks, unit))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    lines += ["", *_scatter(plans, marks, width), ""]
    lines.append("Capital: no other plan needs less memory or time, and no more of the other.")
    lines.append(f"No schedule needs less than {format_bytes(plans[0].memory_bound)}.")
    lines += _floor(plans[0], least)
    return "\n".join(lines) + "\n"


def _floor(plan: Plan, least: float) -> list[str]:
    """Say what is known of the cost of all plans within the budget, of which *plan* is one."""
    if plan.budget is None:
        return []
    if not isfinite(least):
        return [f"None within {format_bytes(plan.budget)} keeps the order of ops."]
    floor = _as_overhead(plan, least)
    return [f"None within {format_bytes(plan.budget)} that keeps the order of ops costs less than {floor:+.2%}."]


def dearest(plans: Sequence[Plan]) -> float:
    """Return the overhead up to which a chart goes: outliers, over three times the median, would flatten the rest."""
    extra = sorted(plan.overhead for plan in plans if plan.overhead > 0)
    return max((each for each in extra if each <= 3 * extra[len(extra) // 2]), default=0.01)


def _marks(count: int) -> str:
    return (ascii_lowercase * (count // 26 + 1))[:count]


def _table(plans: Sequence[Plan], marks: Sequence[str], unit: str) -> Table:
    stored = next((plan.peak_bytes for plan in plans if plan.strategy == "none"), 0) or 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "strategy", "peak", "of none", "time", "overhead", "planned in", "budget"):
        table.add_column(column, justify="left" if column in ("", "strategy", "budget") else "right")
    for mark, plan in zip(marks, plans, strict=True):
        table.add_row(
            mark,
            plan.strategy,
            format_bytes(plan.peak_bytes),
            f"{plan.peak_bytes / stored:.1%}",
            format_cost(plan.time, unit),
            f"{plan.overhead:+.2%}",
            f"{plan.seconds:.2f} s",
            _verdict(plan),
        )
    return table


def _verdict(plan: Plan) -> str:
    """Whether it fits, and whether there was time to look for a better one."""
    fits = "" if plan.budget is None else ("fits" if plan.feasible else "does not fit")
    return ", ".join(filter(None, [fits, "interrupted" if plan.interrupted else ""]))


def _scatter(plans: Sequence[Plan], marks: Sequence[str], width: int) -> list[str]:
    """Lines of a chart: peak to the right, overhead upwards; marks that share a place stand side by side."""
    budget, low = plans[0].budget, plans[0].memory_bound
    high = max(low + 1, *(plan.peak_bytes for plan in plans))
    top = dearest(plans)
    columns = width - _LEFT - 1
    last = columns - len(plans)  # all may stand in one place
    dearer = any(plan.overhead > top for plan in plans)
    scale = [*["dearer"] * dearer, f"{top:+.1%}", *[""] * (_HEIGHT - 2), "+0.0%"]
    rows = [[" "] * columns for _ in scale]

    def column(peak: int) -> int:
        return round((peak - low) / (high - low) * last)

    head = []
    if budget is not None and low <= budget <= high:
        for row in rows:
            row[column(budget)] = "┊"
        head = [" " * (_LEFT + 1) + _beside(f"budget {format_bytes(budget)}", column(budget))]
    for plan, mark in sorted(zip(plans, marks, strict=True), key=lambda entry: entry[0].peak_bytes):
        row = rows[0 if plan.overhead > top else dearer + round((1 - plan.overhead / top) * (_HEIGHT - 1))]
        row[next(i for i in range(column(plan.peak_bytes), columns) if row[i] in " ┊")] = mark
    lines = [f"{label:>{_LEFT - 1}} │{''.join(row).rstrip()}" for label, row in zip(scale, rows, strict=True)]
    left, right = format_bytes(low), f"peak {format_bytes(high)}"
    return [*head, *lines, " " * _LEFT + "└" + "─" * last, " " * _LEFT + left + right.rjust(last + 1 - len(left))]


def _beside(text: str, column: int) -> str:
    """Write *text* to the left of a line in *column*, or to its right where there is no room."""
    return f"{text} ┊".rjust(column + 1) if len(text) < column else " " * column + f"┊ {text}"
