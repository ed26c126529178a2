"""T5's position bias against its own attention layer, and what does not fit."""

from __future__ import annotations

import pytest
from oracle import assert_close

import graphsim as gs
from graphsim.errors import SpecError
from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SPEC = """
[inputs]
x = {{ shape = [3, 24, 32] }}
y = {{ shape = [1, 4, 24, 24] }}
ids = {{ shape = [3, 24], dtype = "int64" }}
[model]
layers = [{layers}]
"""


@pytest.mark.parametrize("decoder", [False, True])
def test_the_bias_allocates_what_t5_allocates(decoder):
    from transformers.models.t5.modeling_t5 import T5Attention

    config = transformers.T5Config(d_model=32, d_kv=8, num_heads=4, is_decoder=decoder)
    net = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    y = torch.randn(1, 4, 24, 24)
    layers = f'{{ op = "relative_bias", heads = 4, causal = {str(decoder).lower()} }}, {{ op = "mse", with = "y" }}'

    def forward():
        return torch.nn.functional.mse_loss(net.compute_bias(24, 24), y)

    assert_close(forward, SPEC.format(layers=layers), within=1024)  # 4 * 24 * 8: position vectors


def test_hold_keeps_a_tensor_beyond_its_last_use():
    before = '"tanh", { op = "tanh", name = "b" }, "relu", { op = "linear", out = 32 }'
    live = []
    for last in ('"relu"', '{ op = "hold", with = "b" }'):
        step = gs.training_step(parse_spec(SPEC.format(layers=f"{before}, {last}")), mode="inference", target="cpu")
        run = gs.simulate(step)
        product = next(i for i in range(len(step.ops)) if run.op_at(i).kind == "addmm")
        live.append(run.live_ranges.live_after(product))
    assert live[1] - live[0] == 3 * 24 * 32 * 4


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ('{ op = "relative_bias", heads = 4, from = "ids" }', r"needs \(batch, steps, width\)"),
        ('{ op = "bias_mask", from = "x" }', r"needs a bias \(1, heads, queries, keys\)"),
        ('{ op = "shift_right", from = "x" }', "needs integer labels"),
        ('{ op = "relative_bias", heads = 0, from = "x" }', "'heads' must be at least 1"),
    ],
)
def test_operands_that_do_not_fit_are_named(layers, message):
    with pytest.raises(SpecError, match=message):
        parse_spec(SPEC.format(layers=layers))
