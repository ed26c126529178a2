"""Min-cut: PyTorch's own partitioner on the same joint graph, cuts by brute force, and what runs again when."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch._functorch import config, partitioners
from torch._functorch._activation_checkpointing.knapsack import dp_knapsack
from torch._functorch.aot_autograd import aot_module

import graphsim as gs
from graphsim.core.graph import Graph, Op, Phase, Role, Tensor
from graphsim.core.kernels import base_kind
from graphsim.core.simulation import simulate
from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.plan import make_plan
from graphsim.recompute.problem import problem_of
from graphsim.recompute.solvers.mincut_graph import ALLOWED, DECOMPOSED, RANDOM, Bans, JointGraph, is_intensive
from graphsim.recompute.strategies.mincut import Cuts, Knapsack, MinCut

SETTINGS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


# -- PyTorch's partitioner -----------------------------------------------------------------------------


class Block(torch.nn.Module):
    """Matmuls and what fuses between them, with a residual connection; no views and no kernels with several outputs."""

    def __init__(self, width: int, inner: int, activation: Any) -> None:
        super().__init__()
        self.first = torch.nn.Linear(width, inner)
        self.second = torch.nn.Linear(inner, width)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.activation(self.first(torch.sigmoid(x) * 2.0)))


def plain() -> torch.nn.Sequential:
    """Layers of three widths, without residuals."""
    layers = [torch.nn.Linear(8 * (i % 3 + 1), 8 * ((i + 1) % 3 + 1)) for i in range(8)]
    return torch.nn.Sequential(*[module for layer in layers for module in (layer, torch.nn.SiLU())])


MODELS = {
    "silu": lambda: torch.nn.Sequential(*[Block(16, 64, torch.nn.functional.silu) for _ in range(6)]),
    "gelu": lambda: torch.nn.Sequential(*[Block(32, 8, torch.nn.functional.gelu) for _ in range(4)]),
    "uneven": lambda: torch.nn.Sequential(*[Block(8, 2 ** (2 + i), torch.tanh) for i in range(6)]),
    "plain": plain,
}


def partition(model: torch.nn.Module, batch: torch.Tensor) -> tuple[Any, Any, dict[float, list[Any]]]:
    """Return the joint graph, its classification and what PyTorch saves at each setting."""
    seen: list[tuple[Any, Any, dict[float, list[Any]]]] = []
    choose = partitioners.choose_saved_values_set

    def watch(joint: Any, info: Any, memory_budget: float = 1) -> list[Any]:
        seen.append((joint, info, {setting: choose(joint, info, setting) for setting in SETTINGS}))
        return seen[-1][2][memory_budget]

    def split(module: Any, inputs: Any, **options: Any) -> Any:
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.detach.default):
            node.replace_all_uses_with(node.args[0])  # Inductor has removed them by then
        everything = list(range(len(module.graph.find_nodes(op="placeholder"))))
        options["static_lifetime_input_indices"] = everything
        return partitioners.min_cut_rematerialization_partition(module, inputs, **options)

    with pytest.MonkeyPatch.context() as patch, config.patch(treat_parameters_as_free_to_save=True):
        patch.setattr(partitioners, "choose_saved_values_set", watch)
        aot_module(model, fw_compiler=lambda module, _: module, partition_fn=split)(batch)
    return seen[-1]


def graph_of(joint: Any, info: Any) -> Graph:
    """Return the joint graph as ours: an op per aten op, its time what PyTorch estimates."""
    ops, tensors = [], []
    for node in joint.nodes:
        if node.op == "output":
            continue
        inputs = tuple(source.name for source in node.all_input_nodes)
        shape = tuple(node.meta["val"].shape)
        if node.op == "placeholder":
            role = Role.GRADIENT if "tangents" in node.name else Role.PARAMETER
            tensors.append(Tensor(node.name, shape, "float32", role))
            continue
        kind = node.target._overloadpacket.__name__
        over = inputs[0] if kind in ("t", "view", "expand") else ""
        base = next((t.base for t in tensors if t.name == over), "")
        phase = Phase.FORWARD if info.is_required_fw(node) else Phase.BACKWARD
        time = 0.0 if over else float(partitioners.estimate_runtime(node))
        ops.append(Op(node.name, kind, inputs, (node.name,), phase, time=time))
        tensors.append(Tensor(node.name, shape, "float32", storage=base))
    outputs = [n.name for n in next(n for n in joint.nodes if n.op == "output").all_input_nodes]
    return Graph(ops, tensors, outputs=outputs)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_what_pytorchs_partitioner_saves(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    joint, info, saved = partition(model, torch.randn(128, next(model.parameters()).shape[1]))
    graph = graph_of(joint, info)
    cuts, names = Cuts(Case(graph)), list(graph.tensors)
    sources, different = {node.name for node in info.inputs}, set()
    for setting in SETTINGS:
        theirs = {graph.tensors[node.name].base for node in saved[setting]} - sources
        ours = {names[tensor] for tensor in storages(graph)[list(cuts.choose(setting).saved)].tolist()}
        assert sum(graph.tensors[n].nbytes for n in ours) == sum(graph.tensors[n].nbytes for n in theirs), setting
        assert ours == theirs, setting
        different.add(frozenset(ours))
    assert len(different) > 3, "the settings lead to different plans"


def storages(graph: Graph) -> Any:
    """Return the tensor of each value of the problem."""
    index = graph.index
    return np.array([s for s in index.storages.tolist() if not index.resident[s]])


def names_of(ops: Any) -> set[str]:
    return {base_kind(getattr(op, "_opname", getattr(op, "__name__", ""))) for op in ops}


def test_the_lists_of_ops_are_pytorchs():
    lists = partitioners.get_default_op_list()
    packets = [op for op in lists.recomputable_ops if isinstance(op, torch._ops.OpOverloadPacket)]
    aten = {
        base_kind(op._qualified_op_name.partition("::")[2])
        for op in packets
        if op._qualified_op_name.startswith("aten")
    }
    odd = {
        name
        for name in aten
        if name.startswith("special_") or name in ("and", "or", "xor", "ilshift", "ixor", "lshift", "rshift")
    }
    assert aten - odd == ALLOWED
    assert names_of(lists.random_ops) <= RANDOM
    assert all(map(is_intensive, names_of(lists.compute_intensive_ops)))
    assert not ALLOWED & RANDOM
    assert not any(map(is_intensive, ALLOWED | DECOMPOSED | RANDOM))


@pytest.mark.parametrize("seed", range(20))
def test_the_knapsack_is_pytorchs(seed):
    chance = random.Random(seed)
    count = chance.randint(1, 30)
    sizes = [chance.choice([chance.random() / 3, 4e-5, 0.1, 1.5]) for _ in range(count)]
    worth = [float(chance.randint(1, 9)) for _ in range(count)]
    knapsack = Knapsack(sizes, np.array(worth))
    for setting in SETTINGS:
        _, saved, _ = dp_knapsack(sizes, worth, setting)
        assert sorted(knapsack.choose(setting)) == saved


# -- the cut, and the schedule of a cut ----------------------------------------------------------------

KINDS = ("relu", "mul", "addmm", "cat", "sum", "dropout", "max_pool")


def joint_graph(seed: int) -> Graph:
    """A forward pass of 4 to 9 ops and, for each, a backward op that reads what it read, or what it made."""
    chance = random.Random(seed)
    count = chance.randint(4, 9)
    ops, tensors = [], [Tensor("x", (64,), "uint8", Role.INPUT)]
    for i in range(count):
        inputs = tuple(sorted(chance.sample([t.name for t in tensors], min(len(tensors), chance.randint(1, 2)))))
        ops.append(Op(f"f{i}", chance.choice(KINDS), inputs, (f"v{i}",), time=float(chance.randint(1, 9))))
        tensors.append(Tensor(f"v{i}", (chance.randint(1, 64),), "uint8"))
    gradient: tuple[str, ...] = ()
    for op in reversed(ops[:]):
        read = chance.choice([op.outputs, op.inputs, ()])
        ops.append(Op(f"d{op.name}", chance.choice(("mul", "mm")), read + gradient, (f"g{op.name}",), Phase.BACKWARD))
        tensors.append(Tensor(f"g{op.name}", (8,), "uint8"))
        gradient = (f"g{op.name}",)
    return Graph(ops, tensors, outputs=gradient)


@pytest.mark.parametrize("bans", [Bans(), Bans(False, False, False), Bans(False, False, False, False)])
@pytest.mark.parametrize("seed", range(40))
def test_no_choice_of_what_runs_again_weighs_less_than_the_cut(seed, bans):
    graph = joint_graph(seed)
    joint = JointGraph(graph, problem_of(graph))
    banned = joint.banned(bans)

    def weight(again: set[int]) -> int:
        others = {value for value, unit in joint.values.items() if unit not in again}
        return sum(joint.weight[v] for v in others if joint.backward[v] or again.intersection(joint.readers[v]))

    able = [unit for unit in joint.units if unit not in banned]
    choices = [set(again) for size in range(len(able) + 1) for again in combinations(able, size)]
    best = min(map(weight, choices))
    cut = joint.cut(banned)
    assert not cut.again & banned
    assert weight(set(cut.again)) == sum(joint.weight[value] for value in cut.saved) == best
    assert all(cut.again <= again for again in choices if weight(again) == best), "the one nearest to backward"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_banned_elsewhere_and_what_was_cut_before_leave_the_cut_of_an_island_as_it_is(seed):
    graph, chance = joint_graph(seed), random.Random(seed)
    problem = problem_of(graph)
    joint = JointGraph(graph, problem)
    for _ in range(20):
        banned = {unit for unit in joint.units if chance.random() < 0.3} | joint.stored
        assert joint.cut(banned) == JointGraph(graph, problem).cut(banned)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("setting", [0.0, 0.3, 0.6, 1.0])
def test_what_is_not_saved_runs_again_once_when_backward_first_needs_it(seed, setting):
    graph = joint_graph(seed)
    cuts = Cuts(Case(graph))
    cut = cuts.choose(setting)
    order = cuts.schedule(cut).ops.tolist()
    counts = np.bincount(order)
    assert simulate(graph, cuts.schedule(cut)).peak > 0, "it would raise if anything were missing"
    again = {int(op) for op in np.flatnonzero(counts > 1)}
    assert again <= cut.again if setting == 0 else again == cut.again
    assert counts.max() <= 2
    for unit in again:
        place = len(order) - 1 - order[::-1].index(unit)
        behind = next(graph.ops[op] for op in order[place:] if graph.ops[op].phase is Phase.BACKWARD)
        needed, stack = set[str](), list(behind.inputs)
        while stack:
            name = stack.pop()
            needed.add(name)
            stack += [n for op in graph.ops if name in op.outputs and op.phase is Phase.FORWARD for n in op.inputs]
        assert f"v{unit}" in needed


def perceptron(layers: int) -> Graph:
    """Linear and ReLU in turn: 1,000 bytes each; backward of a layer reads its input."""
    ops, tensors = [], []

    def add(name: str, kind: str, inputs: tuple[str, ...], phase: Phase, time: float) -> None:
        ops.append(Op(name, kind, inputs, (name,), phase, time=time))
        tensors.append(Tensor(name, (1000,), "uint8"))

    tensors.append(Tensor("r0", (1000,), "uint8", Role.INPUT))
    for i in range(1, layers + 1):
        add(f"h{i}", "addmm", (f"r{i - 1}",), Phase.FORWARD, 10.0)
        add(f"r{i}", "relu", (f"h{i}",), Phase.FORWARD, 1.0)
    gradient: tuple[str, ...] = ()
    for i in range(layers, 0, -1):
        add(f"dr{i}", "relu_backward", (f"r{i}", *gradient), Phase.BACKWARD, 1.0)
        add(f"dh{i}", "mm", (f"r{i - 1}", f"dr{i}"), Phase.BACKWARD, 20.0)
        gradient = (f"dh{i}",)
    return Graph(ops, tensors, outputs=gradient)


def test_less_saved_can_mean_a_higher_peak_as_in_pytorch():
    graph = perceptron(32)
    cuts = Cuts(Case(graph))
    saved = [cuts.joint.saved_bytes(cuts.choose(setting)) for setting in (0.5, 0.3, 0.1)]
    peaks = [make_plan(graph, MinCut(setting)).peak_bytes for setting in (0.5, 0.3, 0.1)]
    assert saved == sorted(saved, reverse=True)
    assert peaks[0] <= peaks[1] <= peaks[2]
    assert saved[0] > saved[2]


@pytest.mark.parametrize("share", [0.9, 0.8, 0.7])
def test_the_search_finds_a_setting_whose_true_peak_fits_if_one_of_a_fine_grid_does(share):
    step = gs.training_step(gs.load("gpt2", batch=1, seq=64, layers=4), optimizer="sgd")
    budget = int(share * simulate(step).peak)
    grid = [make_plan(step, MinCut(setting / 50)) for setting in range(51)]
    plan = make_plan(step, MinCut(), budget)
    fitting = [entry.time for entry in grid if entry.peak_bytes <= budget]
    assert plan.feasible == bool(fitting)
    if fitting:
        assert plan.time <= 1.02 * min(fitting)


def test_a_setting_above_one_is_refused():
    with pytest.raises(UsageError, match="in 0"):
        MinCut(setting=1.5)
