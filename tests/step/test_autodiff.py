"""The rules of the backward engine, each on the smallest network that shows it, against torch."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from torch_memory import Measured, measure

from graphsim import simulate
from graphsim.core.graph import Graph, Phase, Role
from graphsim.errors import GraphError
from graphsim.step.autodiff import differentiate
from graphsim.step.ops import elementwise
from graphsim.step.ops.linear import linear
from graphsim.step.ops.loss import mse
from graphsim.step.ops.tape import Tape

torch = pytest.importorskip("torch")
F = torch.nn.functional

WIDTH = 256
SCALARS = 16


class Ours:
    """The operations of the networks below, on a tape."""

    def __init__(self, tape):
        self.tape = tape

    def relu(self, x, inplace=False):
        return elementwise.unary(self.tape, "relu", x, inplace=inplace)

    def tanh(self, x):
        return elementwise.unary(self.tape, "tanh", x)

    def sigmoid(self, x):
        return elementwise.unary(self.tape, "sigmoid", x)

    def add(self, a, b):
        return elementwise.add(self.tape, a, b)

    def mul(self, a, b):
        return elementwise.mul(self.tape, a, b)

    def linear(self, x, weight):
        return linear(self.tape, x, weight)


class Theirs:
    relu = staticmethod(F.relu)
    tanh = staticmethod(torch.tanh)
    sigmoid = staticmethod(torch.sigmoid)
    add = staticmethod(torch.add)
    mul = staticmethod(torch.mul)
    linear = staticmethod(F.linear)


class Network(NamedTuple):
    """A function of (operations, input, parameters) of square matrices; which parameters are frozen."""

    forward: object
    parameters: int = 2
    frozen: tuple[int, ...] = ()


def chain(n, x, w):
    return n.linear(n.tanh(n.linear(x, w[0])), w[1])


def chain_in_place(n, x, w):
    return n.linear(n.relu(n.linear(x, w[0]), inplace=True), w[1])


def deep(n, x, w):
    for weight in w:
        x = n.tanh(n.linear(x, weight))
    return x


def fan_out(n, x, w):
    h = n.linear(x, w[0])
    return n.linear(n.mul(n.tanh(h), n.sigmoid(h)), w[1])


def fan_out_of_three(n, x, w):
    h = n.linear(x, w[0])
    return n.add(n.add(n.tanh(h), n.sigmoid(h)), n.linear(h, w[1]))


def residual(n, x, w):
    h = n.linear(x, w[0])
    return n.add(h, n.tanh(n.linear(h, w[1])))


def residual_twice(n, x, w):
    h = n.linear(x, w[0])
    h = n.add(h, n.tanh(n.linear(h, w[1])))
    return n.add(h, n.tanh(n.linear(h, w[2])))


def tied(n, x, w):
    return n.linear(n.tanh(n.linear(x, w[0])), w[0])


def tied_thrice(n, x, w):
    return n.linear(n.tanh(tied(n, x, w)), w[0])


def doubled(n, x, w):
    h = n.linear(x, w[0])
    return n.add(h, h)


def squared(n, x, w):
    h = n.linear(x, w[0])
    return n.mul(h, h)


def sum_of_parameters(n, x, w):
    return n.add(w[0], w[1])


def parameter_twice(n, x, w):
    return n.add(w[0], n.tanh(w[0]))


NETWORKS = {
    "saved tensors go when their node has run": Network(chain),
    "an in-place activation saves its output once": Network(chain_in_place),
    "gradients go one by one": Network(deep, 5),
    "gradients of two consumers are summed in place": Network(fan_out),
    "gradients of three consumers are summed in place": Network(fan_out_of_three),
    "a residual sums into the gradient that passed by": Network(residual),
    "residuals in a row": Network(residual_twice, 3),
    "a tied weight sums views out of place": Network(tied, 1),
    "a weight tied thrice": Network(tied_thrice, 1),
    "one tensor as both operands of a sum": Network(doubled, 1),
    "one tensor as both operands of a product": Network(squared, 1),
    "a gradient shared by two parameters is cloned once and stolen once": Network(sum_of_parameters),
    "a parameter with two consumers": Network(parameter_twice, 1),
    "below a frozen first layer nothing runs": Network(chain, frozen=(0,)),
    "through a frozen layer gradients pass": Network(chain, frozen=(1,)),
    "frozen layers in the middle": Network(deep, 5, frozen=(1, 3)),
    "a frozen residual branch": Network(residual, frozen=(1,)),
}


def simulated(network: Network) -> tuple[Measured, Measured]:
    tape, loss, gradients = record(network)
    sim = simulate(Graph(tape.ops, tape.tensors.values(), outputs=[t.name for t in (loss, *gradients.values())]))
    peaks = sim.phase_peaks()
    forward, backward = (Measured(peaks[p], sim.phase_end_bytes(p)) for p in (Phase.FORWARD, Phase.BACKWARD))
    return forward, backward


def record(network: Network):
    tape = Tape("cpu")
    shape = (WIDTH, WIDTH)
    x, wanted = (tape.source(name, shape, "float32", Role.INPUT) for name in ("x", "wanted"))
    weights = [
        tape.source(f"{i}.weight", shape, "float32", Role.PARAMETER, requires_gradient=i not in network.frozen)
        for i in range(network.parameters)
    ]
    loss = mse(tape, network.forward(Ours(tape), x, weights), wanted)
    gradients = {}
    differentiate(tape, loss, gradients)
    return tape, loss, gradients


def measured(network: Network) -> tuple[Measured, Measured]:
    def run():
        x, wanted = torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH, WIDTH)
        weights = [torch.zeros(WIDTH, WIDTH, requires_grad=i not in network.frozen) for i in range(network.parameters)]
        with torch.profiler.record_function("##forward"):
            loss = F.mse_loss(network.forward(Theirs, x, weights), wanted)
        with torch.profiler.record_function("##backward"):
            loss.backward()

    result = measure(run)
    return result["forward"], result["backward"]


@pytest.mark.parametrize("rule", NETWORKS)
def test_backward_holds_what_torch_holds(rule):
    for ours, theirs in zip(simulated(NETWORKS[rule]), measured(NETWORKS[rule]), strict=True):
        assert abs(ours.peak - theirs.peak) <= SCALARS
        assert abs(ours.end - theirs.end) <= SCALARS


def kinds(network: Network) -> list[str]:
    tape, _, _ = record(network)
    return [op.kind for op in tape.ops if op.phase is Phase.BACKWARD]


def test_sums_at_a_fan_out_are_in_place_but_for_views():
    assert "add_" in kinds(Network(fan_out))
    assert "add" not in kinds(Network(fan_out))
    assert "add" in kinds(Network(tied, 1))


def test_only_a_shared_gradient_is_cloned():
    assert kinds(Network(sum_of_parameters)).count("clone") == 1
    assert "clone" not in kinds(Network(chain))


def test_frozen_parameters_have_no_gradient():
    _, _, gradients = record(Network(deep, 5, frozen=(1, 3)))
    assert sorted(gradients) == ["0.weight", "2.weight", "4.weight"]


def test_only_what_needs_a_gradient_costs_a_product():
    assert kinds(Network(chain)).count("mm") == 3  # two weights and what is between them, not the input
    assert kinds(Network(chain, frozen=(0,))).count("mm") == 1
    assert kinds(Network(chain, frozen=(1,))).count("mm") == 2


def test_a_second_backward_accumulates_in_place():
    tape, _, gradients = record(Network(chain))
    before = dict(gradients)
    tape.nodes.clear()
    tape.phase = Phase.FORWARD
    weights = [tape.tensors[f"{i}.weight"] for i in range(2)]
    loss = mse(tape, chain(Ours(tape), tape.tensors["x"], weights), tape.tensors["wanted"])
    differentiate(tape, loss, gradients)
    assert gradients == before
    assert [op.mutates for op in tape.ops if op.kind == "accumulate_"] == [("1.weight.grad",), ("0.weight.grad",)]


def test_a_loss_that_no_parameter_reaches_is_an_error():
    with pytest.raises(GraphError, match="nothing to train"):
        record(Network(chain, frozen=(0, 1)))
