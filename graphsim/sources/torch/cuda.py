"""CUDA tensors on a machine without a GPU: plain tensors of that device over storages without memory.

What PyTorch does on CUDA is mostly decided by the dispatch keys and the device of a tensor: which ops
autocast casts, that dropout is one kernel, which attention kernel is asked for, what autograd saves. A
plain tensor of the device, whose ops an observer intercepts, therefore shows what a step would do there.
A CPU build of PyTorch can make such tensors, with three things missing that are supplied here: a first
tensor (by DLPack), a device guard (the one that does nothing, of the device ``meta``), and the answers of
``torch.cuda`` to code that asks what device there is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses import fake_tensor

from graphsim.core.devices import Device
from graphsim.sources.torch.attention import CudaAttention
from graphsim.sources.torch.hooks import pretended_tables
from graphsim.sources.torch.torch_cuda import pretended_module

CUDA = torch.device("cuda", 0)

_CPU = torch.device("cpu")
_DLPACK_CUDA = 2
"""``kDLCUDA`` in dlpack.h."""

KERNELS = ("silu_backward", "mish_backward", "_fused_rms_norm")
"""Ops with a kernel for CUDA and one that is composed of other ops (native_functions.yaml)."""

_seeds: dict[torch.dtype, torch.Tensor] = {}


def plain(storage: Any, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> torch.Tensor:
    """Return a plain tensor over a CUDA *storage*; sizes, strides and offset in elements.

    No CUDA kernel is there to set them; the CPU's does, for a tensor with the dispatch keys of the CPU.
    """
    tensor = torch.Tensor._make_subclass(torch.Tensor, _seed(dtype).data, device_for_backend_keys=_CPU)
    tensor.set_(storage, offset, shape, stride)
    return torch.Tensor._make_subclass(torch.Tensor, tensor, device_for_backend_keys=CUDA)


def refit(tensor: torch.Tensor, storage: Any, offset: Any, shape: Any, stride: Any) -> None:
    """Give *tensor* another storage or shape, in place."""
    tensor.data = plain(storage, tensor.dtype, offset, shape, stride)


def _seed(dtype: torch.dtype) -> torch.Tensor:
    """Return an empty CUDA tensor: a CPU tensor whose DLPack capsule says otherwise."""
    if dtype not in _seeds:
        capsule = torch._C._to_dlpack(torch.empty(0, dtype=dtype))
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        address = pointer(capsule, b"dltensor")
        device = (ctypes.c_int32 * 2).from_address(address + ctypes.sizeof(ctypes.c_void_p))
        device[0], device[1] = _DLPACK_CUDA, 0
        _seeds[dtype] = torch._C._from_dlpack(capsule)
    return _seeds[dtype]


@contextmanager
def pretended(device: Device) -> Iterator[None]:
    """Make PyTorch work with CUDA tensors inside as it would on a machine with *device*.

    Backward runs in the calling thread: the dispatch mode and the device's worker thread do not meet.
    """
    with ExitStack() as stack:
        stack.enter_context(pretended_tables())
        stack.enter_context(pretended_module(device))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda _: None))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(attention := CudaAttention(device.capability))
        stack.enter_context(attention.in_backward())
        stack.enter_context(_lifting_on_the_host())
        stack.enter_context(_with_kernels())
        yield


@contextmanager
def _with_kernels() -> Iterator[None]:
    """Let the dispatcher know of kernels that a CUDA build has, so that it does not compose these ops of others."""
    missing = [name for name in KERNELS if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CUDA")]
    library = torch.library.Library("aten", "IMPL", "CUDA")
    for name in missing:
        library.impl(name, _never)
    try:
        yield
    finally:
        library._destroy()


def _never(*_: Any) -> None:
    raise NotImplementedError("an observer answers for every op on a CUDA tensor that stands for a real one")


@contextmanager
def _lifting_on_the_host() -> Iterator[None]:
    """``torch.tensor(numbers, device="cuda")`` makes a CPU tensor and moves it, which can be observed."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
