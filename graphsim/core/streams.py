"""How long a step takes at least whose collectives run beside its kernels, each on a stream of its own."""

from __future__ import annotations

from typing import NamedTuple

from graphsim.core.devices import Device, op_seconds
from graphsim.core.graph import Graph
from graphsim.core.links import collective_seconds, is_collective


class StepSeconds(NamedTuple):
    """Lower bounds of the time of a step.

    Attributes:
        compute: of its kernels, by their roofline.
        communication: of its collectives.
        step: of both, side by side as far as none waits for what another makes.
    """

    compute: float
    communication: float
    step: float


def step_seconds(graph: Graph, device: Device, link: str = "") -> StepSeconds:
    """Return what *graph* takes at least on GPUs that are joined by *link* (see `links.link_of`), in program order.

    Kernels run one after the other, and so do collectives; each waits for what last wrote the storages that it touches.
    """
    base = {name: tensor.base for name, tensor in graph.tensors.items()}
    written: dict[str, float] = {}
    free, spent = [0.0, 0.0], [0.0, 0.0]
    for op, alone in zip(graph.ops, op_seconds(graph, device).tolist(), strict=True):
        stream = int(is_collective(op))
        takes = collective_seconds(op, device.name, link) if stream else alone
        touched = (base[name] for name in (*op.inputs, *op.outputs))
        end = takes + max(free[stream] if takes else 0.0, max((written.get(one, 0.0) for one in touched), default=0.0))
        spent[stream] += takes
        if takes:
            free[stream] = end
        for name in (*op.outputs, *op.mutates):
            written[base[name]] = end
    return StepSeconds(spent[0], spent[1], max(free))
