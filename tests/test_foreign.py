"""What another package adds works as ours does: a strategy, an allocator, a frontend, a reporter, by entry points."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from command_line import graphsim

import graphsim as gs
from graphsim.core.layout import Layout
from graphsim.core.schedule import Schedule
from graphsim.sources import Frontend

HERE = __name__


@dataclass(frozen=True)
class Backwards:
    """A strategy of somebody else: it recomputes nothing."""

    def __call__(self, case, budget=None):
        return Schedule.of(case.graph)


@dataclass(frozen=True)
class Stack:
    """An allocator of somebody else: it never gives anything back."""

    caches: ClassVar[bool] = False

    def __call__(self, trace):
        address = np.concatenate([[0], np.cumsum(trace.nbytes)[:-1]]) if len(trace.nbytes) else trace.nbytes
        _, signed = trace.stream
        total = np.cumsum(np.maximum(signed, 0))
        return Layout(address, np.zeros_like(address), total, total)


def load_widths(source, **params):
    """Read ``widths:8,16``: linear layers of these widths."""
    from graphsim.sources.spec import parse_spec

    layers = ", ".join(f'{{ op = "linear", out = {width} }}' for width in source.removeprefix("widths:").split(","))
    text = f'[params]\nbatch = 2\n[inputs]\nx = {{ shape = ["batch", 4] }}\n[model]\nlayers = [{layers}]\n'
    return parse_spec(text, source, **params)


WIDTHS = Frontend(kind="model", load=load_widths, prefix="widths:", takes=lambda source, name: name == "batch")
FILES = Frontend(kind="model", load=lambda path: load_widths(Path(path).read_text()), suffixes=(".widths",))


@dataclass(frozen=True)
class Shout:
    """A reporter of somebody else."""

    def __call__(self, answer):
        return answer.headline.upper() + "\n"


@pytest.fixture
def installed(monkeypatch):
    offered = [
        EntryPoint("backwards", f"{HERE}:Backwards", "graphsim.strategies"),
        EntryPoint("stack", f"{HERE}:Stack", "graphsim.allocators"),
        EntryPoint("widths", f"{HERE}:WIDTHS", "graphsim.frontends"),
        EntryPoint("width files", f"{HERE}:FILES", "graphsim.frontends"),
        EntryPoint("shout", f"{HERE}:Shout", "graphsim.reporters"),
    ]

    def entry_points(*, group, name=None):
        return [e for e in offered if e.group == group and name in (None, e.name)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


@pytest.fixture
def run(installed):
    def command(*arguments: str) -> str:
        done = graphsim(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return command


def test_a_source_is_read_by_its_prefix_or_its_suffix(run, tmp_path):
    told = json.loads(run("peak", "widths:8,16", "--mode", "inference", "--batch", "4", "--json"))
    assert told["parameters"] == 4 * 8 + 8 + 8 * 16 + 16
    (tmp_path / "model.widths").write_text("8")
    assert json.loads(run("peak", str(tmp_path / "model.widths"), "--mode", "inference", "--json"))["parameters"] == 40


def test_a_strategy_plans(run):
    told = json.loads(run("plan", "lenet5", "--strategy", "backwards", "--json"))
    assert (told["strategy"], told["overhead"]) == ("backwards", 0.0)
    assert gs.plan("lenet5", strategy="backwards").feasible


def test_an_allocator_reserves(run):
    told = json.loads(run("peak", "lenet5", "--allocator", "stack", "--json"))
    assert told["steady"]["reserved_peak_bytes"] > told["steady"]["peak_bytes"]


def test_a_reporter_renders(run):
    assert run("peak", "lenet5", "--format", "shout").startswith("LENET5: PEAK")
