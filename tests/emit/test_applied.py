"""Written plans, applied to real models: gradients and statistics equal to the bit, the peak to the byte."""

from __future__ import annotations

from functools import cache

import pytest
from exhaustive import only

torch = pytest.importorskip("torch")

from emitted import captured, emission, load, real_peak, trained  # noqa: E402

from graphsim.core.simulation import simulate  # noqa: E402

CASES = [
    *(("perceptron", strategy) for strategy in ("blocks", "sqrt", "greedy", "auto")),
    *(("convolutional", strategy) for strategy in ("every_k", "greedy", "auto")),
    *(("transformer", strategy) for strategy in ("blocks", "greedy")),
    ("shared", "auto"),
]


@pytest.mark.parametrize(("name", "strategy"), only((CASES[1], CASES[4], CASES[7], CASES[9]), CASES))
def test_applied_to_the_real_model_nothing_changes_but_the_peak_which_is_the_predicted_one(name, strategy, tmp_path):
    made = emission(name, strategy)
    assert made.wrapped
    assert made.plan.peak_bytes < made.stored_peak
    assert made.plan.time > made.plan.base_time
    plan = load(made.text, tmp_path)
    gradients, state = trained(name)
    with_plan, state_with_plan = trained(name, plan.apply)
    assert list(state_with_plan) == list(state)
    assert all(torch.equal(with_plan[key], gradients[key]) for key in gradients)
    assert all(torch.equal(state_with_plan[key], state[key]) for key in state)
    assert real_peak(name, plan.apply) == made.plan.peak_bytes + unmodelled(name)


@cache
def unmodelled(name: str) -> int:
    """What a capture misses without any plan: the scratch of oneDNN's convolutions with so few channels."""
    missed = real_peak(name, lambda model: model) - simulate(captured(name).graph).peak
    assert name == "convolutional" or missed == 0
    return missed
