"""The page's data are the simulator's numbers, and nothing that a spec says becomes markup or leaves the file."""

from __future__ import annotations

import base64
import hashlib
import random
import re

import numpy as np
import pytest
from pages import HOSTILE, Elements, full_page, hostile_graph, island, rematerialized, step, stretch

import graphsim as gs
from graphsim.answers.plan import plans_of
from graphsim.core.index import NOTHING
from graphsim.core.simulation import ROLES, Simulation
from graphsim.errors import InfeasibleError, UnknownNameError
from graphsim.memory.allocators.torch import TorchCaching, TorchPool
from graphsim.recompute.plan import make_schedule
from graphsim.recompute.strategies import STRATEGIES
from graphsim.show.reporters.html import allocation_data, html_page
from graphsim.show.reporters.html.allocation import moments
from graphsim.show.reporters.html.plans import plan_row


@pytest.fixture(scope="module", params=["in order", "recomputed", "micro-batches"])
def runs(request) -> tuple[Simulation, Simulation]:
    """Step 1 and the steady step."""
    if request.param == "micro-batches":
        lenet, training = gs.load("lenet5", batch=4), gs.Training(optimizer="adam", accumulation=3)
        first, steady = (gs.training_step(lenet, training, first=first) for first in (True, False))
        return gs.simulate(first), gs.simulate(steady)
    of = rematerialized if request.param == "recomputed" else gs.simulate
    return of(step("resnet18", batch=2, size=64, first=True)), of(step("resnet18", batch=2, size=64))


@pytest.fixture(scope="module")
def run(runs) -> Simulation:
    return runs[1]


@pytest.fixture(params=["alone", "after step 1"])
def first(request, runs) -> Simulation | None:
    return runs[0] if request.param == "after step 1" else None


@pytest.fixture(scope="module")
def data(run):
    return island(full_page(run))


def live_rows(data, at):
    """What the page's script does: storages whose range holds *at*, and the workspace."""
    columns = data["storages"]
    ops, layers, roles = data["ops"]["name"], data["layers"], [name for name, _ in data["roles"]]
    rows = [
        (name, nbytes, roles[role], ops[op] if op >= 0 else "", layers[layer])
        for name, nbytes, role, layer, op, begin, end in zip(*columns.values(), strict=True)
        if begin <= at < end
    ]
    scratch = dict(zip(data["workspace"]["execution"], data["workspace"]["bytes"], strict=True)).get(at, 0)
    if scratch:
        op = data["order"][at] if data["order"] else at
        rows.append(("workspace", scratch, "workspace", ops[op], layers[data["ops"]["layer"][op]]))
    return sorted(rows)


def test_the_live_set_of_random_moments_is_the_simulators(run, data):
    assert list(data["storages"]) == ["name", "bytes", "role", "layer", "op", "begin", "end"]
    moments = random.Random(6).sample(range(len(run.schedule)), 25)
    for at in [run.peak_execution, 0, len(run.schedule) - 1, *moments]:
        assert live_rows(data, at) == sorted(map(tuple, run.live_at(at)))


def test_the_peak_is_the_simulators(run, data):
    op = run.op_at(run.peak_execution)
    assert data["peak"] == {
        "bytes": run.peak,
        "execution": run.peak_execution,
        "op": op.name,
        "layer": op.layer,
        "phase": str(run.phases[run.peak_execution]),
        "by_role": run.by_role(run.peak_execution),
    }
    assert f"({run.peak:,} bytes)</strong>" in full_page(run, compare=False)


def test_sums_by_role_over_time_follow_from_the_columns(run, data):
    names = [name for name, _ in data["roles"]]
    assert sorted(names) == sorted(ROLES)
    lines = {name: np.zeros(len(run.schedule), dtype=np.int64) for name in names}
    columns = data["storages"]
    for nbytes, role, begin, end in zip(
        columns["bytes"], columns["role"], columns["begin"], columns["end"], strict=True
    ):
        lines[names[role]][begin:end] += nbytes
    lines["workspace"][data["workspace"]["execution"]] += np.array(data["workspace"]["bytes"], dtype=np.int64)
    for role, line in run.timeline_by_role().items():
        assert np.array_equal(lines[role], line), role


def test_costs_add_up_to_the_time_of_the_step(run, data):
    order = data["order"] or range(len(run.schedule))
    assert sum(data["costs"]["of"][op] for op in order) == pytest.approx(run.time, rel=1e-3)
    assert data["costs"]["unit"] == "seconds"


def test_ops_and_phases_stand_in_the_order_of_execution(run, data):
    phases = [name for name, _ in data["phases"]]
    assert [phases[code] for code in data["phase"]] == [str(phase) for phase in run.phases]
    order = data["order"] or range(len(data["ops"]["name"]))
    for at, op in enumerate(order):
        executed = run.op_at(at)
        assert data["ops"]["name"][op] == executed.name
        assert data["kinds"][data["ops"]["kind"][op]] == executed.kind
        assert data["layers"][data["ops"]["layer"][op]] == executed.layer


@pytest.mark.parametrize("name", ["exact", "torch", "cupy", "bfc", "arena"])
def test_the_allocator_is_seen_while_each_op_runs(run, first, name):
    allocation = allocation_data(stretch(run, name, first=first), name)
    used, reserved = np.array(allocation["used"]), np.array(allocation["reserved"])
    assert len(used) == len(reserved) == len(run.schedule)
    assert (run.timeline <= used).all()
    assert (used <= reserved).all()
    assert allocation["reserved_peak"] >= reserved.max()
    if name == "exact":
        assert np.array_equal(used, run.timeline)
    assert sum(allocation["segments"]) == reserved[run.peak_execution]
    assert not allocation["approximate"]
    blocks = allocation["blocks"]
    assert sum(blocks["bytes"]) == run.peak
    names = sorted((run.storages[row].name if row >= 0 else "workspace") for row in blocks["storage"])
    assert names == sorted(tensor.name for tensor in run.live_at(run.peak_execution) if tensor.nbytes)
    ends: dict[int, int] = {}
    for segment, offset, nbytes in zip(blocks["segment"], blocks["offset"], blocks["bytes"], strict=True):
        assert offset >= ends.get(segment, 0), "blocks of a segment overlap or are not in order"
        ends[segment] = offset + nbytes
        assert ends[segment] <= allocation["segments"][segment]


def test_segments_are_those_of_pytorchs_allocator_itself(run, first):
    seen = stretch(run, first=first)
    event = int(seen.stream.events(moments(run)[[run.peak_execution]])[0])
    pool, live = TorchPool(TorchCaching()), {}
    for number, change in list(zip(*seen.stream.trace.stream, strict=True))[: event + 1]:
        if change > 0:
            live[number] = pool.malloc(int(change))
        else:
            pool.free(live.pop(number))
    sizes: dict[int, int] = {}
    for block in pool.blocks.values():
        sizes[block.segment] = sizes.get(block.segment, 0) + block.size
    assert allocation_data(seen, "torch")["segments"] == [sizes[segment] for segment in sorted(sizes)]


def test_moments_are_where_the_trace_says(run):
    """Before execution t runs, all of its mallocs are done and none of the frees after it."""
    trace, moment = run.trace, moments(run)
    live = np.cumsum(trace.stream[1])
    assert np.array_equal(live[moment], run.timeline)
    mallocs = sorted(zip(trace.execution.tolist(), trace.malloc.tolist(), strict=True))
    last = {at: event for at, event in mallocs if at != NOTHING}
    assert all(moment[at] == event for at, event in last.items())


def test_memory_that_runs_out_is_said_and_not_drawn(run, first):
    allocation = allocation_data(stretch(run, "torch", "limit=1MiB", first=first), "torch", "limit=1MiB")
    assert allocation["out_of_memory"]
    assert "segments" not in allocation
    limited = allocation_data(stretch(run, "torch", "limit=64GiB", first=first), "torch", "limit=64GiB", limited=True)
    assert limited["approximate"], "segments may have been given back under a limit"


def test_an_unknown_allocator_is_an_error_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="torch"):
        gs.report(hostile_graph(), allocator="torhc")


def test_plans_are_judged_under_the_policy_of_the_page():
    graph = step("lenet5", batch=8)
    for policy in ("eager", "liveness"):
        plans = {plan.strategy: plan for plan in plans_of(graph, strategies=["none", "sqrt"], policy=policy)}
        assert plans["none"].peak_bytes == gs.simulate(graph, policy=policy).peak
        assert plans["none"].overhead == 0
        schedule = make_schedule(graph, "sqrt")
        assert plans["sqrt"].peak_bytes == gs.simulate(graph, schedule, policy=policy).peak
    tight, wide = plans_of(graph, [1, 2**40], ["none"])
    assert (tight.feasible, wide.feasible) == (False, True)


def test_a_strategy_that_fails_is_a_row_with_its_reason(monkeypatch):
    class Broken:
        def __call__(self, case, budget):
            raise InfeasibleError("no room\nat all", budget=1, memory_bound=2)

    monkeypatch.setitem(STRATEGIES._table, "none", "tests:none")
    monkeypatch.setattr(type(STRATEGIES), "__getitem__", lambda self, name: Broken)
    (row,) = map(plan_row, plans_of(hostile_graph(), strategies=["none"]))
    shown = {
        "peak": None,
        "overhead": None,
        "bound": None,
        "least": None,
        "feasible": False,
        "problem": "no room at all",
    }
    assert row == {"strategy": "none", "budget": None, "seconds": 0.0, **shown}


def test_gpt2_with_everything_is_under_3_mb():
    page = full_page(gs.simulate(step("gpt2", batch=8, seq=1024)))
    assert 100_000 < len(page.encode()) < 3_000_000


def test_the_page_names_no_resource_and_its_policy_lets_none_in(run):
    page = full_page(run)
    parsed = Elements(page)
    for tag, attributes in parsed.elements:
        assert not {"src", "srcset", "action", "data", "poster", "style"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "#timeline") == "#timeline", tag
        assert tag not in ("iframe", "object", "embed", "link", "base", "form"), tag
    code = "".join(parsed.raw)
    for way_out in ("@import", "url(", "fetch(", "XMLHttpRequest", "WebSocket", "EventSource", "sendBeacon", "import("):
        assert way_out not in code, way_out
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses == {"https://github.com/leeoniya/uPlot"}, "the library's notice in a comment"
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    raw = [attributes.get("type") for tag, attributes in parsed.elements if tag in ("script", "style")]
    for kind, text in zip(raw, parsed.raw, strict=True):
        if kind != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_hostile_names_stay_names():
    run = gs.simulate(hostile_graph())
    page = html_page(run, facts={HOSTILE: HOSTILE}, allocation=allocation_data(stretch(run), "torch"))
    harmless = html_page(gs.simulate(step("lenet5", batch=2)), facts={"a": "b"}, allocation=None)
    shape = [tag for tag, _ in Elements(harmless).elements if tag not in ("tr", "th", "td")]
    assert [tag for tag, _ in Elements(page).elements if tag not in ("tr", "th", "td")] == shape
    assert "<img" not in page
    data = island(page)
    assert data["title"] == HOSTILE
    assert data["ops"]["name"][0] == f"op{HOSTILE}"
    assert data["layers"][:2] == [f"a.{HOSTILE}", HOSTILE]
    assert data["facts"] == [[HOSTILE, HOSTILE]]


def test_a_step_without_ops_has_a_page():
    graph = gs.Graph([], [gs.Tensor("x", (4,), role=gs.Role.INPUT)], name="empty")
    data = island(html_page(gs.simulate(graph)))
    assert data["peak"]["bytes"] == 16
    assert data["phase"] == []
    assert data["storages"]["name"] == ["x"]
