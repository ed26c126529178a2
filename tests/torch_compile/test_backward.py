"""The backward graph as integers, against a second implementation: PyTorch's two passes, and liveness by sets."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("torch")

from graphsim.torch_compile.backward import NumberedGraph, backward_pass, floor


@st.composite
def joints(draw: st.DrawFn) -> tuple[NumberedGraph, frozenset[int]]:
    """A joint graph of sources, forward nodes and backward nodes, with views and tuples; and what is saved."""
    sources, forward, backward = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    count = sources + forward + backward
    inputs: list[tuple[int, ...]] = [()] * sources
    storages: list[tuple[int, ...]] = [(number,) for number in range(sources)]
    owner, unpacks = [-1] * sources, set()
    nbytes = [draw(st.sampled_from([0, 1, 4, 9])) for _ in range(sources)]
    tuples: set[int] = set()
    for node in range(sources, count):
        tensors = sorted(set(range(node)) - tuples)
        read = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3, unique=True))
        if node >= sources + forward and node - 1 not in read and node - 1 in tensors:
            read.append(node - 1)
        kind = draw(st.sampled_from(["op", "op", "op", "view", "tuple", "element"]))
        elements = sorted(t for t in tuples if (t < sources + forward) == (node < sources + forward))
        if kind == "element" and elements:
            read = [draw(st.sampled_from(elements))]
            unpacks.add(node)
        shared = kind in ("view", "element") and (kind == "view" or bool(elements))
        inputs.append(tuple(read))
        owner.append(read[0] if shared else -1)
        if shared:
            storages.append((draw(st.sampled_from(storages[read[0]])),))
            continue
        made = draw(st.integers(1, 2)) if kind == "tuple" else 1
        storages.append(tuple(range(len(nbytes), len(nbytes) + made)))
        nbytes += draw(st.lists(st.integers(0, 9), min_size=made, max_size=made))
        if kind == "tuple":
            tuples.add(node)
    last = count - 1
    roots = {last} if last not in tuples else set(inputs[last]) - tuples
    roots = roots or {sources - 1}
    alive = _ancestors(roots, inputs)
    joint = NumberedGraph(
        inputs=tuple(inputs),
        storages=tuple(storages),
        owner=tuple(owner),
        unpacks=frozenset(unpacks),
        sources=frozenset(range(sources)),
        first=sources + forward,
        backward=tuple(sorted(node for node in alive if node >= sources + forward)),
        results=tuple(sorted(roots)),
        nbytes=tuple(nbytes),
        persistent_bytes=draw(st.integers(0, 3)),
    )
    savable = sorted(set(range(sources, sources + forward)) - tuples)
    return joint, frozenset(draw(st.lists(st.sampled_from(savable or [0]), unique=True)))


def _ancestors(nodes, inputs):
    found, stack = set(), list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += inputs[node]
    return found


def emitted(joint: NumberedGraph, saved: frozenset[int]) -> list[int]:
    """The order of ``_extract_graph_with_inputs_outputs`` and ``reordering_to_mimic_autograd_engine``."""
    kept = [() if node in saved else read for node, read in enumerate(joint.inputs)]
    graph = sorted(_ancestors(joint.results, kept))
    placeholders = {node for node in graph if node in saved or node in joint.sources}
    order: list[int] = []
    for anchors in [*([node] for node in graph if node >= joint.first), joint.results]:  # results: by one output node
        for node in sorted(_ancestors(anchors, kept)):
            if node not in order and node not in placeholders:
                order.append(node)
    return order


def slow(joint: NumberedGraph, saved: frozenset[int]) -> tuple[int, set[int]]:
    """Peak and recomputed nodes by walking the emitted order with sets."""
    order = emitted(joint, saved)
    value = {node: {s: ("before", s) for s in joint.storages[node]} for node in (*joint.sources, *saved)}
    for node in order:
        own = value[joint.owner[node]] if joint.owner[node] >= 0 else {}
        value[node] = {s: own.get(s, (node, s)) for s in joint.storages[node]}
    reads = [
        {v for i in joint.inputs[n] for v in value[i].values()} if n not in joint.unpacks else set() for n in order
    ]
    reads.append({v for n in joint.results for v in value[n].values()})
    live = {v for read in reads for v in read if v[0] == "before"}
    peak = sum(joint.nbytes[s] for _, s in live)
    for place, node in enumerate(order):
        live |= set(value[node].values()) - {v for v in value[node].values() if v[0] == "before"}
        peak = max(peak, sum(joint.nbytes[s] for _, s in live))
        live &= {v for read in reads[place + 1 :] for v in read}
    return peak + joint.persistent_bytes, set(order) - set(joint.backward)


NO_BACKWARD_NODE = NumberedGraph(
    inputs=((), (), (0,), (0,), (0, 1, 2), (3,), (4, 5)),
    storages=((0,), (1,), (2,), (3,), (4,), (5,), (6,)),
    owner=(-1,) * 7,
    unpacks=frozenset(),
    sources=frozenset({0, 1}),
    first=6,
    backward=(),
    results=(4, 5),
    nbytes=(0, 0, 1, 1, 0, 0, 0),
    persistent_bytes=0,
)


@given(joints())
@example((NO_BACKWARD_NODE, frozenset()))
def test_peak_and_recomputed_nodes_are_those_of_the_emitted_order(case):
    joint, saved = case
    run = backward_pass(joint, saved)
    assert (run.peak, set(run.recomputed)) == slow(joint, saved)


@given(joints())
def test_no_choice_peaks_below_the_floor(case):
    joint, saved = case
    assert floor(joint) <= backward_pass(joint, saved).peak


def test_a_recomputed_node_runs_right_before_the_first_backward_node_that_needs_it():
    # x -> f1 -> f2; b3 reads f2, b4 reads b3 and f1. With f2 saved, f1 does not exist while b3 runs.
    joint = NumberedGraph(
        inputs=((), (0,), (1,), (2,), (3, 1)),
        storages=((0,), (1,), (2,), (3,), (4,)),
        owner=(-1,) * 5,
        unpacks=frozenset(),
        sources=frozenset({0}),
        first=3,
        backward=(3, 4),
        results=(4,),
        nbytes=(0, 10, 100, 1000, 1),
        persistent_bytes=0,
    )
    assert backward_pass(joint, frozenset({2})).peak == 1100
    assert backward_pass(joint, frozenset({1, 2})).peak == 1110
    assert backward_pass(joint, frozenset()).recomputed == {1, 2}


@pytest.mark.parametrize("saved", [frozenset(), frozenset({1})])
def test_of_a_tuple_only_the_elements_that_are_read_live_on(saved):
    # The op 1 returns storages 1 (8 bytes) and 2 (100 bytes); 2 is its first element; the backward 3, 4 read it.
    joint = NumberedGraph(
        inputs=((), (0,), (1,), (0,), (3, 2)),
        storages=((0,), (1, 2), (1,), (3,), (4,)),
        owner=(-1, -1, 1, -1, -1),
        unpacks=frozenset({2}),
        sources=frozenset({0}),
        first=3,
        backward=(3, 4),
        results=(4,),
        nbytes=(0, 8, 100, 1, 1),
        persistent_bytes=0,
    )
    assert backward_pass(joint, frozenset({2})).peak == 10
    assert backward_pass(joint, frozenset()).peak == 109
