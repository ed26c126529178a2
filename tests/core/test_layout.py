"""The validator of layouts: naive, and it says which rule broke."""

from __future__ import annotations

import numpy as np
import pytest

from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.layout import Layout, validate
from graphsim.core.simulation import simulate
from graphsim.errors import LayoutError

GRAPH = Graph(
    [Op("a", "n", (), ("x",)), Op("b", "n", ("x",), ("y",)), Op("c", "n", ("y",), ("z",))],
    [Tensor("x", (10,), "uint8"), Tensor("y", (20,), "uint8"), Tensor("z", (5,), "uint8")],
)
TRACE = simulate(GRAPH).trace
LIVE = np.cumsum(TRACE.stream[1])


def layout(*addresses: int, used=LIVE, reserved=LIVE) -> Layout:
    return Layout(np.array(addresses), np.zeros(len(addresses), dtype=np.int64), used, reserved)


def test_blocks_may_share_bytes_at_different_times():
    validate(TRACE, layout(0, 10, 0, reserved=np.full_like(LIVE, 30)))


def test_live_blocks_may_not_overlap():
    with pytest.raises(LayoutError, match="block 1 overlaps live block 0"):
        validate(TRACE, layout(0, 9, 0))


def test_every_block_needs_a_place():
    with pytest.raises(LayoutError, match="block 2 has no place"):
        validate(TRACE, layout(0, 10, -1))


def test_used_is_at_least_live_and_reserved_at_least_used():
    with pytest.raises(LayoutError, match="bytes live"):
        validate(TRACE, layout(0, 10, 0, used=LIVE - 1))
    with pytest.raises(LayoutError, match="reserved"):
        validate(TRACE, layout(0, 10, 0, reserved=LIVE - 1))


def test_a_layout_of_another_trace_is_refused():
    with pytest.raises(LayoutError, match="lengths differ"):
        validate(TRACE, layout(0, 10))
    with pytest.raises(LayoutError, match="lengths differ"):
        validate(TRACE, layout(0, 10, 0, reserved=LIVE[:-1]))


def test_fragmentation_is_the_share_of_the_reservation_that_is_never_used():
    assert layout(0, 10, 0, reserved=np.full_like(LIVE, 60)).fragmentation == 0.5
