"""The GPU catalogue: what rules and costs need to know of a device."""

from __future__ import annotations

from dataclasses import dataclass

from graphsim.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class Device:
    """A device. Memory in bytes, bandwidth in bytes/s, rates in FLOP/s (dense, from data sheets)."""

    name: str
    memory: int
    capability: tuple[int, int]
    bandwidth: float
    fp32: float
    half: float


def _gib(count: int) -> int:
    return count * 2**30


DEVICES = {
    d.name: d
    for d in (
        Device("t4", _gib(16), (7, 5), 320e9, 8.1e12, 65e12),
        Device("v100-16g", _gib(16), (7, 0), 900e9, 15.7e12, 125e12),
        Device("v100-32g", _gib(32), (7, 0), 900e9, 15.7e12, 125e12),
        Device("rtx3090", _gib(24), (8, 6), 936e9, 35.6e12, 71e12),
        Device("a10", _gib(24), (8, 6), 600e9, 31.2e12, 125e12),
        Device("a100-40g", _gib(40), (8, 0), 1555e9, 19.5e12, 312e12),
        Device("a100-80g", _gib(80), (8, 0), 2039e9, 19.5e12, 312e12),
        Device("rtx4090", _gib(24), (8, 9), 1008e9, 82.6e12, 165e12),
        Device("l4", _gib(24), (8, 9), 300e9, 30.3e12, 121e12),
        Device("l40s", _gib(48), (8, 9), 864e9, 91.6e12, 362e12),
        Device("h100-80g", _gib(80), (9, 0), 3350e9, 66.9e12, 989e12),
        Device("h200", _gib(141), (9, 0), 4800e9, 66.9e12, 989e12),
    )
}
"""NVIDIA data sheets of the SXM (or only) variant; half is fp16/bf16 on tensor cores without sparsity."""

_CPU = Device("cpu", 0, (0, 0), 0, 0, 0)
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
