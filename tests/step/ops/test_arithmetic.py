"""Arithmetic and selection as exported graphs have them: what autograd saves, what its formulas allocate."""

from __future__ import annotations

import pytest
from oracle import assert_close

torch = pytest.importorskip("torch")
nn = torch.nn

FUNCTIONS = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "neg": torch.neg,
    "rsub": lambda h: 1.0 - h,
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "softplus": nn.functional.softplus,
    "hardsigmoid": nn.functional.hardsigmoid,
    "selu": nn.functional.selu,
    "clamp": lambda h: torch.clamp(h, -1.0, 1.0),
    "power": lambda h: h**3.0,
    "shift": lambda h: h + 1.0,
    "log_softmax": lambda h: torch.log_softmax(h, -1),
}


def spec(*layers: str, shape: tuple[int, ...] = (64, 100)) -> str:
    return f"""
    [inputs]
    x = {{ shape = [64, 100] }}
    y = {{ shape = {list(shape)} }}
    [model]
    layers = [{{ op = "linear", out = 100, name = "lin" }}, {", ".join(layers)}, {{ op = "mse", with = "y" }}]
    """


def compare(function, *layers: str, shape: tuple[int, ...] = (64, 100)) -> None:
    net, x, y = nn.Linear(100, 100), torch.randn(64, 100), torch.randn(shape)
    assert_close(lambda: nn.functional.mse_loss(function(net(x)), y), spec(*layers, shape=shape))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_saves_what_its_derivative_reads(name):
    compare(FUNCTIONS[name], f'"{name}"')


PAIRS = {"sub": torch.sub, "div": torch.div}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_of_learned_operands(name):
    compare(lambda h: PAIRS[name](h, torch.tanh(h)), '"tanh"', f'{{ op = "{name}", from = "lin", with = "1_tanh" }}')


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_with_broadcasting(name):
    compare(
        lambda h: PAIRS[name](h, h.mean(1, keepdim=True)),
        '{ op = "mean", dims = [1], keep = true }',
        f'{{ op = "{name}", from = "lin", with = "1_mean" }}',
    )


def test_where_saves_its_condition():
    compare(
        lambda h: torch.where(h.detach() > 0, h, torch.tanh(h)),
        '"tanh"',
        '{ op = "compute", from = "lin", shape = [64, 100], dtype = "bool", name = "mask" }',
        '{ op = "where", from = "mask", with = ["lin", "1_tanh"] }',
    )


def test_a_sum_has_an_expanded_gradient():
    compare(lambda h: torch.tanh(h).sum(1), '"tanh"', '{ op = "sum", dims = [1] }', shape=(64,))


def test_selected_slices_are_added_into_zeros():
    indices = torch.arange(50)
    compare(
        lambda h: torch.tanh(h).index_select(0, indices),
        '"tanh"',
        '{ op = "index_select", count = 50 }',
        shape=(50, 100),
    )


def test_every_second_column_is_a_view():
    compare(lambda h: torch.tanh(h)[:, ::2], '"tanh"', '{ op = "part", shape = [64, 50] }', shape=(64, 50))


def test_dimensions_in_another_order_are_a_view():
    compare(
        lambda h: torch.tanh(torch.tanh(h).view(8, 8, 100).permute(2, 0, 1)),
        '"tanh"',
        '{ op = "reshape", shape = [8, 8, 100] }',
        '{ op = "permute", order = [2, 0, 1] }',
        '"tanh"',
        shape=(100, 8, 8),
    )


def test_a_product_of_transposed_heads_folds_them_into_copies():
    def function(h):
        heads = h.view(4, 16, 5, 20).transpose(1, 2)
        return heads @ heads.transpose(-2, -1)

    compare(
        function,
        '{ op = "reshape", shape = [4, 16, 5, 20] }',
        '{ op = "transpose", a = 1, b = 2, name = "heads" }',
        '{ op = "matmul", from = "heads", with = "heads", transpose = true }',
        shape=(4, 5, 16, 16),
    )
