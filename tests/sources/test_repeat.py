"""Layers that stand several times in a row."""

from __future__ import annotations

import pytest

from graphsim.sources.spec import parse_spec

SPEC = """
[params]
times = 3
[inputs]
x = {{ shape = [4, 8] }}
y = {{ shape = [4, 8] }}
[block.dense]
layers = [{{ op = "linear", out = 8, bias = false }}, "relu"]
[model]
layers = [
  {{ op = "sigmoid", name = "a" }},
  {{ op = "tanh", from = "x", name = "b" }},
  {{ {what}, from = "a", repeat = "times", name = "h" }},
  {{ op = "mse", with = "y" }},
]
"""


@pytest.mark.parametrize("what", ['op = "linear", out = 8', 'block = "dense"'])
def test_a_repeated_layer_starts_at_from_and_is_then_fed_by_itself(what):
    graph = parse_spec(SPEC.format(what=what))
    made_by = {name: op for op in graph.ops for name in op.outputs}
    reached = made_by[graph.ops[-1].inputs[0]]
    steps = 0
    while reached.name != "a":
        steps += reached.kind == "linear"
        reached = made_by[reached.inputs[0]]
    assert steps == 3


@pytest.mark.parametrize("what", ['op = "linear", out = 8', 'block = "dense"'])
def test_repeated_zero_times_it_hands_on_what_came_in(what):
    graph = parse_spec(SPEC.format(what=what), times=0)
    assert graph.ops[-1].inputs[0] == "a"
