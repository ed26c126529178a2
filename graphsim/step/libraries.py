"""Workspaces of CUDA libraries: allocated through PyTorch's allocator at first use, and kept.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp. One cuBLAS workspace for each handle and stream; every thread
has a handle of its own, and backward runs in autograd's thread of the device. cuBLASLt works in the same one
(``unified_cublas_and_lt_workspaces``, on unless TORCH_CUBLASLT_UNIFIED_WORKSPACE=0): so the CUDA builds of 2.11 to
2.13 behave, asked for the size of that workspace.
"""

from __future__ import annotations

from typing import NamedTuple

from graphsim.core.graph import Phase
from graphsim.core.kernels import base_kind

PRODUCTS = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "matmul", "linear_cross_entropy"}
)
"""Kinds of ops that ask for a cuBLAS handle, and with it for its workspace."""

MODELLED = (2, 13)
"""The version of PyTorch whose rules specs follow."""


class LibraryWorkspace(NamedTuple):
    """What a library keeps from its first use on."""

    name: str
    nbytes: int


def cublas_bytes(capability: tuple[int, int], version: tuple[int, ...] = MODELLED) -> int:
    """Return the bytes of a cuBLAS workspace: ``:4096:2:16:8``, or 32 MiB (``parseChosenWorkspaceSize``).

    32 MiB are Hopper's, and from PyTorch 2.12 on also those of both kinds of Blackwell.
    """
    wide = (9, 10, 12) if version >= (2, 12) else (9,)
    return 4096 * 8 * 1024 if capability[0] in wide else 4096 * 2 * 1024 + 16 * 8 * 1024


class Libraries:
    """What the libraries of one process keep so far, on a device of *capability*."""

    def __init__(self, capability: tuple[int, int], version: tuple[int, ...] = MODELLED) -> None:
        self._nbytes = cublas_bytes(capability, version)
        self._known: set[str] = set()

    def first_needed(self, kind: str, phase: Phase) -> LibraryWorkspace | None:
        """Return the workspace that an op of this *kind* is the first to need, if it is; it is known from then on."""
        if base_kind(kind) not in PRODUCTS:
            return None
        name = f"cublas.{'backward' if phase in (Phase.BACKWARD, Phase.RECOMPUTE) else 'forward'}"
        if name in self._known:
            return None
        self._known.add(name)
        return LibraryWorkspace(name, self._nbytes)
