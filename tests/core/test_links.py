"""Links between GPUs and to the host: bandwidths as published, the least time of a collective by the best algorithm."""

from __future__ import annotations

import pytest

from graphsim.core.devices import DEVICES, op_seconds
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.links import (
    HOST_LINKS,
    bandwidth_of,
    collective_seconds,
    host_link_of,
    link_of,
    parse_host_link,
)
from graphsim.core.streams import step_seconds
from graphsim.errors import GraphSimError, UnknownNameError, UsageError

GIGA = 10**9


def collective(sent: int, ranks: int = 8, first: int = 0, stride: int = 1, name: str = "sum") -> Op:
    attributes = {"sent": sent, "ranks": ranks, "first": first, "stride": stride}
    return Op(name, "all_reduce", ("x",), (name,), attributes=attributes)


@pytest.mark.parametrize(
    ("card", "link", "published"),
    [
        ("a100-80g", "nvlink", 300 * GIGA),  # 600 GB/s both ways
        ("h100-80g", "nvlink", 450 * GIGA),
        ("b200", "nvlink", 900 * GIGA),
        ("t4", "pcie", 15.75 * GIGA),  # generation 3, 16 lanes
        ("a100-80g", "pcie", 31.5 * GIGA),
        ("h100-80g", "pcie", 63 * GIGA),
        ("rtx4060", "pcie", 15.75 * GIGA),  # generation 4, 8 lanes
        ("h100-80g", "network", 50 * GIGA),  # NDR InfiniBand: 400 Gb/s
    ],
)
def test_bandwidths_are_those_of_data_sheets_one_way(card, link, published):
    assert bandwidth_of(card, link) == pytest.approx(published, rel=1e-3)


def test_every_card_has_a_link_and_the_fastest_is_taken():
    for card in DEVICES:
        fastest = bandwidth_of(card, link_of(card))
        assert fastest >= bandwidth_of(card, "pcie") >= bandwidth_of(card, "network")
    assert (link_of("a100-80g"), link_of("t4"), link_of("a100-80g", "pcie")) == ("nvlink", "pcie", "pcie")
    with pytest.raises(UsageError, match="t4 has no NVLink"):
        link_of("t4", "nvlink")
    with pytest.raises(UnknownNameError, match="pcie"):
        link_of("t4", "pci")


def test_a_group_within_a_machine_has_its_link_and_one_across_shares_the_adapters():
    """The bus bandwidth that nccl-tests reports is the bytes sent over the time."""
    card, sent = "h100-80g", 90 * GIGA
    assert collective_seconds(collective(sent), card) == pytest.approx(90 / 450)
    assert collective_seconds(collective(sent, ranks=2, first=6), card) == pytest.approx(90 / 450)
    assert collective_seconds(collective(sent, ranks=2, first=7), card) == pytest.approx(90 / 50), "7 and 8"
    assert collective_seconds(collective(sent, ranks=8, stride=8), card) == pytest.approx(90 / 50), "one per machine"
    assert collective_seconds(collective(sent, ranks=16), card) == pytest.approx(90 / 400), "eight adapters each"
    assert collective_seconds(collective(sent, ranks=16), card, "pcie") == pytest.approx(90 / 63, rel=1e-3)


def test_collectives_run_beside_kernels_until_one_waits_for_the_other():
    """y is not summed and x is: its reader waits for the link, that of y does not."""
    second = int(DEVICES["a100-80g"].bandwidth)
    tensors = [Tensor(name, (1,)) for name in ("x", "y", "z", "w")] + [Tensor("sum", (1,), storage="x")]
    ops = [
        Op("x", "mul", (), ("x",), moved=second),
        Op("sum", "all_reduce", ("x",), ("sum",), mutates=("x",), attributes=collective(300 * GIGA * 2).attributes),
        Op("y", "mul", (), ("y",), moved=second),
        Op("z", "mul", ("y",), ("z",), moved=4 * second),
        Op("w", "mul", ("sum", "z"), ("w",), moved=second),
    ]
    graph = Graph(ops, tensors)
    assert op_seconds(graph, DEVICES["a100-80g"]).tolist() == pytest.approx([1, 2, 1, 4, 1])
    assert step_seconds(graph, DEVICES["a100-80g"]) == pytest.approx((7, 2, 7)), "hidden behind y and z"
    slow = step_seconds(graph, DEVICES["a100-80g"], "pcie")
    assert slow.communication == pytest.approx(600 / 31.5, rel=1e-3)
    assert slow.step == pytest.approx(1 + 600 / 31.5 + 1, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "published"),  # GB/s each way, as PCI-SIG's and NVIDIA's pages state them
    [("pcie3x16", 15.754), ("pcie4x16", 31.508), ("pcie5x16", 63.015), ("pcie4x8", 15.754), ("nvlink-c2c", 450)],
)
def test_a_link_to_the_host_carries_what_its_standard_says(name, published):
    assert HOST_LINKS[name] / 1e9 == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("16GB/s", 16e9), ("12.5 GB / s", 12.5e9), ("16GiB/s", 16 * 2**30), ("PCIe4x16", HOST_LINKS["pcie4x16"])],
)
def test_a_link_to_the_host_is_given_by_its_rate_or_its_name(text, rate):
    assert parse_host_link(text, "a100-80g") == rate


@pytest.mark.parametrize(
    ("gpu", "link"),
    [
        *[(gpu, "pcie3x16") for gpu in ("p100", "v100-16g", "t4")],
        *[(gpu, "pcie4x16") for gpu in ("rtx3090", "l4", "rtx4090", "a100-80g")],
        *[(gpu, "pcie5x16") for gpu in ("h100-80g", "b200", "rtx5090", "mi300x")],
        ("rtx4060", "pcie4x8"),
    ],
)
def test_every_gpu_has_the_link_to_the_host_of_its_data_sheet(gpu, link):
    assert parse_host_link("gpu", gpu) == HOST_LINKS[link]


@pytest.mark.parametrize("text", ["", "16GB", "fast", "0GB/s", "-1GB/s", "pcie9x16", "16 apples/s"])
def test_what_is_no_link_to_the_host_is_refused(text):
    with pytest.raises(GraphSimError):
        parse_host_link(text, "a100-80g")


def test_every_device_has_a_link_to_the_host():
    assert {host_link_of(card) for card in DEVICES} <= set(HOST_LINKS)
