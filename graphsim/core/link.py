"""Links between a GPU and the host's memory: what they carry each way at most.

Sources: PCI Express Base Specification: 8, 16 and 32 GT/s per lane in generations 3, 4 and 5, of which 128 of 130 bits
carry packets; NVIDIA's Grace Hopper data sheet: NVLink-C2C, 450 GB/s each way. Like the rates of `core.devices`, these
are bounds: packet headers and the host's memory leave 75 to 85 % of PCI Express for copies from pinned memory. Who has
measured gives the measured rate.
"""

from __future__ import annotations

import re

from graphsim.core.devices import Device
from graphsim.errors import UnknownNameError
from graphsim.units import parse_bytes

LANES = (4, 8, 16)
_PER_LANE = {3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130}

LINKS = {
    **{f"pcie{generation}x{lanes}": lanes * rate for generation, rate in _PER_LANE.items() for lanes in LANES},
    "nvlink-c2c": 450e9,
}
"""Bytes per second each way, by name."""

OF_THE_GPU = "gpu"
"""Stands for the link of the GPU in question."""

_RATE = re.compile(r"(.*\S)\s*/\s*s", re.IGNORECASE | re.ASCII)


def parse_link(text: str, device: Device) -> float:
    """Return the bytes per second each way of a link: a name of `LINKS`, ``16GB/s``, or ``gpu`` for that of *device*.

    Raises:
        UnknownNameError: it is no such name, and no rate.
        UsageError: it is no size by second, or nothing.
    """
    name = text.strip().lower().replace(" ", "").replace("_", "-")
    if name == OF_THE_GPU:
        name = device.link
    if name in LINKS:
        return LINKS[name]
    match = _RATE.fullmatch(text.strip())
    rate = parse_bytes(match[1]) if match else 0
    if rate < 1:
        raise UnknownNameError("link", text, [OF_THE_GPU, *LINKS, "16GB/s"])
    return float(rate)
