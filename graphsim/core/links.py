"""Links between GPUs, what a collective takes on them at least, and links to the host's memory.

A collective's bytes are those that each rank sends by an algorithm that is bandwidth-optimal: 2 (n - 1) / n of an
all-reduce's operand, (n - 1) / n of what is gathered or scattered (Patarasuk and Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", 2009; the factors of nccl-tests, doc/PERFORMANCE.md). A rank receives as much
at the same time, so the bytes over the bandwidth of one direction are a lower bound; latency is left out, and so is
what switches add up themselves (SHARP).

Sources: NVLink by NVIDIA's data sheets of the SXM cards, which state the sum of both directions; Infinity Fabric by
AMD's of the MI300X. Bridges, which join two cards, do not count. The network by DGX systems, which have one adapter
for each GPU: 100 Gb/s in the DGX-2, 200 Gb/s in the DGX A100, 400 Gb/s in the DGX H100 and B200; the first where there
is no such system. PCI Express Base Specification: 8, 16 and 32 GT/s per lane in generations 3, 4 and 5, of which 128
of 130 bits carry packets; NVIDIA's Grace Hopper data sheet: NVLink-C2C, 450 GB/s each way. Like the rates of
`core.devices`, these are bounds: packet headers and the host's memory leave 75 to 85 % of PCI Express for copies from
pinned memory.
"""

from __future__ import annotations

import re

from graphsim.core.op import Op
from graphsim.errors import UnknownNameError, UsageError
from graphsim.units import parse_bytes

GPUS_OF_A_MACHINE = 8
"""As in HGX and DGX systems. Ranks are numbered machine by machine."""

NVLINK, PCIE, NETWORK = LINKS = ("nvlink", "pcie", "network")

_BOTH_WAYS = {
    "p100": 160, "v100-16g": 300, "v100-32g": 300, "a100-40g": 600, "a100-80g": 600, "h100-80g": 900, "h200": 900,
    "b200": 1800, "mi300x": 896,
}  # fmt: skip
"""GB/s of NVLink, or of Infinity Fabric, in both directions together."""

_PCIE_3 = frozenset({"p100", "t4", "v100-16g", "v100-32g"})
_PCIE_5 = frozenset({"h100-80g", "h100-pcie", "h100-nvl", "h200", "b200", "rtx5090", "mi300x"})
_LANES = {"rtx4060": 8}
_PER_LANE = {3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130}

HOST_LINKS = {
    **{f"pcie{generation}x{lanes}": lanes * rate for generation, rate in _PER_LANE.items() for lanes in (4, 8, 16)},
    "nvlink-c2c": 450e9,
}
"""Bytes per second each way, by name."""

OF_THE_GPU = "gpu"
"""Stands for the link to the host of the GPU in question."""

_RATE = re.compile(r"(.*\S)\s*/\s*s", re.IGNORECASE | re.ASCII)

_NETWORK = {"a100-40g": 200e9, "a100-80g": 200e9, "h100-80g": 400e9, "h200": 400e9, "b200": 400e9}
_NETWORK_ELSEWHERE = 100e9
"""Bits per second."""


def link_of(card: str, name: str = "") -> str:
    """Return the link *name*; if empty, the fastest one between such cards of one machine.

    Args:
        card: a device of the catalogue.

    Raises:
        UnknownNameError: there is no such link.
        UsageError: the card has none.
    """
    if name and name not in LINKS:
        raise UnknownNameError("link", name, LINKS)
    if name == NVLINK and card not in _BOTH_WAYS:
        raise UsageError(f"{card} has no NVLink, or only bridges, which join two cards: --link pcie")
    return name or (NVLINK if card in _BOTH_WAYS else PCIE)


def bandwidth_of(card: str, link: str) -> float:
    """Return the bytes per second that a card sends over *link*."""
    if link == NVLINK:
        return _BOTH_WAYS[card] * 1e9 / 2
    if link == NETWORK:
        return _NETWORK.get(card, _NETWORK_ELSEWHERE) / 8
    return HOST_LINKS[host_link_of(card)]


def host_link_of(card: str) -> str:
    """Return how a card of the catalogue reaches the host's memory: PCI Express, of the generation of its chip."""
    generation = 3 if card in _PCIE_3 else 5 if card in _PCIE_5 else 4
    return f"pcie{generation}x{_LANES.get(card, 16)}"


def parse_host_link(text: str, card: str) -> float:
    """Return the bytes per second each way of a link to the host.

    Args:
        text: a name of `HOST_LINKS`, ``16GB/s``, or ``gpu`` for that of *card*.

    Raises:
        UnknownNameError: it is no such name, and no rate.
        UsageError: it is no size by second, or nothing.
    """
    name = text.strip().lower().replace(" ", "").replace("_", "-")
    if name == OF_THE_GPU:
        name = host_link_of(card)
    if name in HOST_LINKS:
        return HOST_LINKS[name]
    match = _RATE.fullmatch(text.strip())
    rate = parse_bytes(match[1]) if match else 0
    if rate < 1:
        raise UnknownNameError("link", text, [OF_THE_GPU, *HOST_LINKS, "16GB/s"])
    return float(rate)


def is_collective(op: Op) -> bool:
    """True for an op that sends to other ranks, or receives from them."""
    return "sent" in op.attributes


def group_of(op: Op) -> tuple[int, int, int]:
    """Return the group of a collective: its first rank, the distance from one to the next, their number."""
    attributes = op.attributes
    return int(attributes.get("first", 0)), int(attributes.get("stride", 1)), int(attributes["ranks"])


def collective_seconds(op: Op, card: str, link: str = "") -> float:
    """Return the seconds that a collective takes at least: between cards of one machine over *link*, else the network.

    Where a group has several ranks in each machine, every one of them passes its part on to the next machine.
    """
    speed = bandwidth_of(card, link_of(card, link))
    first, stride, count = group_of(op)
    machines = len({rank // GPUS_OF_A_MACHINE for rank in range(first, first + stride * count, stride)})
    if machines > 1:
        speed = min(speed, bandwidth_of(card, NETWORK) * count / machines)
    return int(op.attributes["sent"]) / speed
