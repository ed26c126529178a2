"""Shape ops: views are free, copies are not, and gradients go the same way; against torch."""

from __future__ import annotations

import pytest
from oracle import assert_close

torch = pytest.importorskip("torch")
nn = torch.nn


class Through(nn.Module):
    """A linear layer whose output goes through a function."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(24, 24)
        self.function = function
        self.token = nn.Parameter(torch.zeros(1, 3, 24)) if function is None else None

    def forward(self, x):
        y = self.linear(x)
        return torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) if self.function is None else self.function(y)


@pytest.mark.parametrize(
    ("layers", "function"),
    [
        ('{ op = "reshape", shape = [8, -1] }', lambda y: y.reshape(8, -1)),
        ('{ op = "transpose" }', lambda y: y.transpose(1, 2)),
        ('{ op = "transpose" }, { op = "reshape", shape = [8, -1] }', lambda y: y.transpose(1, 2).reshape(8, -1)),
        ('{ op = "flatten" }', lambda y: y.flatten(1)),
        ('{ op = "concat", with = "lin", dim = 2 }', lambda y: torch.cat([y, y], 2)),
        ('{ op = "slice", dim = 1, start = 2, length = 5 }', lambda y: y[:, 2:7]),
        ('{ op = "select", dim = 1, index = 3 }', lambda y: y[:, 3]),
        ('{ op = "mean", dims = [1] }', lambda y: y.mean(1)),
        ('{ op = "pad", amounts = [1, 2] }', lambda y: nn.functional.pad(y, (1, 2))),
        (
            '{ op = "split", parts = 3, dim = 2, name = "s" }, { op = "mul", from = "s:0", with = "s:2" }',
            lambda y: (lambda a, b, c: a * c)(*y.split(8, 2)),
        ),
        ('{ op = "learned", shape = [1, 3, 24], from = "x", name = "t" }, { op = "concat", with = "lin" }', None),
    ],
)
def test_a_shape_op_allocates_what_torch_allocates(layers, function):
    net, x = Through(function), torch.randn(8, 10, 24)
    y = torch.randn_like(net(x))
    spec = f"""
    [inputs]
    x = {{ shape = [8, 10, 24] }}
    y = {{ shape = {list(y.shape)} }}
    [model]
    layers = [{{ op = "linear", out = 24, name = "lin" }}, {layers}, {{ op = "mse", with = "y" }}]
    """
    assert_close(lambda: nn.functional.mse_loss(net(x), y), spec)
