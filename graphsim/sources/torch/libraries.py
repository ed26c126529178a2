"""Workspaces of CUDA libraries: allocated through PyTorch's allocator at first use, and kept.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp. One cuBLAS workspace for each handle and stream; every thread
has a handle of its own, and backward runs in autograd's thread of the device. cuBLASLt has another one.
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

LT_BYTES = 1024 * 2**10
"""``parseCUDABlasLtWorkspaceSize``."""


def cublas_bytes(capability: Capability) -> int:
    """Return the bytes of a cuBLAS workspace: ``:4096:2:16:8``, or 32 MiB on Hopper (``parseChosenWorkspaceSize``)."""
    return 4096 * 8 * 1024 if capability == (9, 0) else 4096 * 2 * 1024 + 16 * 8 * 1024


class Libraries:
    """What the libraries have allocated so far, on a device of *capability*."""

    def __init__(self, capability: Capability) -> None:
        self.capability = capability
        self._known: set[str] = set()

    def allocate(self, func: Any, args: Any, phase: Phase, position: int) -> list[Storage]:
        """Return the workspaces that the op, dispatched as number *position*, is the first to need."""
        if func._overloadpacket not in PRODUCTS:
            return []
        thread = "backward" if phase in (Phase.BACKWARD, Phase.RECOMPUTE) else "forward"
        needs = {f"cublas.{thread}": cublas_bytes(self.capability)}
        if _fuses_bias(func, args):
            needs[f"cublaslt.{thread}"] = LT_BYTES
        new = {name: size for name, size in needs.items() if name not in self._known}
        self._known.update(new)
        return [
            Storage(size, ((size,), (1,), 0, torch.uint8), position, name, Role.LIBRARY) for name, size in new.items()
        ]


def _fuses_bias(func: Any, args: Any) -> bool:
    """True for a product that adds a vector, which cuBLASLt does (cuda/Blas.cpp, ``isInputCompliesAddmmCudaLt``)."""
    if func is not aten.addmm.default:
        return False
    bias, _, right = args[:3]
    return bool(bias.dim() == 1 and bias.is_contiguous() and min(right.shape) > 1 and right.shape[1] == bias.shape[0])
