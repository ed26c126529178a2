"""Scratch of convolutions on the CPU, against what the profiler sees of the real kernel on this machine."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch_memory import measure  # noqa: E402

from graphsim.sources.torch import kernels_conv  # noqa: E402

aten = torch.ops.aten
LAST = {"format": torch.channels_last}
DOUBLE, HALF = {"dtype": torch.float64}, {"dtype": torch.bfloat16}
CASES = {
    "plain": ((4, 16, 32, 32), (32, 16, 3, 3), {}),
    "first layer": ((4, 3, 32, 32), (16, 3, 3, 3), {}),
    "strided": ((4, 32, 32, 32), (64, 32, 3, 3), {"stride": 2}),
    "grouped": ((4, 32, 32, 32), (32, 8, 3, 3), {"groups": 4}),
    "depthwise": ((4, 32, 32, 32), (32, 1, 3, 3), {"groups": 32}),
    "a single small image": ((1, 16, 16, 16), (16, 16, 3, 3), {}),
    "one dimension": ((4, 16, 100), (32, 16, 3), {}),
    "channels last": ((4, 16, 32, 32), (32, 16, 3, 3), LAST),
    "channels last, depthwise": ((4, 32, 32, 32), (32, 1, 3, 3), LAST | {"groups": 32}),
    "channels last, grouped": ((4, 64, 28, 28), (64, 8, 3, 3), LAST | {"groups": 8}),
    "double": ((4, 16, 32, 32), (32, 16, 3, 3), DOUBLE),
    "double, dilated": ((4, 16, 32, 32), (32, 16, 3, 3), DOUBLE | {"dilation": 2, "padding": 2}),
    "double, transposed": ((4, 32, 16, 16), (32, 16, 4, 4), DOUBLE | {"stride": 2, "transposed": True}),
    "double, volume": ((2, 8, 8, 16, 16), (16, 8, 3, 3, 3), DOUBLE),
}
NARROW = {
    "channels beside blocks of 16": ((4, 24, 32, 32), (40, 24, 3, 3), {}),
    "wide depthwise": ((4, 40, 28, 28), (40, 1, 7, 7), {"groups": 40, "padding": 3}),
    "wide strided depthwise": ((4, 32, 32, 32), (32, 1, 5, 5), {"groups": 32, "padding": 2, "stride": 2}),
    "dilated": ((4, 32, 32, 32), (32, 32, 3, 3), {"dilation": 2, "padding": 2}),
    "volume": ((2, 8, 8, 16, 16), (16, 8, 3, 3, 3), {}),
    "patches": ((2, 3, 64, 64), (64, 3, 16, 16), {"stride": 16, "padding": 0}),
    "low image": ((2, 64, 2, 8), (64, 64, 3, 3), {}),
    "channels last, dilated": ((4, 32, 32, 32), (32, 32, 3, 3), LAST | {"dilation": 2, "padding": 2}),
    "bf16": ((4, 16, 32, 32), (32, 16, 3, 3), HALF),
    "bf16, of points": ((4, 64, 16, 16), (32, 64, 1, 1), HALF | {"padding": 0}),
    "bf16, depthwise": ((4, 32, 32, 32), (32, 1, 3, 3), HALF | {"groups": 32}),
}
"""Where a processor with vectors of 16 numbers has other kernels."""

if not kernels_conv.WIDE:
    CASES |= NARROW


def operands(case):
    x, weight, options = CASES[case]
    rank = len(x) - 2
    stride, padding, dilation = (
        [options.get(n, d)] * rank for n, d in (("stride", 1), ("padding", 1), ("dilation", 1))
    )
    data = [torch.randn(shape, dtype=options.get("dtype")) for shape in (x, weight)]
    if "format" in options:
        data = [tensor.to(memory_format=options["format"]) for tensor in data]
    rest = (stride, padding, dilation, options.get("transposed", False), [0] * rank, options.get("groups", 1))
    return *data, rest


@pytest.fixture(scope="module")
def measured():
    """Peaks of all calls over what was there before, and what `kernels_conv` says: one record for all."""
    said, kept = {}, []

    def call(name, func, args, rule):
        with torch.profiler.record_function(f"##before {name}"):
            pass
        with torch.no_grad(), torch.profiler.record_function(f"##{name}"):
            result = func(*args)
        made = [result] if isinstance(result, torch.Tensor) else [t for t in result if t is not None]
        said[name] = sum(t.untyped_storage().nbytes() for t in made) + rule(args, result)
        kept.append(result)
        return result

    def run():
        for case in CASES:
            x, weight, rest = operands(case)
            y = call(f"{case}, forward", aten.convolution.default, (x, weight, None, *rest), kernels_conv.forward)
            for mask in ([True, True, False], [False, True, False]):
                name = f"{case}, backward {mask[0]}"
                args = (torch.ones_like(y), x, weight, [0], *rest, mask)
                call(name, aten.convolution_backward.default, args, kernels_conv.backward)

    torch.manual_seed(0)
    peaks = measure(run)
    return {name: (peaks[name].peak - peaks[f"before {name}"].end, said[name]) for name in said}


@pytest.mark.parametrize("case", CASES)
def test_the_peak_of_a_convolution_is_that_of_the_kernel(case, measured):
    """To the byte but for what oneDNN pads and aligns: less than a page."""
    for step in ("forward", "backward True", "backward False"):
        real, said = measured[f"{case}, {step}"]
        assert said == pytest.approx(real, abs=1024), step
