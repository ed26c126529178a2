"""What no rule is known for: bytes that a step takes beside what is predicted exactly, from a least to a most.

They are said as lines of their own and are no part of any other figure. Unknown on a GPU are what takes memory outside
of PyTorch's allocator (`graphsim.core.context`), NCCL's buffers there, and the workspaces of cuDNN's convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from graphsim.answers.reservation import reservations
from graphsim.core.context import context_of
from graphsim.core.devices import find_device
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.kernels import Kernel, base_kind, kernel_of
from graphsim.core.links import group_of, is_collective
from graphsim.core.simulation import Simulation
from graphsim.memory.allocators import Allocator
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


def unknown_of(
    runs: tuple[Simulation, Simulation], card: str = "", target: str = "cuda", allocator: Allocator | None = None
) -> tuple[Unknown, ...]:
    """Return what is unknown of step 1 and a later step on *card*: inside of the allocator first, then outside.

    What a step itself says of card and target counts first. The most inside is what stands beside the bytes that
    *allocator* reserves, or without one beside those that are live.
    """
    if not _on_cuda(runs[1].graph, target):
        return ()
    most = convolution_most(runs, allocator)
    inside = (Unknown(CONVOLUTIONS, 0, most, True, _DERIVATION),) if most else ()
    return (*inside, *outside_of(runs[1].graph, card))


def outside_of(step: Graph, card: str = "", given: tuple[int, int] | None = None) -> tuple[Unknown, ...]:
    """Return what is taken outside of PyTorch's allocator: first the context, with least and most as *given*, if so.

    The card that *step* itself names counts first.
    """
    context = _context(step, card) if given is None else Unknown(OUTSIDE, *given, False, "as given")
    most = nccl_most(step) if _on_cuda(step) else 0
    return (context, Unknown(BUFFERS, 0, most, False, _PUBLISHED)) if most else (context,)


def _context(step: Graph, card: str) -> Unknown:
    device = find_device(str(_said(step).get("device") or card))
    cudnn = any(kernel_of(op.kind).in_cudnn or "batch_norm" in op.kind for op in step.ops)
    context = context_of(device.name if device else "", cudnn=cudnn)
    return Unknown(OUTSIDE, context.least, context.most, False, context.source)


def rooms(memory: int, unknown: tuple[Unknown, ...]) -> tuple[int, int]:
    """Return what is left of *memory* for what is known: with all that is *unknown* at its most, and at its least.

    What needs no more than the first fits; what needs no more than the second may fit.
    """
    return memory - sum(one.most for one in unknown), memory - sum(one.least for one in unknown)


BUFFERS = "NCCL's buffers"
_PUBLISHED = "0.7 GB for each group on four A100, up to 2 GB on others (NVIDIA/nccl#964, #864)"
_GROUP = 2 * 10**9
_ALL_TO_ALL = 33 * 10**8
"""More for connections between all pairs: 1.06 GB before and 4.34 GB after on eight H100 (NVIDIA/nccl#1685)."""


def nccl_most(step: Graph) -> int:
    """Return the bytes that NCCL takes at most of what was published, for the groups of the collectives of *step*."""
    sending = [op for op in step.ops if is_collective(op)]
    groups = {group for op in sending if (group := group_of(op))[2] > 1}
    return _GROUP * len(groups) + _ALL_TO_ALL * (len({group_of(op) for op in sending if op.kind == "all_to_all"}))


OUTSIDE = "CUDA context, kernels and library handles"
CONVOLUTIONS = "workspaces of cuDNN's convolutions"
_DERIVATION = "chosen at run time; at most, each of them takes the tiles of a Winograd transform"
_SMALL = 2**20
"""Counters and partial sums: 0.83 MiB in the smallest convolution that was published (multi_token_attention)."""


def convolution_most(runs: tuple[Simulation, Simulation], allocator: Allocator | None = None) -> int:
    """Return the bytes by which the steps may hold more, if every convolution takes the largest workspace.

    cuDNN chooses the algorithm at run time. By far the largest workspace that published rows show is that of the
    Winograd transform in separate kernels (Lavin and Gray, "Fast algorithms for convolutional neural networks",
    2015), F(4x4, 3x3): every tile of 4 x 4 elements becomes 6 x 6, of the input and of the output, so 9/4 of both,
    and of the weight 3 x 3 become 6 x 6, four times as much. It also bounds the copies in NHWC, with channels in groups
    of 8, that matrix units work on. Transforms by FFT are not bounded by it; no row shows one.

    What an allocator reserves grows by the largest workspace, or by what its model says if every convolution takes one
    and tensors split those that were freed: the larger of both.
    """
    wide = [_with_workspaces(run) for run in runs]
    if all(one is run for one, run in zip(wide, runs, strict=True)):
        return 0
    if allocator is None:
        return max(run.peak for run in wide) - max(run.peak for run in runs)
    largest = max(_tiles(run.graph, op) for run in runs for op in run.graph.ops if _convolves(op))
    held = reservations(*runs, allocator), reservations(wide[0], wide[1], allocator)
    before, after = ([one.reserved for one in pair if one.reserved is not None] for pair in held)
    within_limit = len(before) == len(after) == 2
    return max(largest, max(after) - max(before)) if within_limit else largest


def _with_workspaces(run: Simulation) -> Simulation:
    graph = run.graph
    tiles = {op.name: _tiles(graph, op) for op in graph.ops if _convolves(op)}
    if not any(tiles.values()) or not _on_cuda(graph):
        return run
    ops = [replace(op, workspace=op.workspace + tiles.get(op.name, 0)) for op in graph.ops]
    attributes = dict(graph.attributes)
    wide = Graph(ops, graph.tensors.values(), outputs=graph.outputs, name=graph.name, attributes=attributes)
    return replace(run, graph=wide)


def _said(step: Graph) -> Mapping[str, Any]:
    return dict(step.attributes.get("training", {}))


def _on_cuda(step: Graph, target: str = "cuda") -> bool:
    return bool((_said(step).get("target") or target) == "cuda")


def _convolves(op: Op) -> bool:
    return kernel_of(op.kind) is Kernel.CONVOLUTION


def _tiles(step: Graph, op: Op) -> int:
    backward = base_kind(op.kind).endswith("backward")
    if len(op.inputs) < 2 + backward or not op.outputs:
        return 0  # a graph of another source, whose operands are not known
    names = op.inputs[:3] if backward else (op.outputs[0], *op.inputs[:2])
    y, x, weight = (step.tensors[name] for name in names)
    return 9 * (_grouped(x) + _grouped(y)) // 4 + 4 * _grouped(weight) + _SMALL


def _grouped(tensor: Tensor) -> int:
    """Return the bytes of *tensor* with its channels, the second dimension, rounded up to `CHANNELS`."""
    if len(tensor.shape) < 3:
        return tensor.nbytes
    batch, channels, *extents = tensor.shape
    return batch * -(-channels // CHANNELS) * CHANNELS * prod(extents) * itemsize(tensor.dtype)
