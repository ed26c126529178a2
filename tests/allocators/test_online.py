"""Online allocators: what must hold for any of them, and PyTorch's rules one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphsim as gs
from graphsim.allocators.cupy import Chunks, CupyPool
from graphsim.allocators.online import PoolFull
from graphsim.allocators.torch import TorchCaching, TorchPool
from graphsim.errors import OutOfMemoryError
from graphsim.layout import validate
from graphsim.simulation import simulate

KIB, MIB = 2**10, 2**20
POOLS = {
    "cupy": Chunks,
    "torch": lambda: TorchPool(TorchCaching()),
    "torch, no large splits": lambda: TorchPool(TorchCaching(max_split_size_mb=20)),
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
            handle = pool.malloc(event)
            assert handle not in live
            segment, begin = pool.place(handle)
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
    assert pool.malloc(11 * MIB) == second


def test_torch_does_not_split_oversize_blocks():
    pool = TorchPool(TorchCaching(max_split_size_mb=32))
    pool.free(pool.malloc(64 * MIB))
    pool.malloc(8 * MIB)
    assert pool.reserved == 84 * MIB
    pool.malloc(60 * MIB)
    assert pool.reserved == 84 * MIB


def test_torch_rounds_up_to_divisions_of_powers_of_two():
    pool = TorchPool(TorchCaching(roundup_power2_divisions="4"))
    assert pool.blocks[pool.malloc(1200 * 4)].size == 5 * KIB


def test_torch_gives_cached_segments_back_before_it_runs_out():
    pool = TorchPool(TorchCaching(limit=64 * MIB))
    pool.free(pool.malloc(40 * MIB))
    pool.malloc(60 * MIB)
    assert pool.reserved == 60 * MIB
    with pytest.raises(PoolFull):
        pool.malloc(10 * MIB)


@pytest.mark.parametrize("allocator", [TorchCaching, CupyPool])
def test_a_limit_answers_whether_a_step_fits_and_where_it_runs_out(allocator):
    run = simulate(gs.training_step(gs.load("resnet18", batch=2, size=64), optimizer="adam"))
    layout = allocator()(run.trace)
    validate(run.trace, layout)
    assert run.peak <= layout.peak <= layout.reserved_peak
    assert allocator(limit=layout.reserved_peak)(run.trace).reserved_peak <= layout.reserved_peak
    with pytest.raises(OutOfMemoryError, match="out of memory at event") as error:
        allocator(limit=run.peak // 2)(run.trace)
    assert error.value.limit == run.peak // 2
    assert 0 <= error.value.event < run.trace.events_count
