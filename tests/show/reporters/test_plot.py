"""Static pictures: what is drawn are the simulator's numbers; the files are of the format they say."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from pages import rematerialized, step

import graphsim as gs
from graphsim.core.simulation import ROLES
from graphsim.display import ROLE_COLORS
from graphsim.errors import MissingExtraError, UsageError
from graphsim.show.reporters import plot


@pytest.fixture(scope="module", params=["in order", "recomputed"])
def run(request):
    graph = step("lenet5", batch=8)
    return gs.simulate(graph) if request.param == "in order" else rematerialized(graph)


def test_every_role_has_a_colour():
    assert sorted(ROLE_COLORS) == sorted(ROLES)
    assert len(set(ROLE_COLORS.values())) == len(ROLES)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_picture_is_of_the_format_of_its_suffix(run, suffix, magic):
    pytest.importorskip("matplotlib")
    assert plot.picture(run, suffix).startswith(magic)


def test_the_title_says_of_what_it_is_and_a_vector_picture_is_small():
    pytest.importorskip("matplotlib")
    graph = gs.training_step(gs.load("gpt2", batch=2, seq=64), optimizer="adamw", device="t4")
    run = gs.simulate(graph)
    assert plot.figure(run).axes[0].get_title(loc="left").startswith("gpt2, batch 2, adamw, t4: ")
    assert len(plot.picture(run, ".svg")) < 300_000


def test_another_suffix_is_refused(run):
    with pytest.raises(UsageError, match=r"\*\.png or \*\.svg or \*\.pdf"):
        plot.picture(run, ".gif")


def test_the_top_of_the_stack_is_the_timeline(run):
    pytest.importorskip("matplotlib")
    axes = plot.figure(run).axes[0]
    corners = np.concatenate([path.vertices for area in axes.collections for path in area.get_paths()])
    tops = [corners[(corners[:, 0] > at) | (corners[:, 0] == at), 1].max() for at in (0, run.peak_execution)]
    assert tops == [run.peak, run.peak]
    for at in range(0, len(run.schedule), 5):
        assert run.timeline[at] in corners[corners[:, 0] == at, 1]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [role.replace("_", " ") for role in ROLE_COLORS if run.timeline_by_role()[role].any()]
    assert any(f"peak {gs.units.format_bytes(run.peak)}" in text.get_text() for text in axes.texts)


def test_the_bars_are_the_composition_of_the_peak(run):
    pytest.importorskip("matplotlib")
    patches: list[Any] = plot.figure(run).axes[1].patches
    bars = [bar.get_width() for bar in patches]
    assert bars == sorted(size for size in run.by_role(run.peak_execution).values() if size)
    assert sum(bars) == run.peak


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"graphsim-memory\[plot\]"):
        plot.picture(run, ".png")
