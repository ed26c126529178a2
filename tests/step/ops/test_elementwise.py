"""Elementwise ops: what autograd saves, also in place, against torch."""

from __future__ import annotations

import pytest
from oracle import assert_close

torch = pytest.importorskip("torch")
nn = torch.nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def spec(*layers: str) -> str:
    return f"""
    [inputs]
    x = {{ shape = [64, 100] }}
    y = {{ shape = [64, 100] }}
    [model]
    layers = [{{ op = "linear", out = 100, name = "lin" }}, {", ".join(layers)}, {{ op = "mse", with = "y" }}]
    """


def compare(function, *layers: str) -> None:
    net, x, y = nn.Linear(100, 100), torch.randn(64, 100), torch.randn(64, 100)
    assert_close(lambda: nn.functional.mse_loss(function(net(x)), y), spec(*layers))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_saves_what_its_derivative_reads(name):
    compare(ACTIVATIONS[name](), f'"{name}"')


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"gelu", "sigmoid", "tanh"}))
def test_an_activation_in_place_clones_its_input_if_its_derivative_reads_it(name):
    compare(ACTIVATIONS[name](inplace=True), f'{{ op = "{name}", inplace = true }}')


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_sigmoid_and_tanh_in_place_save_their_result(name):
    compare(getattr(torch, f"{name}_"), f'{{ op = "{name}", inplace = true }}')


def test_dropout_on_the_cpu_saves_a_mask_in_the_inputs_dtype():
    compare(nn.Dropout(0.3), '{ op = "dropout", p = 0.3 }')


def test_dropout_of_probability_zero_is_nothing():
    compare(nn.Identity(), '{ op = "dropout", p = 0.0 }')


def test_the_python_gelu_saves_every_intermediate_factor():
    import math

    def gelu_new(x):
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))

    compare(gelu_new, '"gelu_new"')


def test_a_product_saves_both_factors_and_a_sum_neither():
    compare(lambda h: h * torch.tanh(h), '"tanh"', '{ op = "mul", from = "lin", with = "1_tanh" }')
    compare(lambda h: h + torch.tanh(h), '"tanh"', '{ op = "add", from = "lin", with = "1_tanh" }')


def test_broadcasting_is_undone_by_a_sum():
    compare(
        lambda h: h + h.mean(1, keepdim=True),
        '{ op = "mean", dims = [1], keep = true }',
        '{ op = "add", from = "lin", with = "1_mean" }',
    )
