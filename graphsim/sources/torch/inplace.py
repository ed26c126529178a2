"""What observing changes: ops that PyTorch writes in place only if no dispatch mode is active.

Source: aten/src/ATen/TensorSubclassLikeUtils.h, ``isTensorSubclassLike``: true for every tensor while a
dispatch mode is active. The observer therefore sees a sum out of place where the real step adds in place.
The graph has the op of the real step.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

_ENGINE = torch.autograd.graph._engine_run_backward.__code__
_WRAPPERS = ("_fn", "inner", "__torch_dispatch__", "_observe", "unobserved_in_place")

IN_NODE = {
    "IndexBackward0": ("index_put",),
    "IndexSelectBackward0": ("index_add",),
    "GatherBackward0": ("scatter_add",),
    "CummaxBackward0": ("scatter_add",),
    "CumminBackward0": ("scatter_add",),
    **dict.fromkeys(
        (
            "KthvalueBackward0",
            "MaxBackward0",
            "MedianBackward1",
            "MinBackward0",
            "ModeBackward0",
            "NanmedianBackward1",
            "SortBackward0",
            "SortBackward1",
            "TopkBackward0",
        ),
        ("scatter",),
    ),
    "BinaryCrossEntropyWithLogitsBackward0": ("sub", "mul"),
}
"""Autograd nodes and their ops. Source: torch/csrc/autograd/FunctionsManual.cpp, ``areAnyTensorSubclassLike``."""

SUMS_ITSELF = ("VarMeanBackward0", "StdMeanBackward0")
"""Nodes that add two tensors out of place as part of their formula."""


def unobserved_in_place(kind: str, node: str, args: Any) -> bool:
    """True if the op, dispatched while autograd's *node* was the last to run, is one that goes in place.

    Beside the nodes' own ops this is the engine's sum of two gradients of a tensor: in place if the
    first is dense, no view, and nobody else refers to it (torch/csrc/autograd/input_buffer.cpp,
    ``can_accumulate_inplace``). That nobody does is known when it dies, see `build`.
    """
    if kind != "add":
        return kind in IN_NODE.get(node, ())
    first, second = args[:2]
    return (
        isinstance(second, torch.Tensor)
        and first.shape == second.shape
        and first.dtype == second.dtype
        and node not in SUMS_ITSELF
        and not first._is_view()
        and _is_dense(first)
        and _from_engine()
    )


def _from_engine() -> bool:
    """True if no Python code, such as a custom function's backward, stands between the engine and the op."""
    frame = sys._getframe(1)
    while frame.f_code.co_name in _WRAPPERS and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code is _ENGINE


def _is_dense(tensor: torch.Tensor) -> bool:
    """True if the elements fill a block of memory without gaps and overlaps, in any order of dimensions."""
    expected = 1
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if extent != 1:
            if stride != expected:
                return False
            expected *= extent
    return True
