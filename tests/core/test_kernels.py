"""The class of a kernel is stated once, and all that weigh ops by it agree, also for kernels of other packages."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

import graphsim as gs
from graphsim.cli.app import app
from graphsim.core.devices import DEVICES, op_seconds
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.kernels import Kernel, declared, kernel_of
from graphsim.measured.replay.compute import _Arithmetic
from graphsim.recompute.solvers.mincut_graph import is_intensive
from graphsim.recompute.spans import forward_passes
from graphsim.recompute.strategies.selective import attention_cores
from graphsim.sources.spec import parse_spec
from graphsim.step import ops
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Kind, Signature
from graphsim.step.ops.tape import Type

SPEC = """
[params]
batch = 8
[inputs]
tokens = { shape = ["batch", 64, 32] }
[model]
layers = [
  { op = "linear", out = 32, name = "x" },
  "tied_scores",
  { op = "softmax", name = "p" },
  { op = "matmul", with = "x" },
  { op = "linear", out = 1 },
  { op = "mean", dims = [0, 1, 2] },
]
"""


def tied_scores(tape, inputs, owned, attributes):
    """x times its transpose, in one kernel that nobody but its package knows."""
    (x,) = inputs
    batch, rows, width = x.shape
    flops = 2 * batch * rows * rows * width
    y = tape.emit("tied_scores", (x,), Type((batch, rows, rows), x.dtype), flops=flops)

    def backward(grad, needs):
        return (tape.emit("tied_scores_backward", (grad, x), like(x), flops=2 * flops),)

    tape.differentiate((x,), y, (x,), backward)
    return y


def scores_of(types, attributes):
    batch, rows, _ = types[0].shape
    return Signature((Type((batch, rows, rows), types[0].dtype),))


@pytest.fixture
def foreign(monkeypatch):
    """A package with one op, and the class of its kernels."""
    module = ModuleType("foreign_scores")
    kinds = (Kind("tied_scores", scores_of, tied_scores),)
    monkeypatch.setattr(module, "KINDS", kinds, raising=False)
    monkeypatch.setitem(sys.modules, "foreign_scores", module)
    offered = [
        EntryPoint("scores", "foreign_scores:KINDS", "graphsim.ops"),
        EntryPoint("tied_scores", "graphsim.core.kernels:BATCHED", "graphsim.kernels"),
        EntryPoint("tied_scores_backward", "graphsim.core.kernels:BATCHED", "graphsim.kernels"),
        EntryPoint("mm", "graphsim.core.kernels:REDUCTION", "graphsim.kernels"),
    ]

    def entry_points(*, group, name=None):
        return [e for e in offered if e.group == group and name in (None, e.name)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    for table in (declared, ops._others):
        table.cache_clear()
    yield
    for table in (declared, ops._others):
        table.cache_clear()


class Counting:
    zeros = staticmethod(np.zeros)

    def __init__(self):
        self.flops = 0

    def matmul(self, a, b, out):
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]


@pytest.mark.usefixtures("foreign")
def test_a_kernel_of_another_package_is_one_declaration_that_all_read(tmp_path):
    graph = parse_spec(SPEC)
    step = gs.training_step(graph, optimizer="sgd", precision="bf16", target="cuda", device="t4")
    position, op = next((i, op) for i, op in enumerate(step.ops) if op.kind == "tied_scores")

    slow = Graph(
        [Op("x", "tied_scores", (), ("x",), flops=10**15), Op("y", "gelu", (), ("y",), flops=10**15)],
        [Tensor("x", (1,), "bfloat16"), Tensor("y", (1,), "bfloat16")],
    )
    t4 = DEVICES["t4"]
    assert op_seconds(slow, t4) == pytest.approx([10**15 / t4.half, 10**15 / t4.fp32]), "matrix units"
    (forward,) = forward_passes(step)
    (core,) = attention_cores(forward)
    assert core.start == position, "selective recompute begins at the scores"
    assert is_intensive("tied_scores"), "the min-cut partitioner keeps them"
    counting = Counting()
    _Arithmetic(step, counting).work(op)()
    assert counting.flops == pytest.approx(op.flops, rel=0.01), "measured as a product"
    assert kernel_of("mm") is Kernel.PRODUCT, "ours are not replaced"

    spec = tmp_path / "tied.toml"
    spec.write_text(SPEC)
    result = CliRunner().invoke(app, ["plan", str(spec), "--budget", "8GiB", "--strategy", "selective"])
    assert result.exit_code == 0, result.output
    assert "tied_scores" in CliRunner().invoke(app, ["ops"]).output


def test_without_that_package_its_op_is_unknown():
    with pytest.raises(gs.GraphSimError, match="unknown op 'tied_scores'"):
        parse_spec(SPEC)
    assert kernel_of("tied_scores") is Kernel.ELEMENTWISE


def test_every_op_whose_flops_pytorch_counts_multiplies_matrices():
    counter = pytest.importorskip("torch.utils.flop_counter")
    names = {str(packet).rpartition(".")[2] for packet in counter.flop_registry}
    assert len(names) > 20
    assert {name for name in names if not kernel_of(name).multiplies} == set()


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_every_kernel_that_computes_much_more_than_it_moves_multiplies_matrices(target):
    made = {}
    for name in ("resnet18", "gpt2", "lstm_lm", "unet", "mixtral_8x7b"):
        graph = gs.load(name, **({"layers": 1} if name in ("gpt2", "mixtral_8x7b") else {}))
        step = gs.training_step(graph, optimizer="sgd", target=target)
        made |= {op.kind: kernel_of(op.kind) for op in step.ops if op.flops > 8 * max(1, op.moved)}
    assert {kind for kind, kernel in made.items() if not kernel.multiplies} == set()
    assert made["lstm_layer" if target == "cpu" else "cudnn_rnn"] is Kernel.RECURRENT


def test_marks_of_in_place_and_internal_ops_do_not_matter():
    assert kernel_of("_softmax") is kernel_of("softmax") is Kernel.REDUCTION
    assert kernel_of("_cudnn_rnn") is Kernel.RECURRENT
    assert kernel_of("_scaled_dot_product_flash_attention_for_cpu_backward") is Kernel.ATTENTION
    assert kernel_of("relu_") is kernel_of("add") is Kernel.ELEMENTWISE


def test_captured_attention_has_its_core_and_its_price():
    torch = pytest.importorskip("torch")

    class Attention(torch.nn.Module):
        """Attention, once in single ops and once in one kernel."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(32))

        def forward(self, x):
            x = x * self.scale
            x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
            return torch.nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])

    step = gs.from_torch(Attention, lambda: (torch.zeros(2, 64, 32),), optimizer=None)
    (forward,) = forward_passes(step)
    (core,) = attention_cores(forward)
    assert [step.ops[core.start].kind, step.ops[core.stop - 1].kind] == ["bmm", "bmm"]
    (fused,) = (op for op in step.ops if "attention" in op.kind and op.phase == "forward")
    assert kernel_of(fused.kind) is Kernel.ATTENTION
