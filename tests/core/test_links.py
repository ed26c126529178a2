"""Links between GPUs: bandwidths as published, and the least time of a collective by the algorithm that is optimal."""

from __future__ import annotations

import pytest

from graphsim.core.devices import DEVICES, op_seconds
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.links import bandwidth_of, collective_seconds, link_of
from graphsim.core.streams import step_seconds
from graphsim.errors import UnknownNameError, UsageError

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
