"""Scratch inside of kernels that a capture adds: on the CPU what the profiler sees, on CUDA the rule of the source."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_memory import measure  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.sources.torch.kernels import WORKSPACE  # noqa: E402

aten = torch.ops.aten
PLAIN, SWAPPED = torch.randn(64, 32, 50), torch.randn(32, 64, 50).transpose(0, 1)
SIZE = PLAIN.numel() * PLAIN.itemsize
CASES = {
    "log_softmax": (aten._log_softmax.default, lambda x: (x, -1, False)),
    "log_softmax, middle": (aten._log_softmax.default, lambda x: (x, 1, False)),
    "softmax": (aten._softmax.default, lambda x: (x, -1, False)),
    "log_softmax backward": (aten._log_softmax_backward_data.default, lambda x: (x, PLAIN, -1, torch.float32)),
    "log_softmax backward, output": (aten._log_softmax_backward_data.default, lambda x: (PLAIN, x, -1, torch.float32)),
    "softmax backward": (aten._softmax_backward_data.default, lambda x: (x, PLAIN, 1, torch.float32)),
    "softmax backward, output": (aten._softmax_backward_data.default, lambda x: (PLAIN, x, 1, torch.float32)),
}


@pytest.mark.parametrize("operand", [PLAIN, SWAPPED], ids=["in order", "swapped"])
@pytest.mark.parametrize("name", CASES)
def test_a_softmax_puts_what_it_reads_in_order(name, operand):
    func, arguments = CASES[name]
    args = arguments(operand)

    def run():
        with torch.profiler.record_function("##op"):
            func(*args)

    assert measure(run)["op"].peak == SIZE + WORKSPACE["cpu"][func](args, None)


def test_a_safe_softmax_makes_truth_values_of_what_is_masked():
    func, x = aten._safe_softmax.default, PLAIN

    def run():
        with torch.profiler.record_function("##op"):
            func(x, -1)

    numbers = measure(run)["op"].peak - SIZE - WORKSPACE["cpu"][func]((x, -1), x)
    assert 0 <= numbers <= 8  # the infinity and the zero that it compares with and puts in


def test_the_backward_of_a_softmax_on_cuda_makes_a_product_first():
    model = nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1))
    step = gs.from_torch(model, torch.zeros(4, 8), optimizer="sgd", target="cuda")
    (backward,) = (op for op in step.ops if op.kind == "_softmax_backward_data")
    assert backward.workspace == 4 * 8 * 4
    spec = gs.training_step(gs.load("bert_base", batch=1, seq=16, layers=1, attention="math"), target="cuda")
    (lowered,) = (op for op in spec.ops if op.kind == "softmax_backward")
    assert lowered.workspace == spec.tensors[lowered.outputs[0]].nbytes
    host = gs.training_step(gs.load("bert_base", batch=1, seq=16, layers=1, attention="math"), target="cpu")
    assert not any(op.workspace for op in host.ops if op.kind == "softmax_backward")


def test_attention_inside_of_a_module_of_pytorch_is_the_fused_kernel():
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    step = gs.from_torch(layer, torch.zeros(2, 16, 64), target="cuda")
    kinds = Counter(op.kind for op in step.ops)
    assert kinds["_scaled_dot_product_efficient_attention"] == 1
    assert kinds["_scaled_dot_product_efficient_attention_backward"] == 1
    assert not kinds["bmm"]
