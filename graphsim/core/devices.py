"""The GPU catalogue: what rules and costs need to know of a device, and op times by a roofline.

Sources of rates: NVIDIA's data sheets of the SXM (or only) variant: T4, V100, A10, A10G, A30, A40, A100, L4, L40,
L40S, H100, H200 and HGX B200; the architecture whitepapers of Pascal (GP100), GA102, Ada (AD102), Hopper and RTX
Blackwell for GeForce and RTX cards, with fp32 accumulation; AMD's data sheet of the MI300X. All rates are dense: where
a sheet states them with sparsity, half of that. Rates of fp64 that a sheet leaves out follow from the architecture
(1/64 of fp32 on GA102, AD102 and GB202, 1/32 on Turing).

Memory is what ``torch.cuda.get_device_properties(0).total_memory`` reports under Linux, not what the card is sold as:
ECC and the driver keep up to 9 % for themselves. Drivers differ by up to 1.5 %; the smallest report found stands here.

Roofline: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 2009. An op takes as long as its flops at peak rate or its bytes at peak bandwidth,
whichever is longer: a lower bound on its real time, and a fair weight of one op against another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphsim.core.graph import KEEPS, Graph, Op
from graphsim.core.kernels import kernel_of
from graphsim.core.links import collective_seconds, is_collective
from graphsim.errors import UnknownNameError
from graphsim.units import FLOATING

NOMINAL = "nominal"
"""Source of a memory of which only the size on the box is known: the driver will report less."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device. Memory in bytes, bandwidth in bytes/s, rates in FLOP/s.

    ``sold_as`` is the size on the box in GB; ``memory`` is what the driver reports, to 1 MiB where its source are the
    device's properties, to 0.01 GiB where it is a message. ``processors`` counts its multiprocessors. ``fp32`` and
    ``fp64`` are the rates of the vector units; ``half`` (fp16, bf16), ``tf32`` and ``fp8`` those of matrix units, equal
    to the next wider type's where a device has none for it.
    """

    name: str
    sold_as: int
    memory: int
    memory_source: str
    processors: int
    capability: tuple[int, int]
    bandwidth: float
    fp32: float
    half: float
    tf32: float
    fp8: float
    fp64: float


def _device(
    name: str,
    sold_as: int,
    mib: int,
    source: str,
    processors: int,
    capability: tuple[int, int],
    bandwidth: float,
    tera: tuple[float, float, float, float, float],
) -> Device:
    """Memory: GB on the box, MiB as reported. Bandwidth in GB/s; *tera*: fp32, half, tf32, fp8, fp64 in TFLOP/s."""
    fp32, half, tf32, fp8, fp64 = (rate * 1e12 for rate in tera)
    return Device(
        name, sold_as, mib * 2**20, source, processors, capability, bandwidth * 1e9, fp32, half, tf32, fp8, fp64
    )


_PROPERTIES = "get_device_properties"
_MESSAGE = "out-of-memory message: "

DEVICES = {
    d.name: d
    for d in (
        _device("p100", 16, 16276, _PROPERTIES, 56, (6, 0), 732, (10.6, 21.2, 10.6, 21.2, 5.3)),
        _device("t4", 16, 14909, _MESSAGE + "14.56 GiB", 40, (7, 5), 320, (8.1, 65, 8.1, 65, 0.25)),
        _device("v100-16g", 16, 16130, _PROPERTIES, 80, (7, 0), 900, (15.7, 125, 15.7, 125, 7.8)),
        _device("v100-32g", 32, 32501, _MESSAGE + "31.74 GiB", 80, (7, 0), 900, (15.7, 125, 15.7, 125, 7.8)),
        _device("rtx3060", 12, 11931, _PROPERTIES, 28, (8, 6), 360, (12.7, 25.5, 12.7, 25.5, 0.199)),
        _device("rtx3080", 10, 10014, _MESSAGE + "9.78 GiB", 68, (8, 6), 760, (29.8, 59.5, 29.8, 59.5, 0.465)),
        _device("rtx3090", 24, 24259, _PROPERTIES, 82, (8, 6), 936, (35.6, 71, 35.6, 71, 0.556)),
        _device("a10", 24, 22517, _MESSAGE + "21.99 GiB", 72, (8, 6), 600, (31.2, 125, 62.5, 125, 0.488)),
        _device("a10g", 24, 22517, "as the A10, with the same chip", 80, (8, 6), 600, (35, 70, 35, 70, 0.547)),
        _device("a30", 24, 24094, _MESSAGE + "23.53 GiB", 56, (8, 0), 933, (10.3, 165, 82, 165, 5.2)),
        _device("a40", 48, 45416, _PROPERTIES, 84, (8, 6), 696, (37.4, 149.7, 74.8, 149.7, 0.584)),
        _device("rtxa6000", 48, 48676, _PROPERTIES, 84, (8, 6), 768, (38.7, 154.8, 77.4, 154.8, 0.605)),
        _device("a100-40g", 40, 40339, _PROPERTIES, 108, (8, 0), 1555, (19.5, 312, 156, 312, 9.7)),
        _device("a100-80g", 80, 81039, _MESSAGE + "79.14 GiB", 108, (8, 0), 2039, (19.5, 312, 156, 312, 9.7)),
        _device("rtx4060", 8, 7813, _MESSAGE + "7.63 GiB", 24, (8, 9), 272, (15.1, 30.2, 15.1, 60.5, 0.236)),
        _device("rtx4080", 16, 16384, NOMINAL, 76, (8, 9), 717, (48.7, 97.5, 48.7, 195, 0.76)),
        _device("rtx4090", 24, 24084, _MESSAGE + "23.52 GiB", 128, (8, 9), 1008, (82.6, 165, 82.6, 330, 1.29)),
        _device("rtx6000ada", 48, 45496, _MESSAGE + "44.43 GiB, ECC on", 142, (8, 9), 960, (91.1, 364, 182, 728, 1.42)),
        _device("l4", 24, 22558, _MESSAGE + "22.03 GiB", 58, (8, 9), 300, (30.3, 121, 60, 242, 0.473)),
        _device("l40", 48, 45465, _MESSAGE + "44.40 GiB", 142, (8, 9), 864, (90.5, 181, 90.5, 362, 1.41)),
        _device("l40s", 48, 45486, _MESSAGE + "44.42 GiB", 142, (8, 9), 864, (91.6, 362, 183, 733, 1.43)),
        _device("h100-80g", 80, 81008, _MESSAGE + "79.11 GiB", 132, (9, 0), 3350, (66.9, 989, 494, 1979, 33.5)),
        _device("h100-pcie", 80, 81008, "as the H100 SXM", 114, (9, 0), 2000, (51.2, 756, 378, 1513, 25.6)),
        _device("h100-nvl", 94, 95232, _MESSAGE + "93.00 GiB", 132, (9, 0), 3938, (60, 835, 417, 1671, 30)),
        _device("h200", 141, 143073, _MESSAGE + "139.72 GiB", 132, (9, 0), 4800, (66.9, 989, 494, 1979, 33.5)),
        _device("b200", 180, 182630, "device properties: 178.35 GiB", 148, (10, 0), 8000, (75, 2250, 1100, 4500, 37)),
        _device("rtx5090", 32, 32117, _PROPERTIES, 170, (12, 0), 1792, (104.8, 209.5, 104.8, 419, 1.64)),
        # Kernels and workspaces of AMD's libraries are not modelled: those of CUDA stand in for them.
        _device("mi300x", 192, 196587, _MESSAGE + "191.98 GiB", 304, (9, 4), 5300, (163.4, 1307, 654, 2615, 81.7)),
    )
}
"""Devices by name."""

_CPU = Device("cpu", 0, 0, NOMINAL, 0, (0, 0), 0, 0, 0, 0, 0, 0)
_DEFAULT = "a100-80g"


_WORDS = re.compile(r"\d{4}ada|[a-z]+\d*[a-z]*|\d+[a-z]*")
_MEANINGLESS = re.compile(r"nvidia|amd|geforce|instinct|tesla|quadro|gpu|rtx|hgx|sxm\d?|hbm\d?e?|generation|oam")
_SIZE = re.compile(r"(\d+)g(?:i?b)?")
_FORMS = frozenset({"pcie", "nvl"})


def catalogue() -> tuple[Device, ...]:
    """Return the GPUs that are known by name, older ones first."""
    return tuple(DEVICES.values())


def device_of(name: str, target: str) -> Device:
    """Return the device *name*; the target's default if empty.

    Case, spaces, makers and form factors do not matter: ``T4``, ``RTX 4090``, ``4090``, ``A100-SXM4-80GB``.
    A name that leaves the memory open, such as ``a100``, means the card with the least: what fits there, fits.

    Raises:
        UnknownNameError: the catalogue has no such device.
    """
    if not name:
        return _CPU if target == "cpu" else DEVICES[_DEFAULT]
    device = find_device(name)
    if device is None:
        raise UnknownNameError("device", name, DEVICES)
    return device


def find_device(name: str) -> Device | None:
    """Return the device that *name* means (see `device_of`); None if the catalogue has none."""
    if name in DEVICES:
        return DEVICES[name]
    asked = _words(name)
    for words in (asked, asked - {"pcie"}):  # a form that is not told apart does not matter
        found = [device for device in DEVICES.values() if _means(words, device)]
        if found:
            return min(found, key=lambda device: device.memory)
    return None


def _means(words: frozenset[str], device: Device) -> bool:
    """Whether *words* name the model of *device*, and nothing that it is not."""
    own = _words(device.name)
    model = {word for word in own - _FORMS if not _SIZE.fullmatch(word)}
    return model <= words <= own | {f"{device.sold_as}g"}


def _words(name: str) -> frozenset[str]:
    """Return the words by which a card is told from others: its model, and its size or form where it has several."""
    words = _WORDS.findall(name[:100].lower().replace("6000 ada", "6000ada"))
    kept = [word.removeprefix("rtx") for word in words if not _MEANINGLESS.fullmatch(word)]
    return frozenset(_SIZE.sub(r"\1g", word) if _SIZE.fullmatch(word) else word for word in kept)


def op_seconds(graph: Graph, device: Device) -> npt.NDArray[np.float64]:
    """Return the seconds that each op of *graph* takes at least on *device*."""
    return np.array([_seconds(graph, op, device) for op in graph.ops], dtype=np.float64)


def _seconds(graph: Graph, op: Op, device: Device) -> float:
    if op.kind in KEEPS:
        return 0.0
    if is_collective(op):
        return collective_seconds(op, device.name)
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
