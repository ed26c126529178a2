"""The random state that a checkpoint keeps so that dropout drops the same: bytes that no dispatched op allocates."""

from __future__ import annotations

from collections.abc import Iterable

from graphsim.core.graph import HOLD, Graph, Op, Phase, Role, Tensor

STATE_BYTES = 5056
"""Of the CPU generator: what ``torch.get_rng_state()`` returns (aten/src/ATen/CPUGeneratorImpl.cpp)."""


def draws(kind: str) -> bool:
    """Return whether an op of *kind* may draw random numbers; of ops outside of aten this is not known."""
    import torch

    packet = getattr(torch.ops.aten, kind, None)
    if packet is None:
        return "::" in kind
    tags = (tag for name in packet.overloads() for tag in getattr(packet, name).tags)
    return torch.Tag.nondeterministic_seeded in tags


def with_states(graph: Graph, paths: Iterable[str]) -> Graph:
    """Return the step of a model whose modules *paths* keep the random state, with these states in it.

    ``torch.utils.checkpoint`` takes the state before the module and keeps it until the module's backward is over;
    while the module runs again, ``fork_rng`` keeps the present one. For the CPU; a GPU's memory holds no states.
    """
    training = graph.attributes.get("training") or {}
    if training.get("target") != "cpu":
        return graph
    before: dict[int, list[Op]] = {}
    after: dict[int, list[Op]] = {}
    tensors = list(graph.tensors.values())
    for path in paths:
        spans = {phase: _span(graph, path, phase) for phase in (Phase.FORWARD, Phase.RECOMPUTE, Phase.BACKWARD)}
        for name, first, last in (
            ("kept", spans[Phase.FORWARD], spans[Phase.BACKWARD]),
            ("present", spans[Phase.RECOMPUTE], spans[Phase.RECOMPUTE]),
        ):
            if not first or not last:
                continue
            tensor = Tensor(f"{path}.rng_state.{name}", (STATE_BYTES,), "uint8", Role.TEMPORARY)
            tensors.append(tensor)
            begin = Op(f"{tensor.name}.get", "get_rng_state", (), (tensor.name,), graph.ops[first[0]].phase, path)
            end = Op(f"{tensor.name}.hold", HOLD, (tensor.name,), (), graph.ops[last[1]].phase, path)
            before.setdefault(first[0], []).append(begin)
            after.setdefault(last[1], []).append(end)
    ops = [one for at, op in enumerate(graph.ops) for one in (*before.get(at, ()), op, *after.get(at, ()))]
    return Graph(ops, tensors, outputs=graph.outputs, name=graph.name, attributes=graph.attributes)


def _span(graph: Graph, path: str, phase: Phase) -> tuple[int, int] | None:
    places = [at for at, op in enumerate(graph.ops) if op.phase is phase and f"{op.layer}.".startswith(f"{path}.")]
    return (places[0], places[-1]) if places else None
