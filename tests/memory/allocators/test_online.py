"""Online allocators: what must hold for any of them, and PyTorch's rules one by one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphsim as gs
from graphsim.core.layout import validate
from graphsim.core.simulation import simulate
from graphsim.errors import OutOfMemoryError, UnknownNameError, UsageError
from graphsim.memory.allocators.arena import Arena
from graphsim.memory.allocators.bfc import Bfc, BfcPool
from graphsim.memory.allocators.cupy import TIES, Chunks, CupyPool, reserved_interval
from graphsim.memory.allocators.exact import Exact
from graphsim.memory.allocators.online import PoolFull
from graphsim.memory.allocators.torch import TorchCaching, TorchPool, memory_stats

KIB, MIB = 2**10, 2**20
POOLS = {
    "cupy": Chunks,
    "torch": lambda: TorchPool(TorchCaching()),
    "torch, no large splits": lambda: TorchPool(TorchCaching(max_split_size_mb=20)),
    "torch, expandable": lambda: TorchPool(TorchCaching(expandable_segments=True)),
    "torch, collecting": lambda: TorchPool(TorchCaching(limit=400 * MIB, garbage_collection_threshold=0.2)),
    "torch, a little room": lambda: TorchPool(TorchCaching(limit=150 * MIB, max_split_size_mb=20)),
    "torch, expandable, a little room": lambda: TorchPool(TorchCaching(limit=150 * MIB, expandable_segments=True)),
    "bfc": lambda: BfcPool(Bfc()),
    "bfc, all at once": lambda: BfcPool(Bfc(limit=2**30, allow_growth=False)),
    "cupy, lowest": lambda: Chunks(ties="lowest"),
    "torch, rounding up": lambda: TorchPool(TorchCaching(roundup_power2_divisions="4")),
}
SIZES = st.one_of(
    st.integers(1, 4 * KIB), st.integers(1, 3 * MIB), st.integers(1, 40 * MIB), st.sampled_from([512, MIB, 10 * MIB])
)


@pytest.mark.parametrize("name", POOLS)
@given(events=st.lists(st.one_of(SIZES, st.integers(-40, -1)), max_size=80))
@settings(max_examples=150)
def test_live_blocks_never_overlap_and_bytes_are_conserved(name, events):
    pool = POOLS[name]()
    live: dict[int, tuple[int, int, int]] = {}
    for event in events:
        if event > 0:
            try:
                handle = pool.malloc(event)
            except PoolFull:
                assert pool.reserved > 0
                continue
            assert handle not in live
            segment, begin = handle.segment, handle.address
            for other_segment, other_begin, other_size in live.values():
                assert segment != other_segment or begin >= other_begin + other_size or other_begin >= begin + event
            live[handle] = (segment, begin, event)
        elif live:
            handle = list(live)[event % len(live)]
            del live[handle]
            pool.free(handle)
        assert sum(size for *_, size in live.values()) <= pool.used <= pool.reserved
    for handle in list(live):
        pool.free(handle)
    assert pool.used == 0


@pytest.mark.parametrize("name", POOLS)
def test_an_unknown_block_and_a_second_free_are_refused(name):
    pool = POOLS[name]()
    with pytest.raises(KeyError):
        pool.free(12345)
    handle = pool.malloc(100)
    other = pool.malloc(100)
    pool.free(handle)
    with pytest.raises(KeyError):
        pool.free(handle)
    pool.free(other)


@pytest.mark.parametrize(
    ("nbytes", "used", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # the rest, 1 MiB, is too small to be split off
        (21 * MIB + 1, 22 * MIB, 22 * MIB),
    ],
)
def test_torch_takes_segments_of_2_and_20_mib_or_of_the_requests_own_size(nbytes, used, reserved):
    pool = TorchPool(TorchCaching())
    pool.malloc(nbytes)
    assert (pool.used, pool.reserved) == (used, reserved)


def test_torch_keeps_small_and_large_blocks_apart():
    pool = TorchPool(TorchCaching())
    large = pool.malloc(5 * MIB)
    pool.free(large)
    pool.malloc(512 * KIB)
    assert pool.reserved == 22 * MIB


def test_torch_takes_the_smallest_block_that_fits():
    pool = TorchPool(TorchCaching())
    first, second = pool.malloc(30 * MIB), pool.malloc(12 * MIB)
    pool.free(first)
    pool.free(second)
    assert pool.malloc(11 * MIB).address == second.address


def test_torch_does_not_split_oversize_blocks():
    pool = TorchPool(TorchCaching(max_split_size_mb=32))
    pool.free(pool.malloc(64 * MIB))
    pool.malloc(8 * MIB)
    assert pool.reserved == 84 * MIB
    pool.malloc(60 * MIB)
    assert pool.reserved == 84 * MIB


def test_torch_rounds_up_to_divisions_of_powers_of_two():
    pool = TorchPool(TorchCaching(roundup_power2_divisions="4"))
    assert pool.malloc(1200 * 4).size == 5 * KIB


def test_torch_gives_cached_segments_back_before_it_runs_out():
    pool = TorchPool(TorchCaching(limit=64 * MIB))
    pool.free(pool.malloc(40 * MIB))
    pool.malloc(60 * MIB)
    assert pool.reserved == 60 * MIB
    with pytest.raises(PoolFull):
        pool.malloc(10 * MIB)


def test_torch_rounds_by_the_interval_of_the_size():
    pool = TorchPool(TorchCaching(roundup_power2_divisions="[1:2,4:8,>:0]"))
    sizes = {700 * KIB: 768 * KIB, MIB + 512: 1536 * KIB, 4 * MIB + 512: 4608 * KIB, 9 * MIB + 512: 9 * MIB + 512}
    assert {size: pool.rounded(size) for size in sizes} == sizes
    assert pool.rounded(3 * MIB - 1) == 3 * MIB - 0  # no division of its own: multiples of 512


def test_torch_expands_one_segment_by_pages():
    pool = TorchPool(TorchCaching(expandable_segments=True))
    first = pool.malloc(30 * MIB)
    assert pool.reserved == 40 * MIB
    pool.malloc(25 * MIB)  # ten are mapped already
    assert pool.reserved == 60 * MIB
    pool.free(first)
    assert pool.malloc(30 * MIB).address == first.address
    pool.malloc(600 * KIB)
    assert pool.reserved == 62 * MIB


def test_torch_unmaps_whole_free_pages_when_room_is_short():
    pool = TorchPool(TorchCaching(expandable_segments=True, limit=100 * MIB))
    first, between = pool.malloc(50 * MIB), pool.malloc(8 * MIB)
    pool.free(first)  # [50 free, 8 used, 2 free]
    pool.malloc(80 * MIB)  # 80 more exceed the limit until the first two pages are given back
    assert pool.reserved == 100 * MIB
    pool.free(between)
    with pytest.raises(PoolFull):
        pool.malloc(200 * MIB)


def test_torch_prefers_the_block_that_cannot_expand():
    pool = TorchPool(TorchCaching(expandable_segments=True))
    hole, _, tail = pool.malloc(18 * MIB), pool.malloc(2 * MIB), pool.malloc(10 * MIB)
    pool.free(tail)  # can grow into what is not mapped yet
    pool.free(hole)
    assert pool.malloc(9 * MIB).address == hole.address


def test_torch_collects_the_segments_that_waited_longest():
    pool = TorchPool(TorchCaching(limit=200 * MIB, garbage_collection_threshold=0.5))
    pool.malloc(3 * MIB)
    old, young = pool.malloc(60 * MIB), pool.malloc(50 * MIB)
    pool.free(old)
    for _ in range(5):
        pool.free(pool.malloc(3 * MIB))
    pool.free(young)
    pool.malloc(70 * MIB)  # 130 MiB are held, 30 beyond the threshold: the old one goes, and no more
    assert pool.reserved == (50 + 20 + 70) * MIB


def test_torch_gives_back_the_largest_oversize_blocks_first():
    pool = TorchPool(TorchCaching(limit=200 * MIB, max_split_size_mb=20))
    blocks = [pool.malloc(size * MIB) for size in (40, 60, 80)]
    for block in blocks:
        pool.free(block)
    pool.malloc(110 * MIB)  # 80 and then 60 go; 40 stays
    assert pool.reserved == (40 + 110) * MIB


def test_torch_statistics_are_in_the_keys_of_memory_stats():
    run = simulate(gs.training_step(gs.load("resnet18", batch=2, size=64), optimizer="adam"))
    stats, layout = memory_stats(run.trace), TorchCaching()(run.trace)
    assert stats["requested_bytes.all.peak"] == run.peak
    assert stats["allocated_bytes.all.peak"] == stats["active_bytes.all.peak"] == layout.peak
    assert stats["reserved_bytes.all.peak"] == layout.reserved_peak
    for name in ("requested", "allocated", "reserved", "inactive_split"):
        parts = (stats[f"{name}_bytes.{pool}.current"] for pool in ("small_pool", "large_pool"))
        assert stats[f"{name}_bytes.all.current"] == sum(parts) >= 0
    slack = stats["reserved_bytes.all.current"] - stats["allocated_bytes.all.current"]
    assert 0 < stats["inactive_split_bytes.all.current"] <= slack


@given(events=st.lists(st.one_of(SIZES, st.integers(-40, -1)), max_size=60))
@settings(max_examples=150)
def test_inactive_split_bytes_are_the_free_blocks_of_segments_in_use(events):
    pool, live = TorchPool(TorchCaching()), []
    for event in events:
        if event > 0:
            live.append(pool.malloc(event))
        elif live:
            pool.free(live.pop(event % len(live)))
        inactive = [sum(b.size for b in pool.blocks.values() if b.free and b.split and b.small == s) for s in (0, 1)]
        assert pool.by_pool["inactive_split"] == inactive
        assert sum(pool.by_pool["reserved"]) == pool.reserved == sum(b.size for b in pool.blocks.values())


def test_bfc_takes_regions_that_double_and_splits_what_is_twice_too_large():
    pool = BfcPool(Bfc())
    first = pool.malloc(MIB)
    assert (pool.used, pool.reserved) == (MIB, 2 * MIB)
    pool.malloc(3 * MIB)  # 4 MiB are next, and less than twice the request: it gets the whole region
    assert (pool.used, pool.reserved) == (5 * MIB, 6 * MIB)
    pool.free(first)
    assert pool.malloc(1).address == first.address
    assert pool.used == 4 * MIB + 256
    pool.malloc(40 * MIB)  # 8 MiB were next: doubled until the request fits
    assert pool.reserved == 70 * MIB


def test_bfc_splits_off_128_mib_and_takes_no_more_than_its_limit():
    pool = BfcPool(Bfc(limit=500 * MIB, allow_growth=False))
    pool.malloc(300 * MIB)
    assert (pool.used, pool.reserved) == (300 * MIB, 500 * MIB)
    with pytest.raises(PoolFull):
        pool.malloc(201 * MIB)
    with pytest.raises(UsageError, match="give a limit"):
        Bfc(allow_growth=False)


def test_ties_between_equal_chunks_give_an_interval():
    run = simulate(gs.training_step(gs.load("lenet5"), optimizer="adam"))
    low, high = reserved_interval(run.trace)
    peaks = {ties: CupyPool(ties=ties)(run.trace).reserved_peak for ties in TIES}
    assert (low, high) == (min(peaks.values()), max(peaks.values()))
    with pytest.raises(UnknownNameError, match="oldest"):
        CupyPool(ties="eldest")


def test_ties_choose_among_equal_chunks_only():
    for ties, expected in (("oldest", 0), ("newest", 2), ("lowest", 0), ("highest", 2)):
        pool = Chunks(ties=ties)
        blocks = [pool.malloc(1024) for _ in range(3)]
        for block in blocks:
            pool.free(block)
        pool.free(pool.malloc(2048))
        assert pool.malloc(1024) == blocks[expected], ties


@pytest.mark.parametrize("mode", ["greedy", "climb"])
def test_an_arena_is_one_reservation_close_to_what_is_live(mode):
    run = simulate(gs.training_step(gs.load("resnet18", batch=2, size=64), optimizer="adam"))
    layout = Arena(mode=mode, seconds=0.1)(run.trace)
    validate(run.trace, layout)
    assert len(set(layout.reserved.tolist())) == 1
    assert layout.peak <= layout.reserved_peak < 1.1 * layout.peak
    assert not (layout.address % 256).any()
    with pytest.raises(UsageError, match="mode must be one of"):
        Arena(mode="greedier")
    with pytest.raises(UsageError, match="alignment"):
        Arena(alignment=0)


@pytest.mark.parametrize("allocator", [TorchCaching, CupyPool, Bfc, Arena, Exact])
def test_a_limit_answers_whether_a_step_fits_and_where_it_runs_out(allocator):
    run = simulate(gs.training_step(gs.load("resnet18", batch=2, size=64), optimizer="adam"))
    layout = allocator()(run.trace)
    validate(run.trace, layout)
    assert run.peak <= layout.peak <= layout.reserved_peak
    assert allocator(limit=layout.reserved_peak)(run.trace).reserved_peak <= layout.reserved_peak
    half = run.peak // 1024 * 512
    with pytest.raises(OutOfMemoryError, match="out of memory at event") as error:
        allocator(limit=half)(run.trace)
    assert error.value.limit == half
    assert 0 <= error.value.event < run.trace.events_count


@pytest.mark.parametrize("name", [name for name in POOLS if "room" not in name and "all at once" not in name])
def test_blocks_of_any_size_that_a_graph_may_have_stand_apart(name):
    pool = POOLS[name]()
    taken = []
    for nbytes in (9 * 2**40, 9 * 2**40, 9 * 2**40, 2**44, 7, 2**60):
        try:
            taken.append(pool.malloc(nbytes))
        except PoolFull:
            assert name in ("bfc", "torch, collecting"), "regions of BFC double; the other has a limit"
    spans = sorted((block.segment, block.address, block.address + block.size) for block in taken)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(spans))
    assert all(end < 2**63 for _, _, end in spans), "a layout holds 64-bit addresses"
    for block in taken:
        pool.free(block)
    assert pool.used == 0
