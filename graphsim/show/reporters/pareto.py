"""The picture of a comparison (extra `plot`): plans as memory against extra cost, their front, and what bounds them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from graphsim.answers.plan import pareto
from graphsim.core.graph import Graph
from graphsim.recompute.case import Case, case_of
from graphsim.recompute.plan import Plan
from graphsim.show.reporters.plans import dearest
from graphsim.show.reporters.plot import blank, byte_axis, check, drawn, plain, title
from graphsim.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Sequence[tuple[float, float]]
Pixels = npt.NDArray[np.float64]

_FRONT, _OTHER, _BUDGET, _IMPOSSIBLE = "#d55e00", "#0072b2", "#009e73", "#bbbbbb"
_SIZES = 25
"""Sizes of memory for which the least cost is drawn."""
_SAME = 4.0
"""Points (1/72 inch) within which plans stand in one place, and share a label."""
_DIRECTIONS = [(x, y) for x, y in product((1, 0, -1), (1, 0, -1)) if x or y]
_NEAR = 6
_OFFSETS = [np.array([x, y]) * distance for distance in (_NEAR, 14, 24, 36, 50, 66) for x, y in _DIRECTIONS]
"""Where a label may stand, in points from what it names, the nearest first."""


class _Place(NamedTuple):
    """The name of a plan, and where it is drawn."""

    name: str
    x: float
    y: float


def plans_picture(graph: Graph | Case, plans: Sequence[Plan], suffix: str) -> bytes:
    """Return the picture of *plans*, all for *graph*, in the format that *suffix* names.

    Raises:
        UsageError: the suffix names no format.
        MissingExtraError: matplotlib is not installed.
    """
    check(suffix)
    return drawn(plans_figure(graph, plans), suffix)


def plans_figure(graph: Graph | Case, plans: Sequence[Plan]) -> Figure:
    """Return a figure: peak to the right, extra cost upwards; outliers stand at the upper edge."""
    fig = blank(9, 6)
    from matplotlib.ticker import PercentFormatter  # an extra: there is one, or no figure

    axes = fig.add_subplot()
    low, budget = plans[0].memory_bound, plans[0].budget
    high = max(low + 1, *(plan.peak_bytes for plan in plans))
    margin, top = 0.06 * (high - low), dearest(plans)
    axes.set_xlim(min(low, budget or low) - margin, high + margin)
    axes.set_ylim(-0.06 * top, 1.22 * top)
    case, sizes = case_of(graph), np.linspace(low, high, _SIZES).astype(np.int64).tolist()
    _draw_bounds(axes, plans[0], [(size, case.least_time(size)) for size in sizes])
    front = _draw_front(axes, plans)
    places = _draw_plans(axes, plans, 1.12 * top)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    byte_axis(axes, "x")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("peak")
    axes.set_ylabel("extra compute")
    of = title(case.given)
    axes.set_title(f"{of}{': ' if of else ''}peak and extra compute of every strategy", loc="left", fontsize=11)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=8, frameon=False)
    _label(fig, axes, places, [front] if budget is None else [front, [(budget, bound) for bound in axes.get_ylim()]])
    return fig


def _draw_bounds(axes: Axes, plan: Plan, least: Sequence[tuple[int, float]]) -> None:
    """Shade where no plan can be: left of what one op touches, and below the *least* time; draw the budget, if any."""
    left, _ = axes.get_xlim()
    bottom, top = axes.get_ylim()
    axes.axvspan(left, plan.memory_bound, color=_IMPOSSIBLE, alpha=0.6, linewidth=0, label="no schedule needs less")
    sizes, times = np.array(least).T
    extra = np.minimum(times / (plan.base_time or 1.0) - 1, top)
    # Between two sizes the floor is at least that of the larger one.
    area = axes.fill_between(sizes, bottom, extra, step="pre", label="none that keeps the order of ops costs less")
    area.set(color=_IMPOSSIBLE, alpha=0.3, linewidth=0)
    if plan.budget is not None:
        label = f"budget {format_bytes(plan.budget)}"
        axes.axvline(plan.budget, color=_BUDGET, linestyle="--", linewidth=1.2, label=label)


def _draw_front(axes: Axes, plans: Sequence[Plan]) -> Line:
    """Draw the least extra cost that is known for each peak, and return it: it falls where the next plan comes."""
    best = sorted({(p.peak_bytes, p.overhead) for p, best in zip(plans, pareto(plans), strict=True) if best})
    nexts = [*(peak for peak, _ in best[1:]), axes.get_xlim()[1]]
    front = [corner for (peak, extra), end in zip(best, nexts, strict=True) for corner in ((peak, extra), (end, extra))]
    axes.plot(*zip(*front, strict=True), color=_FRONT, linewidth=1.2, label="Pareto front")
    return front


def _draw_plans(axes: Axes, plans: Sequence[Plan], edge: float) -> list[_Place]:
    """Draw the plans, filled if they fit and no higher than *edge*; return where each is."""
    places = []
    for plan, best in zip(plans, pareto(plans), strict=True):
        far = plan.overhead > edge
        place = _Place(plain(plan.strategy) + f" {plan.overhead:+.0%}" * far, plan.peak_bytes, min(plan.overhead, edge))
        color = _FRONT if best else _OTHER
        face = color if plan.feasible else "white"
        axes.plot(place.x, place.y, "^" if far else "o", color=color, markerfacecolor=face, zorder=4)
        places.append(place)
    if not all(plan.feasible for plan in plans):
        axes.plot([], [], "o", color=_OTHER, markerfacecolor="white", label="does not fit")
    return places


def _label(fig: Figure, axes: Axes, places: Sequence[_Place], lines: Sequence[Line]) -> None:
    """Write the names beside their points, as near as they cover no point, no other name and none of *lines*."""
    fig.draw_without_rendering()  # only now is it known where on the page a point is
    point = fig.dpi / 72
    spots: Pixels = axes.transData.transform([(place.x, place.y) for place in places])
    frame = np.array(axes.get_window_extent().extents)
    taken = [np.concatenate([spot - 4 * point, spot + 4 * point]) for spot in spots]
    taken += [_around(*pair, point) for line in lines for pair in pairwise(axes.transData.transform(line))]
    for group in _groups(spots, _SAME * point):
        spot, first = spots[group[0]], places[group[0]]
        note = axes.annotate(_lines([places[i].name for i in group]), first[1:], fontsize=8, in_layout=False)
        size = np.array(note.get_window_extent().size) + 2 * point
        boxes = [_box(spot + offset * point, np.sign(offset), size) for offset in _OFFSETS]
        best = min(range(len(boxes)), key=lambda i: _cost(boxes[i], taken, frame) + i * 1e-3)
        taken.append(boxes[best])
        note.remove()
        _annotate(axes, note.get_text(), first, _OFFSETS[best])


def _around(a: Pixels, b: Pixels, width: float) -> Pixels:
    """Return left, bottom, right, top of a line from *a* to *b*, upright or level."""
    return np.concatenate([np.minimum(a, b) - width / 2, np.maximum(a, b) + width / 2])


def _annotate(axes: Axes, text: str, place: _Place, offset: Pixels) -> None:
    """Write *text* at *offset* points from *place*, with a line to it from afar."""
    line = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.6, "shrinkB": 3}
    axes.annotate(
        text,
        (place.x, place.y),
        (offset[0], offset[1]),
        textcoords="offset points",
        ha=("center", "left", "right")[int(np.sign(offset[0]))],
        va=("center", "bottom", "top")[int(np.sign(offset[1]))],
        fontsize=8,
        in_layout=False,
        arrowprops=line if abs(offset).max() > _NEAR else None,
        zorder=5,
    )


def _groups(spots: Pixels, distance: float) -> list[list[int]]:
    """Return the numbers of *spots*, those together that are within *distance* of the first of them."""
    groups: list[list[int]] = []
    for i, spot in enumerate(spots):
        near = [group for group in groups if np.hypot(*(spots[group[0]] - spot)) < distance]
        if near:
            near[0].append(i)
        else:
            groups.append([i])
    return groups


def _lines(names: Sequence[str]) -> str:
    """Return names as text of a few a line."""
    return ",\n".join(", ".join(names[i : i + 3]) for i in range(0, len(names), 3))


def _box(anchor: Pixels, side: Pixels, size: Pixels) -> Pixels:
    """Return left, bottom, right, top of a text of *size* that stands on that *side* of *anchor*."""
    low = anchor + (side - 1) / 2 * size
    return np.concatenate([low, low + size])


def _cost(box: Pixels, taken: Sequence[Pixels], frame: Pixels) -> float:
    """Return the pixels of *box* that are covered already, or outside the *frame*."""
    return sum(_overlap(box, other) for other in taken) + _overlap(box, box) - _overlap(box, frame)


def _overlap(a: Pixels, b: Pixels) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0.0)))
