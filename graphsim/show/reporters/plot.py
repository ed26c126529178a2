"""Static pictures with matplotlib (extra `plot`): the timeline by role, the composition of the peak."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.index import Ints
from graphsim.core.simulation import Simulation
from graphsim.display import PHASE_COLORS, ROLE_COLORS, words
from graphsim.errors import MissingExtraError, UsageError
from graphsim.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STRETCHES = 300
"""Steps of the timeline that are drawn at most: more cannot be told apart, and make vector pictures of megabytes."""

SUFFIXES = (".png", ".svg", ".pdf")


def picture(run: Simulation, suffix: str) -> bytes:
    """Return the picture of *run* in the format that *suffix* names.

    Raises:
        UsageError: the suffix names no format.
        MissingExtraError: matplotlib is not installed.
    """
    check(suffix)
    return drawn(figure(run), suffix)


def check(suffix: str) -> None:
    """Raise what `picture` raises, before there is anything to draw."""
    if suffix not in SUFFIXES:
        raise UsageError(f"a picture is {' or '.join('*' + known for known in SUFFIXES)}, not '*{suffix[:20]}'")
    blank(1, 1)


def blank(width: float, height: float) -> Figure:
    """Return a figure without anything on it, of inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    return Figure(figsize=(width, height), layout="constrained")


def drawn(fig: Figure, suffix: str) -> bytes:
    """Return *fig* in the format that *suffix* names."""
    content = io.BytesIO()
    fig.savefig(content, format=suffix[1:], dpi=150)
    return content.getvalue()


def figure(run: Simulation) -> Figure:
    """Return a figure: the timeline, and the composition of the peak below it."""
    fig = blank(10, 7.2)
    grid = fig.add_gridspec(2, 1, height_ratios=(2, 1))
    draw_timeline(fig.add_subplot(grid[0]), run)
    draw_composition(fig.add_subplot(grid[1]), run)
    return fig


def draw_timeline(axes: Axes, run: Simulation) -> None:
    """Stack the roles over the executions; shade the phases and mark the peak."""
    parts = run.timeline_by_role()
    roles = [role for role in ROLE_COLORS if parts[role].any()]
    edges, shown = _stretches(run)
    base = np.zeros(len(edges))
    for role in roles:  # one step per stretch: the last value is repeated where it ends
        part = parts[role][shown]
        top = base + np.append(part, part[-1:])
        axes.fill_between(edges, base, top, step="post", color=ROLE_COLORS[role], label=words(role), linewidth=0)
        base = top
    _shade_phases(axes, run)
    at = run.peak_execution
    axes.axvline(at + 0.5, color="#b00020", linewidth=1.2)
    right = at > len(run.schedule) / 2
    axes.annotate(
        f"peak {format_bytes(run.peak)}\n{plain(run.op_at(at).name) if len(run.schedule) else ''}",
        (at + 0.5, run.peak),
        (-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        fontsize=8,
        color="#b00020",
    )
    axes.set_xlim(0, max(1, len(run.schedule)))
    axes.set_ylim(0, max(1, run.peak) * 1.25)
    axes.set_title(f"{title(run.graph)}: live bytes while each op runs", loc="left", fontsize=11)
    axes.set_xlabel("op, in order of execution")
    byte_axis(axes, "y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8, ncols=len(ROLE_COLORS), frameon=False)


def _stretches(run: Simulation) -> tuple[Ints, Ints]:
    """Return the edges of what is drawn as one step each, and the execution with most live bytes in each."""
    count = len(run.schedule)
    edges = np.unique(np.linspace(0, count, min(count, _STRETCHES) + 1).astype(np.int64))
    shown = [low + int(run.timeline[low:high].argmax()) for low, high in pairwise(edges.tolist())]
    return edges, np.array(shown, dtype=np.int64)


def _shade_phases(axes: Axes, run: Simulation) -> None:
    begin = 0
    for phase, group in groupby(run.phases):
        end = begin + len(list(group))
        axes.axvspan(begin, end, color=PHASE_COLORS[str(phase)], alpha=0.1, linewidth=0, zorder=0)
        if end - begin > len(run.schedule) / 16:
            center, top = (begin + end) / 2, axes.get_xaxis_transform()
            axes.text(center, 0.98, str(phase), ha="center", va="top", fontsize=8, transform=top)
        begin = end


def draw_composition(axes: Axes, run: Simulation) -> None:
    """Bars of what is live at the peak, by role, the largest on top."""
    sizes = sorted(((size, role) for role, size in run.by_role(run.peak_execution).items() if size))
    bars = axes.barh([words(role) for _, role in sizes], [size for size, _ in sizes])
    for bar, (size, role) in zip(bars, sizes, strict=True):
        bar.set_color(ROLE_COLORS[role])
        axes.annotate(
            f"{format_bytes(size)}, {size / run.peak:.1%}",
            (size, bar.get_y() + bar.get_height() / 2),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(0, max((size for size, _ in sizes), default=1) * 1.3)
    axes.set_title("Live at the peak", loc="left", fontsize=11)
    byte_axis(axes, "x")


def byte_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Ticks at powers of two of bytes, at most about six."""
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    step = 2 ** max(0, int(np.ceil(np.log2(max(1.0, (high - low) / 6)))))
    ticks = np.arange(np.ceil(max(0.0, low) / step) * step, high, step)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [format_bytes(int(tick)).replace(".00 ", " ") for tick in ticks])
    axes.grid(axis=which, alpha=0.3)


def title(graph: Graph) -> str:
    """Return the name of a step with its batch, optimizer and card, as far as it knows them."""
    training: Mapping[str, Any] = graph.attributes.get("training", {})
    batch = graph.attributes.get("batch")
    known = [
        graph.name,
        f"batch {batch}" if batch else "",
        str(training.get("optimizer", "")) if training.get("mode", "train") == "train" else "",
        str(training.get("device") or training.get("target", "")),
    ]
    return plain(", ".join(filter(None, known)))


def plain(text: str) -> str:
    """A name as it is: matplotlib reads dollars as mathematics."""
    return text.replace("$", r"\$")
