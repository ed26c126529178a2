"""The arithmetic of a step takes time in proportion to what the ops do."""

from __future__ import annotations

import numpy as np
import pytest

import graphsim as gs
from graphsim.core.kernels import Kernel, kernel_of
from graphsim.measured.replay.compute import _Arithmetic, measure
from graphsim.recompute.plan import make_schedule


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
        kernel = kernel_of(op.kind)
        if kernel is Kernel.REDUCTION:
            continue
        work()
        flops, moved = counting.flops - before[0], counting.moved - before[1]
        if kernel.multiplies and op.flops > 1e7:
            assert flops == pytest.approx(op.flops, rel=0.35)
        elif not kernel.multiplies and op.moved > 100:
            assert moved == pytest.approx(op.moved, rel=0.1)
    total = sum(op.flops for op in step.ops if kernel_of(op.kind).multiplies)
    assert counting.flops == pytest.approx(total, rel=0.1)


def test_the_time_of_recompute_stands_apart():
    step = gs.training_step(gs.load("lenet5", batch=64), optimizer="sgd", target="cpu")
    plain = measure(gs.simulate(step), np)
    assert set(plain.by_phase) == {"forward", "backward", "optimizer"}
    assert sum(plain.by_phase.values()) == pytest.approx(plain.total)
    assert len(plain.seconds) == len(step.ops)
    again = measure(gs.simulate(step, make_schedule(step, "sqrt")), np)
    assert again.by_phase["recompute"] > 0
