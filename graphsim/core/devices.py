"""The GPU catalogue: what rules and costs need to know of a device, and op times by a roofline.

Sources: NVIDIA's data sheets of the SXM (or only) variant: T4, V100, A10, A30, A40, A100, L4, L40S, H100,
H200 and HGX B200; the architecture whitepapers of Pascal (GP100), GA102, Ada (AD102) and Hopper for
GeForce and RTX cards, with fp32 accumulation. All rates are dense: where a sheet states them with
sparsity, half of that. Rates of fp64 that a sheet leaves out follow from the architecture (1/64 of
fp32 on GA102 and AD102, 1/32 on Turing).

Roofline: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 2009. An op takes as long as its flops at peak rate or its bytes at peak bandwidth,
whichever is longer: a lower bound on its real time, and a fair weight of one op against another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphsim.core.graph import KEEPS, Graph, Op
from graphsim.core.kernels import kernel_of
from graphsim.errors import UnknownNameError
from graphsim.units import FLOATING


@dataclass(frozen=True, slots=True)
class Device:
    """A device. Memory in bytes, bandwidth in bytes/s, rates in FLOP/s.

    ``fp32`` and ``fp64`` are those of the vector units; ``half`` (fp16, bf16), ``tf32`` and ``fp8`` those
    of matrix units, equal to the next wider type's where a device has none for it.
    """

    name: str
    memory: int
    capability: tuple[int, int]
    bandwidth: float
    fp32: float
    half: float
    tf32: float
    fp8: float
    fp64: float


def _device(
    name: str, gib: int, capability: tuple[int, int], bandwidth: float, tera: tuple[float, float, float, float, float]
) -> Device:
    """Bandwidth in GB/s; *tera*: fp32, half, tf32, fp8, fp64 in TFLOP/s."""
    fp32, half, tf32, fp8, fp64 = (rate * 1e12 for rate in tera)
    return Device(name, gib * 2**30, capability, bandwidth * 1e9, fp32, half, tf32, fp8, fp64)


DEVICES = {
    d.name: d
    for d in (
        _device("p100", 16, (6, 0), 732, (10.6, 21.2, 10.6, 21.2, 5.3)),
        _device("t4", 16, (7, 5), 320, (8.1, 65, 8.1, 65, 0.25)),
        _device("v100-16g", 16, (7, 0), 900, (15.7, 125, 15.7, 125, 7.8)),
        _device("v100-32g", 32, (7, 0), 900, (15.7, 125, 15.7, 125, 7.8)),
        _device("rtx3090", 24, (8, 6), 936, (35.6, 71, 35.6, 71, 0.556)),
        _device("a10", 24, (8, 6), 600, (31.2, 125, 62.5, 125, 0.488)),
        _device("a30", 24, (8, 0), 933, (10.3, 165, 82, 165, 5.2)),
        _device("a40", 48, (8, 6), 696, (37.4, 149.7, 74.8, 149.7, 0.584)),
        _device("rtxa6000", 48, (8, 6), 768, (38.7, 154.8, 77.4, 154.8, 0.605)),
        _device("a100-40g", 40, (8, 0), 1555, (19.5, 312, 156, 312, 9.7)),
        _device("a100-80g", 80, (8, 0), 2039, (19.5, 312, 156, 312, 9.7)),
        _device("rtx4090", 24, (8, 9), 1008, (82.6, 165, 82.6, 330, 1.29)),
        _device("rtx6000ada", 48, (8, 9), 960, (91.1, 364, 182, 728, 1.42)),
        _device("l4", 24, (8, 9), 300, (30.3, 121, 60, 242, 0.473)),
        _device("l40s", 48, (8, 9), 864, (91.6, 362, 183, 733, 1.43)),
        _device("h100-pcie", 80, (9, 0), 2000, (51.2, 756, 378, 1513, 25.6)),
        _device("h100-80g", 80, (9, 0), 3350, (66.9, 989, 494, 1979, 33.5)),
        _device("h200", 141, (9, 0), 4800, (66.9, 989, 494, 1979, 33.5)),
        _device("b200", 180, (10, 0), 8000, (75, 2250, 1100, 4500, 37)),
    )
}
"""Devices by name."""

_CPU = Device("cpu", 0, (0, 0), 0, 0, 0, 0, 0, 0)
_DEFAULT = "a100-80g"


def device_of(name: str, target: str) -> Device:
    """Return the device *name*; the target's default if empty.

    Raises:
        UnknownNameError: the catalogue has no such device.
    """
    if not name:
        return _CPU if target == "cpu" else DEVICES[_DEFAULT]
    try:
        return DEVICES[name]
    except KeyError:
        raise UnknownNameError("device", name, DEVICES) from None


def op_seconds(graph: Graph, device: Device) -> npt.NDArray[np.float64]:
    """Return the seconds that each op of *graph* takes at least on *device*."""
    return np.array([_seconds(graph, op, device) for op in graph.ops], dtype=np.float64)


def _seconds(graph: Graph, op: Op, device: Device) -> float:
    if op.kind in KEEPS:
        return 0.0
    # An op without arithmetic that allocates its outputs copies: it reads and writes that many bytes.
    moved = op.moved or 2 * sum(t.nbytes for name in op.outputs if not (t := graph.tensors[name]).storage)
    compute = op.flops / _rate(graph, op, device) if op.flops else 0.0
    return max(compute, moved / device.bandwidth)


def _rate(graph: Graph, op: Op, device: Device) -> float:
    """Return the peak rate of *op*: matrix units multiply matrices, and fp32 ones only in cuDNN (PyTorch's default)."""
    names = (*op.outputs, *op.inputs)
    dtype = next((d for name in names if (d := graph.tensors[name].dtype) in FLOATING), "float32")
    kernel = kernel_of(op.kind)
    if dtype == "float64":
        return device.fp64
    if not kernel.multiplies:
        return device.fp32
    narrow = {"float16": device.half, "bfloat16": device.half, "float8": device.fp8}
    return narrow.get(dtype, device.tf32 if kernel.in_cudnn else device.fp32)
