"""Which spans each strategy forms, and what it saves on real models."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from generators import chain

import graphsim as gs
from graphsim.core.graph import Graph, Op, Phase, Tensor
from graphsim.core.simulation import simulate
from graphsim.errors import UsageError
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies.blocks import Blocks
from graphsim.recompute.strategies.every_k import EveryK
from graphsim.recompute.strategies.greedy import Greedy
from graphsim.recompute.strategies.selective import Selective


@pytest.fixture(scope="module")
def gpt2() -> Graph:
    return gs.training_step(gs.load("gpt2", batch=2, seq=256, layers=6, vocab=1000, attention="eager"), optimizer="sgd")


def recomputed_blocks(graph: Graph, plan) -> list[str]:
    """The blocks whose matrix products run again, in the order of the forward pass."""
    again = np.flatnonzero(np.bincount(plan.schedule.ops) > 1)
    return [
        block for block, _ in groupby(".".join(graph.ops[i].layer.split(".")[:2]) for i in again if graph.ops[i].flops)
    ]


def test_every_block_runs_again_once_and_leaves_only_what_passes_on(gpt2):
    plan = make_plan(gpt2, Blocks(depth=2))
    assert set(recomputed_blocks(gpt2, plan)) >= {f"h.{i}" for i in range(6)}
    assert np.bincount(plan.schedule.ops).max() == 2
    turn = next(i for i, op in enumerate(gpt2.ops) if op.phase is Phase.BACKWARD)
    kept = simulate(gpt2, plan.schedule).by_role(turn)["saved_activations"]
    stored = simulate(gpt2).by_role(turn)["saved_activations"]
    # Of 7 parts, six blocks and the head, the last block and the head are whole; of each other, its input is left.
    assert kept < 0.45 * stored
    assert plan.peak_bytes < simulate(gpt2).peak


def test_every_other_block_costs_about_half(gpt2):
    every, other = make_plan(gpt2, Blocks(depth=2)), make_plan(gpt2, EveryK(k=2, depth=2))
    assert other.overhead == pytest.approx(every.overhead / 2, rel=0.25)
    assert every.peak_bytes < other.peak_bytes < simulate(gpt2).peak
    blocks = [b for b in recomputed_blocks(gpt2, other) if b.startswith("h.")]
    assert len(set(blocks)) == 3


def test_selective_recompute_runs_attention_cores_only(gpt2):
    plan = make_plan(gpt2, Selective())
    again = np.flatnonzero(np.bincount(plan.schedule.ops) > 1)
    kinds = {gpt2.ops[i].kind for i in again}
    assert {"bmm", "softmax", "dropout"} <= kinds
    assert not kinds & {"addmm", "layer_norm", "gelu"}
    assert {gpt2.ops[i].layer for i in again} == {f"h.{i}.attn" for i in range(6)}
    # Korthikanti et al., section 4.2: the core holds 5 a s^2 b of 34 s b h + 5 a s^2 b bytes per layer in 16 bits.
    assert plan.peak_bytes < simulate(gpt2).peak
    assert plan.overhead < 0.1


def test_fused_attention_leaves_selective_recompute_nothing_to_save():
    step = gs.training_step(gs.load("gpt2", batch=2, seq=64, layers=2), optimizer="sgd")
    plan = make_plan(step, Selective())
    assert (plan.peak_bytes, plan.overhead) == (simulate(step).peak, 0.0)


def test_greedy_makes_spans_of_bytes_not_of_ops():
    """Ten large values, then ninety small ones: almost all boundaries belong among the large ones."""
    sizes = [1000] * 10 + [10] * 90
    ops = [Op(f"f{i}", "n", (f"f{i - 1}",) if i else (), (f"f{i}",), time=1.0) for i in range(100)]
    ops += [
        Op(f"b{i}", "n", (f"f{i}", f"b{i + 1}")[: 1 + (i < 99)], (f"b{i}",), Phase.BACKWARD, time=1.0)
        for i in reversed(range(100))
    ]
    tensors = [Tensor(f"{kind}{i}", (size,), "uint8") for kind in "fb" for i, size in enumerate(sizes)]
    graph = Graph(ops, tensors)
    plan = make_plan(graph, Greedy())
    assert simulate(graph).peak > 11_000
    assert plan.peak_bytes <= 7_000
    assert plan.overhead < 0.5


def test_greedy_takes_the_cheapest_that_fits():
    graph = chain(64)
    tight, loose = make_plan(graph, Greedy(), 20_000), make_plan(graph, Greedy(), 40_000)
    assert tight.feasible
    assert loose.feasible
    assert loose.time < tight.time


@pytest.mark.parametrize(("strategy", "options"), [(Blocks, {"depth": 0}), (EveryK, {"k": 0}), (EveryK, {"depth": -1})])
def test_senseless_options_are_refused(strategy, options):
    with pytest.raises(UsageError, match="at least 1"):
        strategy(**options)
