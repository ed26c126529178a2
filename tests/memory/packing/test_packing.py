"""Static allocation: every planner against brute force, a naive check and the published hard instances."""

from __future__ import annotations

import signal
import threading
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsim.core.cpsat import minimise
from graphsim.errors import LayoutError, MissingExtraError, UsageError
from graphsim.memory.packing import Instance, best_greedy, climb, optimal, solve
from graphsim.memory.packing.climbing import _Blocks
from graphsim.memory.packing.greedy import orders, place
from graphsim.memory.packing.instance import check, read_instance, write_packing

HARD = sorted((Path(__file__).parents[2] / "data" / "minimalloc").glob("*.csv"))
CAPACITY = 1_048_576


@st.composite
def instances(draw: st.DrawFn, most: int = 12, unit: int = 1) -> Instance:
    count = draw(st.integers(1, most))
    lower = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    length = draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
    size = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    begin = np.array(lower, dtype=np.int64)
    return Instance(begin, begin + length, np.array(size, dtype=np.int64) * unit)


def naive_first_fit(instance: Instance, order: list[int]) -> list[int]:
    """Lowest offset at which a block overlaps none placed before: byte by byte."""
    offset: dict[int, int] = {}
    for block in order:
        at = 0
        while any(
            instance.lower[block] < instance.upper[other]
            and instance.lower[other] < instance.upper[block]
            and at < offset[other] + instance.size[other]
            and offset[other] < at + instance.size[block]
            for other in offset
        ):
            at += 1
        offset[block] = at
    return [offset[block] for block in range(len(instance.size))]


def best_of_all_orders(instance: Instance) -> int:
    """The optimum: some order of first fit attains it."""
    heights = []
    for order in permutations(range(len(instance.size))):
        offset = naive_first_fit(instance, list(order))
        heights.append(max(at + size for at, size in zip(offset, instance.size.tolist(), strict=True)))
    return min(heights)


@given(instance=instances())
@settings(max_examples=200)
def test_every_planner_is_valid_and_no_lower_than_the_bound(instance):
    for order in orders(instance):
        assert sorted(order.tolist()) == list(range(len(instance.size)))
        for best_fit in (False, True):
            offset = place(instance, order, best_fit=best_fit)
            check(instance, offset)
            assert (offset + instance.size).max() >= instance.lower_bound


@given(instance=instances(), data=st.data())
@settings(max_examples=200)
def test_first_fit_is_the_naive_one_with_gaps_and_with_bit_masks(instance, data):
    order = data.draw(st.permutations(range(len(instance.size))))
    expected = naive_first_fit(instance, order)
    assert place(instance, np.array(order)).tolist() == expected
    scaled = Instance(instance.lower, instance.upper, instance.size * 512)
    blocks = _Blocks(scaled)
    unit = int(scaled.size[0]) // blocks.size[0]
    assert [at * unit for at in blocks.place(list(order))[1]] == [at * 512 for at in expected]


@given(instance=instances())
@settings(max_examples=100)
def test_the_bound_is_what_is_live_at_once(instance):
    moments = range(int(instance.upper.max()))
    live = [int(instance.size[(instance.lower <= t) & (t < instance.upper)].sum()) for t in moments]
    assert instance.lower_bound == max(live)


@given(instance=instances(most=5))
@settings(max_examples=25, deadline=None)
def test_climbing_is_no_worse_than_greedy_and_solving_is_optimal(instance):
    pytest.importorskip("ortools")
    optimum = best_of_all_orders(instance)
    climbed = climb(instance, seconds=0.02)
    check(instance, climbed.offset)
    assert optimum <= climbed.height <= best_greedy(instance).height
    solved = solve(instance, capacity=optimum, seconds=10)
    check(instance, solved.offset)
    assert solved.height == optimum
    if optimum > instance.lower_bound:
        refuted = solve(instance, capacity=optimum - 1, seconds=10)
        assert refuted.lower_bound == optimum


@pytest.mark.parametrize("path", HARD, ids=lambda path: path.stem[0])
def test_hard_instances_are_packed_validly_and_greedily_within_their_known_height(path):
    instance = read_instance(path)
    greedy = best_greedy(instance)
    check(instance, greedy.offset)
    assert greedy.height <= 1.36 * CAPACITY  # the best published greedy planners: 1.12 to 1.39
    climbed = climb(instance, seconds=0.5)
    check(instance, climbed.offset)
    assert climbed.height <= greedy.height


@pytest.mark.exhaustive
def test_an_instance_is_solved_to_its_capacity():
    pytest.importorskip("ortools")
    (path,) = (path for path in HARD if path.stem.startswith("K"))
    instance = read_instance(path)
    packing = solve(instance, capacity=CAPACITY, seconds=60)
    check(instance, packing.offset)
    assert packing.height <= CAPACITY
    assert packing.proved_optimal


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_the_best_so_far_and_is_heard_afterwards(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ortools")
    outcomes = []

    def interrupted(*arguments, **options):
        """Only while the solver runs: anywhere else it would end the tests."""
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        timer.start()
        outcomes.append(minimise(*arguments, **options))
        timer.cancel()
        return outcomes[-1]

    monkeypatch.setattr(optimal, "minimise", interrupted)
    begin = time.monotonic()
    packing = solve(read_instance(HARD[0]), capacity=1, seconds=18)
    assert outcomes[0].interrupted
    assert packing.offset.min() >= 0
    assert time.monotonic() - begin < 12
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_climbing_stops_at_its_goal():
    instance = read_instance(HARD[0])
    greedy = best_greedy(instance)
    assert climb(instance, seconds=60, goal=greedy.height).height <= greedy.height


def test_a_wrong_packing_is_found_out():
    instance = Instance(np.array([0, 1]), np.array([2, 3]), np.array([4, 4]))
    with pytest.raises(LayoutError, match="blocks 0 and 1 overlap"):
        check(instance, np.array([0, 3]))
    with pytest.raises(LayoutError, match="at least 0"):
        check(instance, np.array([0, -4]))


def test_a_packing_survives_its_file(tmp_path):
    instance = read_instance(HARD[0])
    write_packing(tmp_path / "out.csv", instance, best_greedy(instance).offset)
    again = read_instance(tmp_path / "out.csv")
    assert again.names == instance.names
    assert np.array_equal(again.size, instance.size)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "column id is missing"),
        ("id,lower,upper\n1,2,3\n", "column size is missing"),
        ("id,lower,upper,size\na,0,x,5\n", "line 2: upper must be a whole number"),
        ("id,lower,upper,size\na,0\n", "line 2: upper must be a whole number"),
        ("id,lower,upper,size\na,5,5,5\n", "line 2: upper (5) must be greater than lower (5)"),
        ("id,lower,upper,size\na,0,5,0\n", "line 2: size must be at least 1"),
        ("id,lower,upper,size\na,0,5,-3\n", "line 2: size must be at least 1"),
        ("id,lower,upper,size\na,0,5,1\na,0,5,1\n", "line 3: id 'a' stands twice"),
        ("id,lower,upper,size\na,0,5," + "9" * 40 + "\n", "line 2: size is beyond 2^48"),
        ("id,lower,upper,size\na,0,5," + "9" * 5000 + "\n", "line 2: size must be a whole number"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, text, reason):
    path = tmp_path / "blocks.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_instance(path)
    assert reason in str(error.value)
    assert str(path) in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_instance(tmp_path / "missing.csv")
    with pytest.raises(UsageError, match="directory"):
        read_instance(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"id,lower\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        read_instance(tmp_path / "binary.csv")


def test_without_the_solver_the_extra_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("ortools"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"graphsim-memory\[solver\]"):
        solve(read_instance(HARD[0]))
