"""Convolutions: shapes and parameters as torch has them, temporaries as oneDNN allocates them."""

from __future__ import annotations

import pytest
from oracle import assert_close

from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")
nn = torch.nn

SPEC = """
[inputs]
x = {{ shape = [{batch}, {channels}, {extents}] }}
y = {{ shape = {output} }}
[model]
layers = [
  {{ op = "conv2d", out = {channels}, kernel = 1, bias = false }},
  {{ op = "{op}", {attributes} }},
  {{ op = "mse", with = "y" }},
]
"""

CASES = {
    "3x3": {"cin": 64, "out": 64, "extent": 24, "kernel": 3, "padding": 1},
    "3x3 bias": {"cin": 32, "out": 64, "extent": 24, "kernel": 3, "padding": 1, "bias": True},
    "channels no multiple of 16": {"cin": 24, "out": 40, "extent": 20, "kernel": 3, "padding": 1},
    "1x1": {"cin": 64, "out": 128, "extent": 24, "kernel": 1},
    "few input channels": {"cin": 3, "out": 32, "extent": 32, "kernel": 5, "padding": 2},
    "one input channel": {"cin": 1, "out": 24, "extent": 32, "kernel": 5, "padding": 2},
    "dilated": {"cin": 32, "out": 32, "extent": 24, "kernel": 3, "padding": 2, "dilation": 2},
    "grouped": {"cin": 32, "out": 32, "extent": 24, "kernel": 3, "padding": 1, "groups": 4},
    "depthwise": {"cin": 32, "out": 32, "extent": 24, "kernel": 3, "padding": 1, "groups": 32},
    "deep": {"cin": 256, "out": 256, "extent": 7, "kernel": 3, "padding": 1},
}


def build(op: str, module: type, rank: int, cin: int, out: int, extent: int, bias: bool = False, **options: int):
    net = nn.Sequential(getattr(nn, f"Conv{2}d")(cin, cin, 1, bias=False), module(cin, out, bias=bias, **options))
    x = torch.randn(2, cin, *[extent] * rank)
    y = torch.randn_like(net(x))
    attributes = {"out": out, "kernel": options.pop("kernel_size"), "bias": str(bias).lower(), **options}
    spec = SPEC.format(
        batch=2,
        channels=cin,
        extents=", ".join([str(extent)] * rank),
        output=list(y.shape),
        op=op,
        attributes=", ".join(f"{key} = {value}" for key, value in attributes.items()),
    )
    return (lambda: nn.functional.mse_loss(net(x), y)), spec


@pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(),
    reason="the scratch of oneDNN's convolutions is modelled for its AVX-512 kernels, which this CPU cannot run",
)
@pytest.mark.parametrize("name", CASES)
def test_a_convolution_allocates_what_torch_allocates(name):
    case = {**CASES[name], "kernel_size": CASES[name]["kernel"]}
    del case["kernel"]
    forward, spec = build("conv2d", nn.Conv2d, 2, **case)
    # Where few weights meet much data, backward sums them per thread in a buffer of about their size.
    weights = case["out"] * case["cin"] // case.get("groups", 1) * case["kernel_size"] ** 2 * 4
    assert_close(forward, spec, within=min(weights, 100_000) + 12_000)


def test_a_transposed_convolution_allocates_what_torch_allocates():
    forward, spec = build("conv_transpose2d", nn.ConvTranspose2d, 2, cin=64, out=32, extent=16, kernel_size=2, stride=2)
    assert_close(forward, spec, relative=0.02)


def test_a_strided_convolution_allocates_what_torch_allocates():
    forward, spec = build("conv2d", nn.Conv2d, 2, cin=64, out=64, extent=32, kernel_size=3, stride=2, padding=1)
    assert_close(forward, spec, relative=0.02)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_patch_embedding_uses_im2col_for_the_gradient_of_its_weights(batch):
    net = nn.Conv2d(3, 768, 16, 16)
    x, y = torch.randn(batch, 3, 224, 224), torch.randn(batch, 768, 14, 14)
    spec = f"""
    [inputs]
    x = {{ shape = [{batch}, 3, 224, 224] }}
    y = {{ shape = [{batch}, 768, 14, 14] }}
    [model]
    layers = [{{ op = "conv2d", out = 768, kernel = 16, stride = 16 }}, {{ op = "mse", with = "y" }}]
    """
    assert_close(lambda: nn.functional.mse_loss(net(x), y), spec)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 1, 1), (4, 0, 1), (3, 2, 2)])
def test_shapes_and_parameters_are_those_of_torch(rank, transposed, stride, kernel, padding, dilation):
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    kind = getattr(nn, f"ConvTranspose{rank}d" if transposed else f"Conv{rank}d")
    net = kind(4, 6, kernel, stride=stride, padding=padding, dilation=dilation, groups=2)
    y = net(torch.randn(2, 4, *[9] * rank))
    graph = parse_spec(
        f"""
    inputs.x.shape = [2, 4, {", ".join(["9"] * rank)}]
    [model]
    layers = [{{ op = "{name}", name = "c", out = 6, kernel = {kernel}, stride = {stride}, padding = {padding},
    dilation = {dilation}, groups = 2 }}]
    """.replace("\n    dilation", " dilation")
    )
    assert graph.tensors["c"].shape == tuple(y.shape)
    assert graph.tensors["c.weight"].shape == tuple(net.weight.shape)
    assert graph.tensors["c.bias"].shape == tuple(net.bias.shape)


def test_same_keeps_the_extent():
    graph = parse_spec("""
    inputs.x.shape = [2, 1, 18, 5]
    [model]
    layers = [{ op = "conv2d", name = "c", out = 3, kernel = 5, same = true }]
    """)
    assert graph.tensors["c"].shape == (2, 3, 18, 5)
