"""The arithmetic of a step takes time in proportion to what the ops do."""

from __future__ import annotations

import numpy as np
import pytest

import graphsim as gs
from graphsim.measured.replay.compute import MATRIX, REDUCTION, _Arithmetic, measure
from graphsim.recompute.strategies import STRATEGIES
from graphsim.step.ops import kinds


class Counting:
    """numpy that notes the flops and bytes it is asked for."""

    def __init__(self) -> None:
        self.flops = 0
        self.moved = 0

    zeros = staticmethod(np.zeros)

    def matmul(self, a, b, out):
        assert out.shape == (a.shape[0], b.shape[1])
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]

    def add(self, a, b, out):
        assert a is b is out
        self.moved += 2 * a.nbytes


@pytest.mark.parametrize("name", ["vgg16", "gpt2", "lstm_lm", "llama3_8b"])
def test_products_have_the_flops_of_their_ops_and_passes_the_bytes(name):
    params = {"gpt2": {"batch": 2, "seq": 256}, "vgg16": {"batch": 8}, "llama3_8b": {"layers": 1, "seq": 64}}
    step = gs.training_step(gs.load(name, **params.get(name, {})), optimizer="sgd")
    counting = Counting()
    arithmetic = _Arithmetic(step, counting)
    for op in step.ops:
        before = counting.flops, counting.moved
        work = arithmetic.work(op)
        if op.kind in REDUCTION:
            continue
        work()
        flops, moved = counting.flops - before[0], counting.moved - before[1]
        if op.kind in MATRIX and op.flops > 1e7:
            assert flops == pytest.approx(op.flops, rel=0.35)
        elif op.kind not in MATRIX and op.moved > 100:
            assert moved == pytest.approx(op.moved, rel=0.1)
    total = sum(op.flops for op in step.ops if op.kind in MATRIX)
    assert counting.flops == pytest.approx(total, rel=0.1)


def test_the_time_of_recompute_stands_apart():
    step = gs.training_step(gs.load("lenet5", batch=64), optimizer="sgd", target="cpu")
    plain = measure(gs.simulate(step), np)
    assert set(plain.by_phase) == {"forward", "backward", "optimizer"}
    assert sum(plain.by_phase.values()) == pytest.approx(plain.total)
    assert len(plain.seconds) == len(step.ops)
    again = measure(gs.simulate(step, STRATEGIES["sqrt"]()(step).schedule), np)
    assert again.by_phase["recompute"] > 0


def test_every_kind_that_multiplies_matrices_is_counted_as_such():
    made = set()
    for name in ("resnet18", "gpt2", "lstm_lm", "unet", "mixtral_8x7b"):
        graph = gs.load(name, **({"layers": 1} if name in ("gpt2", "mixtral_8x7b") else {}))
        step = gs.training_step(graph, optimizer="sgd")
        made |= {op.kind for op in step.ops if op.flops > 8 * max(1, op.moved)}
    assert made <= MATRIX
    assert kinds()
