"""Pools and upsampling: shapes and what they save, against torch."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import assert_close

from graphsim.errors import SpecError
from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        ('{ op = "max_pool", kernel = 2 }', nn.MaxPool2d(2)),
        ('{ op = "max_pool", kernel = 3, stride = 2, padding = 1 }', nn.MaxPool2d(3, 2, 1)),
        ('{ op = "avg_pool", kernel = 2 }', nn.AvgPool2d(2)),
        ('{ op = "adaptive_avg_pool", size = 5 }', nn.AdaptiveAvgPool2d(5)),
        ('{ op = "adaptive_avg_pool", size = 1 }', nn.AdaptiveAvgPool2d(1)),
        ('{ op = "adaptive_max_pool", size = 5 }', nn.AdaptiveMaxPool2d(5)),
        ('{ op = "upsample", factor = 2 }', nn.Upsample(scale_factor=2)),
        ('{ op = "upsample", factor = 2, mode = "bilinear" }', nn.Upsample(scale_factor=2, mode="bilinear")),
    ],
)
def test_a_pool_allocates_what_torch_allocates(layer, module):
    net = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.Tanh(), module)
    x = torch.randn(2, 16, 20, 20)
    y = torch.randn_like(net(x))
    spec = f"""
    [inputs]
    x = {{ shape = [2, 16, 20, 20] }}
    y = {{ shape = {list(y.shape)} }}
    [model]
    layers = [{{ op = "conv2d", out = 16, kernel = 1, bias = false }}, "tanh", {layer}, {{ op = "mse", with = "y" }}]
    """
    assert_close(lambda: nn.functional.mse_loss(net(x), y), spec, within=10_500)


@given(
    extent=st.integers(1, 20),
    kernel=st.integers(1, 6),
    stride=st.integers(1, 6),
    padding=st.integers(0, 3),
    ceil=st.booleans(),
)
def test_the_extent_of_a_pool_is_that_of_torch(extent, kernel, stride, padding, ceil):
    assume(2 * padding <= kernel)
    text = f"""
    inputs.x.shape = [1, 1, {extent}, {extent}]
    [model]
    layers = [{{ op = "max_pool", name = "p", kernel = {kernel}, stride = {stride}, padding = {padding},
     ceil = {str(ceil).lower()} }}]
    """.replace("\n     ceil", " ceil")
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    try:
        wanted = tuple(pool(torch.zeros(1, 1, extent, extent)).shape)
    except RuntimeError:
        with pytest.raises(SpecError):
            parse_spec(text)
    else:
        assert parse_spec(text).tensors["p"].shape == wanted
