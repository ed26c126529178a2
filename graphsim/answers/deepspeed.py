"""What DeepSpeed's estimators say of a model: its states alone, by their own rule, without the package.

They assume mixed precision and Adam, nothing offloaded, and count neither activations nor buffers. There is none for
stage 1. Sources: deepspeed/runtime/zero/stage_1_and_2.py, ``estimate_zero2_model_states_mem_needs``, and stage3.py,
``estimate_zero3_model_states_mem_needs``; docs/code-docs/source/memory.rst explains the factors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from graphsim.core.graph import Graph, Role


def estimates(step: Graph, gpus: int) -> Mapping[str, int]:
    """Return the bytes for each GPU by stage, of a *step* of the whole model."""
    layers: Counter[str] = Counter()
    for tensor in step.tensors.values():
        if tensor.role is Role.PARAMETER and not tensor.storage:
            layers[tensor.name.rpartition(".")[0]] += tensor.size
    total, largest = sum(layers.values()), max(layers.values(), default=0)
    return {"ZeRO-2": stage_2(total, gpus), "ZeRO-3": stage_3(total, largest, gpus)}


def stage_2(parameters: int, gpus: int) -> int:
    """Return the bytes of a GPU by the estimator for ZeRO-2."""
    return 4 * parameters + 16 * parameters // gpus


def stage_3(parameters: int, largest_layer: int, gpus: int) -> int:
    """Return the same for ZeRO-3; the *largest layer* is that with most parameters of its own."""
    return 4 * largest_layer + 18 * parameters // gpus
