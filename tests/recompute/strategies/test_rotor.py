"""Rotor: the dynamic program against a search over all sequences, and what it does to chains and models."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from exhaustive import only
from generators import chain
from hypothesis import given, settings
from hypothesis import strategies as st

import graphsim as gs
from graphsim.core.simulation import simulate
from graphsim.errors import UsageError
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies.greedy import Greedy
from graphsim.recompute.strategies.rotor import Chain, Rotor, Step, Table


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    n = draw(st.integers(1, 5))
    numbers = st.integers(1, 4)

    def column(strategy: st.SearchStrategy[int]) -> np.ndarray:
        return np.array([draw(strategy) for _ in range(n)])

    size = column(numbers)
    size[0] = 0
    output = [*size[1:].tolist(), draw(numbers)]
    tape = np.array([out + draw(st.integers(0, 4)) for out in output])
    extra = st.sampled_from([0, 0, 1, 3])
    return Chain(column(numbers) * 1.0, column(numbers) * 1.0, size, tape, column(extra), column(extra))


def execute(chain: Chain, steps: list[Step]) -> tuple[float, int]:
    """Carry out *steps* on what a device would hold; return time and peak bytes. Outputs nobody keeps are transient."""
    held: dict[tuple[str, int], int] = {("input", 0): 0}
    turn, time, peak = len(chain.forward), 0.0, 0
    for kind, i in steps:
        held_now = sum(held.values())
        if kind == "backward":
            assert i == turn - 1
            assert ("tape", i) in held
            peak = max(peak, held_now + int(chain.backward_extra[i]))
            time += chain.backward[i]
            turn = i
            del held["tape", i]
            held.pop(("input", i), None)
            held = {key: size for key, size in held.items() if key[0] != "moving"}
            continue
        source = next((key for key in (("input", i), ("tape", i - 1), ("moving", i)) if key in held), None)
        assert source, f"no input for stage {i}"
        time += chain.forward[i]
        made = int(chain.tape[i]) if kind == "tape" else int(chain.size[i + 1])
        peak = max(peak, held_now + made + int(chain.forward_extra[i]))
        moving = held.pop(("moving", i), None)
        if kind in ("checkpoint", "tape") and moving is not None:
            held["input", i] = moving
        held["tape" if kind == "tape" else "moving", i if kind == "tape" else i + 1] = made
    assert turn == 0
    return time, peak


def least_time(chain: Chain, memory: int) -> float:
    """Search all memory-persistent sequences: what is stored stays until the backward of its stage."""
    n = len(chain.forward)
    start = (frozenset({("input", 0)}), -1, n)
    best, queue, count = {start: 0.0}, [(0.0, 0, start)], 0
    while queue:
        time, _, state = heapq.heappop(queue)
        if time > best[state]:
            continue
        held, moving, turn = state
        if turn == 0:
            return time
        for cost, after in _moves(chain, held, moving, turn, memory):
            if time + cost < best.get(after, math.inf):
                best[after] = time + cost
                count += 1
                heapq.heappush(queue, (time + cost, count, after))
    return math.inf


def _moves(chain: Chain, held: frozenset, moving: int, turn: int, memory: int):
    """Yield cost and next state. *moving* is the stage whose input was just made and is not stored."""

    def size(items) -> int:
        return sum(int(chain.tape[i] if kind == "tape" else chain.size[i]) for kind, i in items)

    used = size(held) + (int(chain.size[moving]) if moving >= 0 else 0)
    if ("tape", turn - 1) in held and size(held) + chain.backward_extra[turn - 1] <= memory:
        left = held - {("tape", turn - 1), ("input", turn - 1)}
        yield chain.backward[turn - 1], (left, -1, turn - 1)
    for i in range(turn):
        stored = ("input", i) in held or ("tape", i - 1) in held
        if not stored and moving != i:
            continue
        # Going back to what is stored lets go of what is moving.
        base = used if moving == i else size(held)
        kept = held if stored else held | {("input", i)}
        if ("tape", i) not in held and base + chain.tape[i] + chain.forward_extra[i] <= memory:
            yield chain.forward[i], (kept | {("tape", i)}, -1, turn)
        if i + 1 < turn and base + chain.size[i + 1] + chain.forward_extra[i] <= memory:
            yield chain.forward[i], (held, i + 1, turn)
            yield chain.forward[i], (kept, i + 1, turn)


@given(chain=chains(), memory=st.integers(1, 24))
@settings(max_examples=300, deadline=None)
def test_the_program_finds_the_optimum_of_all_persistent_sequences(chain, memory):
    table = Table(chain, memory)
    assert table.time[0, -1, memory] == least_time(chain, memory)


@given(chain=chains(), memory=st.integers(1, 24))
@settings(max_examples=300, deadline=None)
def test_its_steps_take_the_time_and_the_memory_that_it_says(chain, memory):
    table = Table(chain, memory)
    expected = table.time[0, -1, memory]
    if math.isinf(expected):
        return
    time, peak = execute(chain, table.steps(memory))
    assert time == expected
    assert peak <= memory


@pytest.mark.parametrize("length", only([24], [24, 60]))
def test_on_an_equal_chain_it_is_as_good_as_the_square_root_and_monotone(length):
    graph = chain(length)
    plans = [make_plan(graph, Rotor(), budget * 1000) for budget in range(10, length + 3)]
    assert all(plan.feasible for plan in plans)
    times = [plan.time for plan in plans]
    assert times == sorted(times, reverse=True)
    assert times[-1] == 2 * length


@pytest.mark.parametrize(("model", "batch"), [("resnet18", 64), ("unet", 1)])
def test_within_a_budget_it_costs_no_more_than_chens_greedy_on_real_models(model, batch):
    step = gs.training_step(gs.load(model, batch=batch), optimizer="sgd")
    stored = simulate(step).peak
    for share in (0.9, 0.8, 0.7):
        rotor, greedy = (make_plan(step, strategy(), int(stored * share)) for strategy in (Rotor, Greedy))
        assert rotor.feasible
        assert rotor.time <= greedy.time or not greedy.feasible


def test_no_span_is_refused():
    with pytest.raises(UsageError, match="at least 1"):
        Rotor(spans=0)
