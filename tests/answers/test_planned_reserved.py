"""Plans that fit what an allocator holds: the number of `peak` and of `fit`."""

from __future__ import annotations

import json

import pytest
from command_line import graphsim

import graphsim as gs
from graphsim.answers import planned
from graphsim.answers.need import need_of
from graphsim.core.simulation import in_succession, simulate
from graphsim.errors import UsageError
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.sources import source_of
from graphsim.step.training import Training

ALLOCATORS = {"": TorchCaching(), "expandable_segments=True": TorchCaching(expandable_segments=True)}


@pytest.mark.parametrize("options", ALLOCATORS)
@pytest.mark.parametrize("first", [False, True])
def test_without_recompute_it_is_what_peak_says(options, first):
    said = {"batch": 256, "allocator": "torch", "allocator_options": options}
    held = gs.plan("lenet5", strategy="none", first=first, **said).reserved_bytes
    steps = gs.peak("lenet5", **said)
    peaks = (steps.first.reserved_peak_bytes, steps.steady.reserved_peak_bytes)
    assert held == max(peak for peak in peaks if peak)


SMALL = {"batch": 8, "seq": 128, "optimizer": "sgd", "params": {"layers": 3, "vocab": 1000}}


@pytest.mark.parametrize(("options", "share"), [("", 0.9), ("expandable_segments=True", 0.8)])
def test_step_1_and_a_later_step_in_one_stream_hold_no_more_than_the_budget(options, share):
    said = {"allocator": "torch", "allocator_options": options, "strategy": "greedy"}
    made, allocator = gs.plan("gpt2", budget=f"{share}x", **SMALL, **said), ALLOCATORS[options]
    stored = gs.plan("gpt2", **SMALL, **said | {"strategy": "none"})
    assert made.feasible
    assert made.plan.time > made.plan.base_time, "and something runs again"
    assert made.plan.budget == int(share * stored.reserved_bytes)
    first = gs.plan("gpt2", budget=made.plan.budget, first=True, **SMALL, **said)
    assert first.reserved_bytes == made.reserved_bytes <= made.plan.budget
    both = in_succession(simulate(first.graph, first.schedule), simulate(made.graph, made.schedule))
    assert allocator(both.trace).reserved_peak == made.reserved_bytes


def test_a_search_within_what_an_allocator_holds_ends_within_it(monkeypatch):
    monkeypatch.setattr(planned, "SECONDS", 0.2)
    made = gs.plan("gpt2", budget="0.95x", options="seconds=0.5", allocator="torch", **SMALL)
    assert made.feasible
    assert made.reserved_bytes <= made.plan.budget
    assert made.plan.time_bound <= made.plan.time
    assert made.least <= made.plan.time


def test_it_is_what_fit_says():
    source, training = source_of("resnet18", batch=16), Training()
    stored = need_of(source, training)
    made = gs.plan(source, budget=int(0.8 * stored), strategy="rotor", allocator="torch")
    assert made.reserved_bytes == need_of(source, training, "rotor", int(0.8 * stored)) < stored
    assert made.feasible == (made.reserved_bytes <= 0.8 * stored)


def test_a_plan_whose_live_bytes_fit_but_not_what_is_held_is_none():
    held = gs.plan("lenet5", batch=256, strategy="none", allocator="torch").reserved_bytes
    asked = ("plan", "lenet5", "--batch", "256", "--allocator", "torch", "--budget")
    done = graphsim(*asked, str(held - 1), "--strategy", "none")
    assert done.returncode == 1
    assert f"for which the allocator holds {held:,}" in done.stderr
    fits = graphsim(*asked, str(held), "--json")
    assert json.loads(fits.stdout)["reserved_bytes"] == held


def test_a_limit_beside_the_budget_is_refused():
    with pytest.raises(UsageError, match="the --budget is the limit"):
        gs.plan("lenet5", budget="1GiB", allocator="torch", allocator_options="limit=1GiB")
    done = graphsim("plan", "torch:a:b", "--budget", "1GiB", "--allocator", "torch", "--emit", "torch")
    assert (done.returncode, "leave --allocator out" in done.stderr) == (2, True)
