"""Workspaces of CUDA libraries: allocated through PyTorch's allocator at first use, and kept.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp. One cuBLAS workspace for each handle and stream; every thread
has a handle of its own, and backward runs in autograd's thread of the device. cuBLASLt works in the same one
(``unified_cublas_and_lt_workspaces``, on unless TORCH_CUBLASLT_UNIFIED_WORKSPACE=0): so the CUDA builds of 2.11 to
2.13 behave, asked for the size of that workspace.
"""

from __future__ import annotations

from typing import Any

import torch

from graphsim.core.graph import Phase, Role
from graphsim.sources.torch.record import Storage

aten = torch.ops.aten

Capability = tuple[int, int]

PRODUCTS = frozenset({aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot, aten.addbmm})
"""Ops that ask for a cuBLAS handle, and with it for its workspace."""

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

WIDE = frozenset({9, 10, 12}) if TORCH >= (2, 12) else frozenset({9})
"""Major compute capabilities with a workspace of 32 MiB: Hopper's alone before PyTorch 2.12."""


def cublas_bytes(capability: Capability) -> int:
    """Return the bytes of a cuBLAS workspace: ``:4096:2:16:8``, or 32 MiB (``parseChosenWorkspaceSize``)."""
    return 4096 * 8 * 1024 if capability[0] in WIDE else 4096 * 2 * 1024 + 16 * 8 * 1024


class Libraries:
    """What the libraries have allocated so far, on a device of *capability*."""

    def __init__(self, capability: Capability) -> None:
        self.capability = capability
        self._known: set[str] = set()

    def allocate(self, func: Any, phase: Phase, position: int) -> list[Storage]:
        """Return the workspace that the op, dispatched as number *position*, is the first to need, if it is."""
        if func._overloadpacket not in PRODUCTS:
            return []
        thread = "backward" if phase in (Phase.BACKWARD, Phase.RECOMPUTE) else "forward"
        name, size = f"cublas.{thread}", cublas_bytes(self.capability)
        if name in self._known:
            return []
        self._known.add(name)
        return [Storage(size, ((size,), (1,), 0, torch.uint8), position, name, Role.LIBRARY)]
