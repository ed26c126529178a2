"""The figures of the theory pages, drawn from what graphsim computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

import graphsim as gs
from graphsim.display import PHASE_COLORS, ROLE_COLORS, words
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.show.reporters.plot import blank, byte_axis
from graphsim.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENET = {"batch": 64}
SEED = {"batch": 5120}


def ranges() -> Figure:
    """Live ranges of LeNet's storages, one row each, and their sum."""
    run = gs.simulate(gs.training_step(gs.load("lenet5", **LENET), optimizer="sgd"))
    live = run.live_ranges
    tensors = tuple(run.graph.tensors)
    roles = [run.tensor_roles[number] for number in live.tensor.tolist()]
    shown = np.flatnonzero(live.nbytes > 60_000)
    shown = shown[np.lexsort((live.end[shown], live.begin[shown]))][::-1]
    fig = blank(9, 6.4)
    grid = fig.add_gridspec(2, 1, height_ratios=(3, 1))
    rows, total = fig.add_subplot(grid[0]), fig.add_subplot(grid[1])
    for row, number in enumerate(shown.tolist()):
        begin, end = int(live.begin[number]), int(live.end[number])
        rows.barh(row, end - begin, left=begin, color=ROLE_COLORS[roles[number]], height=0.75)
    names = [f"{tensors[live.tensor[n]]} ({format_bytes(int(live.nbytes[n]))})" for n in shown.tolist()]
    rows.set_yticks(range(len(shown)), names, fontsize=6)
    rows.set_title("lenet5, batch 64, sgd: when each storage of more than 60 kB is live", loc="left", fontsize=10)
    total.step(range(len(run.timeline)), run.timeline, where="post", color="#b00020")
    total.set_ylim(0)
    byte_axis(total, "y")
    total.set_title("their sum, with all smaller ones: the timeline", loc="left", fontsize=10)
    total.set_xlabel("execution")
    for axes in (rows, total):
        axes.set_xlim(0, len(run.schedule))
        _phases(axes, run)
    seen = dict.fromkeys(roles[n] for n in shown.tolist())
    handles = [rows.barh(0, 0, color=ROLE_COLORS[role], label=words(role)) for role in seen]
    rows.legend(handles=handles, fontsize=7, loc="lower left")
    return fig


def policies() -> Figure:
    """The timeline of one step as PyTorch releases storages, and as early as possible."""
    step = gs.training_step(gs.load("bert_base"), optimizer="adam")
    fig = blank(9, 3.6)
    axes = fig.add_subplot()
    for policy, color in (("eager", "#b00020"), ("liveness", "#0072b2")):
        run = gs.simulate(step, policy=policy)
        axes.step(range(len(run.timeline)), run.timeline, where="post", color=color, linewidth=1.2)
        axes.plot([], [], color=color, label=f"{policy}: peak {format_bytes(run.peak)}")
    _framed(
        axes, len(run.schedule), "execution", "bert_base, batch 32, adam: live bytes under the two release policies"
    )
    _phases(axes, run)
    axes.legend(fontsize=8, loc="lower right")
    return fig


def _framed(axes: Axes, events: int, counted: str, title: str) -> None:
    """Bytes upwards from zero, over so many events."""
    axes.set_xlim(0, events)
    axes.set_ylim(0)
    byte_axis(axes, "y")
    axes.set_xlabel(counted)
    axes.set_title(title, loc="left", fontsize=10)


def reserved() -> Figure:
    """Live bytes, and what PyTorch's caching allocator holds for them."""
    run = gs.simulate(gs.training_step(gs.load("seed_cnn", **SEED), optimizer="momentum"))
    fig = blank(9, 3.6)
    axes = fig.add_subplot()
    for options, color, name in (
        ({}, "#b00020", "reserved"),
        ({"expandable_segments": True}, "#d55e00", "reserved, with expandable_segments"),
    ):
        layout = TorchCaching(**options)(run.trace)
        axes.step(range(len(layout.reserved)), layout.reserved, where="post", color=color, label=name)
    axes.fill_between(range(len(layout.used)), layout.used, step="post", color="#0072b2", alpha=0.4, label="in use")
    title = "seed_cnn, batch 5120: a step in a fresh caching allocator"
    _framed(axes, len(layout.used), "malloc or free, in order", title)
    axes.legend(fontsize=8, loc="upper left")
    return fig


def recompute() -> Figure:
    """Memory against extra compute: what rotor pays for smaller and smaller budgets, beside the fixed strategies."""
    given = {"batch": 128, "optimizer": "adamw"}
    fig = blank(9, 4)
    axes = fig.add_subplot()
    budgets = [f"{share}%" for share in range(100, 30, -5)]
    plans = [gs.plan("resnet18", strategy="rotor", budget=budget, **given) for budget in budgets]
    found = [made.plan for made in plans if made.plan.feasible]
    points = [(plan.peak_bytes, plan.overhead) for plan in found]
    axes.plot(*zip(*points, strict=True), "o-", color="#d55e00", markersize=4, linewidth=1, label="rotor, by budget")
    for name, marker in (("none", "s"), ("blocks", "^"), ("sqrt", "D")):
        plan = gs.plan("resnet18", strategy=name, **given).plan
        axes.plot(plan.peak_bytes, plan.overhead, marker, color="#0072b2", linestyle="", label=name)
    axes.set_ylim(-0.02)
    byte_axis(axes, "x")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("peak")
    axes.set_ylabel("extra compute")
    axes.grid(alpha=0.3)
    axes.set_title("resnet18, batch 128, adamw: less memory for more compute", loc="left", fontsize=10)
    axes.legend(fontsize=8)
    return fig


def _phases(axes: Axes, run: gs.Simulation) -> None:
    for phase in dict.fromkeys(run.phases):
        at = [n for n, here in enumerate(run.phases) if here == phase]
        axes.axvspan(at[0], at[-1] + 1, color=PHASE_COLORS[str(phase)], alpha=0.1, linewidth=0, zorder=0)


FIGURES: dict[str, Callable[[], Figure]] = {
    "ranges": ranges,
    "policies": policies,
    "reserved": reserved,
    "recompute": recompute,
}
