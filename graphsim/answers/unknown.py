"""What no rule is known for: bytes that a step takes beside what is predicted exactly, from a least to a most.

They are said as lines of their own and are no part of any other figure. Two things are unknown on a GPU: what takes
memory outside of PyTorch's allocator (`graphsim.core.context`), and the workspaces of cuDNN's convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from graphsim.core.context import context_of
from graphsim.core.devices import find_device
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.kernels import Kernel, base_kind, kernel_of
from graphsim.units import itemsize

CHANNELS = 8
"""cuDNN's matrix kernels take channels in groups of so many."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Bytes from *least* to *most*.

    Attributes:
        what: whose they are.
        inside: they are asked of PyTorch's allocator, and count in what it reserves; else of the driver.
        source: what the range is derived from.
    """

    what: str
    least: int
    most: int
    inside: bool
    source: str


def unknown_of(step: Graph, card: str = "", target: str = "cuda") -> tuple[Unknown, ...]:
    """Return what is unknown of *step* on *card*; what the step itself says of card and target counts first."""
    said = step.attributes.get("training", {})
    if (said.get("target") or target) != "cuda":
        return ()
    device = find_device(str(said.get("device") or card))
    context = context_of(device.name if device else "", cudnn=_uses_cudnn(step))
    outside = Unknown(OUTSIDE, context.least, context.most, False, context.source)
    most = convolution_workspace(step)
    return (Unknown(CONVOLUTIONS, 0, most, True, _DERIVATION), outside) if most else (outside,)


def rooms(memory: int, unknown: tuple[Unknown, ...]) -> tuple[int, int]:
    """Return what is left of *memory* for what is known: with all that is *unknown* at its most, and at its least.

    What needs no more than the first fits; what needs no more than the second may fit.
    """
    return memory - sum(one.most for one in unknown), memory - sum(one.least for one in unknown)


OUTSIDE = "CUDA context, kernels and library handles"
CONVOLUTIONS = "workspaces of cuDNN's convolutions"
_DERIVATION = (
    "the algorithm is chosen at run time: none, or at most the tiles of a Winograd transform of the largest convolution"
)


def convolution_workspace(step: Graph) -> int:
    """Return the bytes that the workspace of a convolution takes at most, if every algorithm may be chosen.

    By far the largest of those that the published rows show is that of the Winograd transform in separate kernels
    (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015), F(4x4, 3x3): every tile of 4 x 4
    elements becomes 6 x 6, of the input and of the output, so 9/4 of both, and of the weight 3 x 3 become 6 x 6, four
    times as much. It also bounds the copies in NHWC, with channels in groups of 8, that matrix units work on. Only
    one workspace is there at a time. Transforms by FFT are not bounded by it; no row shows one.
    """
    return max((_tiles(step, op) for op in step.ops if kernel_of(op.kind) is Kernel.CONVOLUTION), default=0)


def _tiles(step: Graph, op: Op) -> int:
    backward = base_kind(op.kind).endswith("backward")
    if len(op.inputs) < 2 + backward or not op.outputs:
        return 0  # a graph of another source, whose operands are not known
    names = op.inputs[:3] if backward else (op.outputs[0], *op.inputs[:2])
    y, x, weight = (step.tensors[name] for name in names)
    return 9 * (_grouped(x) + _grouped(y)) // 4 + 4 * _grouped(weight)


def _grouped(tensor: Tensor) -> int:
    """Return the bytes of *tensor* with its channels, the second dimension, rounded up to `CHANNELS`."""
    if len(tensor.shape) < 3:
        return tensor.nbytes
    batch, channels, *extents = tensor.shape
    return batch * -(-channels // CHANNELS) * CHANNELS * prod(extents) * itemsize(tensor.dtype)


def _uses_cudnn(step: Graph) -> bool:
    return any(kernel_of(op.kind).in_cudnn or "batch_norm" in op.kind for op in step.ops)
