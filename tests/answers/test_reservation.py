"""One number for one question: what an allocator holds is the same in every answer, and out of memory where it is."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphsim as gs
from graphsim.answers.reservation import chosen_allocator, history_of, placed, reservations
from graphsim.core.index import NOTHING
from graphsim.core.simulation import Simulation, in_succession
from graphsim.errors import UnknownNameError, UsageError
from graphsim.memory.allocators.online import PoolFull
from graphsim.memory.allocators.torch import TorchCaching, TorchPool
from graphsim.sources import source_of

MIB = 2**20
GPT2 = {"layers": 2, "width": 128, "heads": 2, "vocab": 2000}
"""As gpt2 at 8x1024, only that less is done: many layers of blocks of few sizes, and one large one at the end."""
SETTINGS = [
    ("gpt2", {"params": GPT2, "batch": 8, "seq": 128}),
    ("gpt2", {"params": GPT2, "batch": 8, "seq": 128, "optimizer": "adam8bit", "precision": "amp-bf16"}),
    ("gpt2", {"params": GPT2, "batch": 2, "seq": 64, "accumulation": 2}),
    ("gpt2", {"params": GPT2, "batch": 4, "seq": 64, "mode": "inference"}),
    ("resnet18", {"params": {"size": 64}, "batch": 4, "optimizer": "momentum"}),
]


def runs(name: str, **setting) -> tuple[Simulation, Simulation]:
    steps = source_of(name, **setting.pop("params", {}), **setting).steps(gs.Training(optimizer="adamw"))
    first, steady = (gs.simulate(step) for step in steps)
    return first, steady


@pytest.fixture(scope="module")
def gpt2() -> tuple[Simulation, Simulation]:
    return runs("gpt2", params=GPT2, batch=8, seq=128)


def page_data(page: str) -> dict:
    (text,) = re.findall(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_peak_fit_and_the_page_say_the_same_of_pytorchs_allocator(name, setting):
    report = gs.peak(name, allocator="torch", **setting)
    held = report.first.reserved_peak_bytes, report.steady.reserved_peak_bytes
    pages = [page_data(gs.report(name, allocator="torch", first=first, **setting)) for first in (True, False)]
    assert tuple(page["allocation"]["reserved_peak"] for page in pages) == held
    assert gs.fit(name, memory="80GiB", **setting).need_bytes == max(bytes_ or 0 for bytes_ in held)


def test_a_later_step_is_what_the_pool_itself_does_after_step_1(gpt2):
    """Walk the events of both steps through the pool, block by block, and look at what it has from the device."""
    first, steady = gpt2
    pool, blocks, stream = TorchPool(TorchCaching()), {}, in_succession(first, steady).trace
    reserved = []
    for event in stream.events():
        if event.kind == "malloc":
            blocks[event.block] = pool.malloc(event.nbytes)
        else:
            pool.free(blocks.pop(event.block))
        reserved.append(pool.reserved)
    begin = first.trace.events_count
    held = reservations(first, steady, TorchCaching())
    assert (held[0].reserved, held[1].reserved) == (max(reserved[:begin]), max(reserved[begin:]))


def test_what_step_1_leaves_in_the_cache_counts():
    """Optimizer states, made at the end of step 1, lie in blocks in which logits of 823 MB lay before."""
    source = source_of("gpt2", batch=8, seq=512, layers=4)
    first, steady = (gs.simulate(step) for step in source.steps(gs.Training(optimizer="adam8bit")))
    alone = [TorchCaching()(run.trace).reserved_peak for run in (first, steady)]
    held = reservations(first, steady, TorchCaching())
    assert held[0].reserved == alone[0]
    assert held[1].reserved > max(alone)


def walked(first: Simulation, later: Simulation, limit: int) -> str:
    """Return where memory runs out: the blocks of both steps one by one, each execution by its own name."""
    stream = in_succession(first, later).trace
    pool, blocks = TorchPool(TorchCaching(limit=limit)), {}
    for event in stream.events():
        if event.kind == "free":
            pool.free(blocks.pop(event.block))
            continue
        try:
            blocks[event.block] = pool.malloc(event.nbytes)
        except PoolFull:
            execution = int(stream.execution[event.block])
            ops = [first.op_at(at).name for at in range(len(first.schedule))]
            if stream.malloc[event.block] < first.trace.events_count:
                return "in step 1"
            if execution < len(ops):
                return "before the step"
            return later.op_at(execution - len(ops)).name
    return ""


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.3, 1.02))
def test_the_op_that_is_blamed_is_the_one_whose_malloc_passes_the_limit(gpt2, share):
    first, steady = gpt2
    limit = int(share * reservations(first, steady, TorchCaching())[1].reserved)
    assert placed(first, steady, TorchCaching(limit=limit))[1].out_of_memory == walked(first, steady, limit)


def test_limits_between_the_two_steps_blame_an_op_of_the_later_one(gpt2):
    """Within what step 1 needs and what a later step needs more, a limit lets step 1 pass."""
    first, steady = gpt2
    alone = TorchCaching()(first.trace)
    limits = range(alone.peak // MIB * MIB, reservations(first, steady, TorchCaching())[1].reserved, MIB // 2)
    told = {placed(first, steady, TorchCaching(limit=limit))[1].out_of_memory for limit in limits}
    assert told == {walked(first, steady, limit) for limit in limits}
    assert told - {"in step 1", "before the step", ""} <= {op.name for op in steady.graph.ops}
    assert len(told - {"in step 1", "before the step", ""}) >= 1


def test_step_1_that_does_not_fit_is_said_of_each_step(gpt2):
    first, steady = gpt2
    resident = sum(int(n) for n in first.trace.nbytes[first.trace.execution == NOTHING])
    low, high = (reservations(first, steady, TorchCaching(limit=limit)) for limit in (resident // 2, resident * 3 // 2))
    assert [held.out_of_memory for held in low] == ["before the step", "in step 1"]
    assert high[0].out_of_memory in {op.name for op in first.graph.ops}
    assert high[1].out_of_memory == "in step 1"
    assert {held.reserved for held in (*low, *high)} == {held.fragmentation for held in (*low, *high)} == {None}


def test_an_allocator_that_keeps_nothing_begins_each_step_anew(gpt2):
    first, steady = gpt2
    exact = chosen_allocator("exact")
    held = reservations(first, steady, exact)
    assert [h.reserved for h in held] == [first.peak, steady.peak]
    assert [h.fragmentation for h in held] == [0.0, 0.0]


def test_no_allocator_holds_nothing_and_options_need_one(gpt2):
    assert {held.reserved for held in reservations(gpt2[0], gpt2[1], None)} == {None}
    assert chosen_allocator("") is None
    with pytest.raises(UsageError, match="allocator options need an allocator"):
        chosen_allocator("", "limit=1GiB")
    with pytest.raises(UnknownNameError, match="torch"):
        chosen_allocator("torhc")


def walk(pool: TorchPool, run: Simulation, there: dict) -> dict:
    """Walk the events of *run* through *pool*, where the blocks *there* are already; return what is left, by name.

    What of that *run* does not start with is freed before.
    """
    names, trace, live = list(run.graph.tensors), run.trace, {}
    starts = {names[t] for t, at in zip(trace.tensor, trace.execution, strict=True) if at == NOTHING}
    for name in there.keys() - starts:
        pool.free(there.pop(name))
    for block, change in zip(*(column.tolist() for column in trace.stream), strict=True):
        name = names[trace.tensor[block]] if trace.tensor[block] != NOTHING else ""
        if change < 0:
            pool.free(live.pop(block)[1])
        elif trace.execution[block] == NOTHING and name in there:
            live[block] = name, there.pop(name)
        else:
            live[block] = name, pool.malloc(change)
    return dict(live.values())


def test_what_ran_before_leaves_its_segments_to_the_pool(gpt2):
    """By hand: both steps of each training in one pool, and all tensors freed between the trainings."""
    (first, later), pool = gpt2, TorchPool(TorchCaching())
    before = runs("resnet18", params={"size": 64}, batch=4), runs("gpt2", params=GPT2, batch=2, seq=64)
    for one, other in before:
        for block in walk(pool, other, walk(pool, one, {})).values():
            pool.free(block)
    cached = pool.reserved
    left = walk(pool, first, {})
    held = reservations(first, later, TorchCaching(), history_of(before))
    assert held[0].reserved == pool.reserved >= cached > 0  # nothing is given back without a limit
    walk(pool, later, left)
    assert held[1].reserved == pool.reserved
    assert held[1].reserved != reservations(first, later, TorchCaching())[1].reserved


@pytest.mark.parametrize(
    ("limit", "where"),
    [
        (20, ("in what ran before", "in what ran before")),
        (40, ("h.1.c_attn.addmm", "in step 1")),
        (80, ("", "loss.log_softmax_backward@backward")),
        (100, ("", "")),
    ],
)
def test_it_runs_out_of_memory_where_it_does_after_a_small_one(gpt2, limit, where):
    """As without it, but where that itself does not fit: a cache is given back before memory runs out."""
    small = runs("gpt2", params={**GPT2, "vocab": 10, "width": 2}, batch=1, seq=2)
    first, later = gpt2
    held = reservations(first, later, TorchCaching(limit=limit * MIB), history_of([small]))
    assert tuple(one.out_of_memory for one in held) == where


def test_what_ran_before_is_named_with_its_params():
    report = gs.peak("lenet5", batch=4, allocator="torch", after=["resnet18 batch=2 size=64", "lenet5"])
    alone = gs.peak("lenet5", batch=4, allocator="torch").steady
    assert report.after == ("resnet18", "lenet5")
    assert report.steady.peak_bytes == alone.peak_bytes
    assert (report.steady.reserved_peak_bytes or 0) > (alone.reserved_peak_bytes or 0)
    with pytest.raises(UsageError, match="write NAME=VALUE"):
        gs.peak("lenet5", allocator="torch", after=["resnet18 batch"])
    with pytest.raises(UsageError, match="--allocator"):
        gs.peak("lenet5", after=["resnet18"])
