"""PyTorch's own tables of what a device can do, with answers of ours where they would ask a driver.

Two tables, in C++, which no Python name reaches:

- the *device guard* of CUDA (c10/core/impl/DeviceGuardImplInterface.h), which autograd asks for streams and
  for the current device;
- the *hooks* of CUDA (aten/src/ATen/detail/AcceleratorHooksInterface.h and CUDAHooksInterface.h), which the
  engine and the lazy initialization ask. A CPU build has hooks that refuse, a CUDA build hooks that call the
  driver and make a context.

Inside of `pretended_tables` both answer alike on every build: there is one device, it has no context, nothing
needs to be initialized, nothing is pinned. No function of a driver is called, whether there is one or not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
"""``c10::impl::device_guard_impl_registry``: an array of pointers by device type (c10/core/DeviceType.h)."""

_CUDA_TYPE, _META_TYPE, _PYTHON_TYPE, _TYPES = 1, 14, 20, 21

_EXCHANGE_STREAM = 9
"""Number of ``exchangeStream`` in the table of virtual functions of a guard, in 2.11 to 2.13."""

_HOOKS = "_ZN2at6detail12getCUDAHooksEv"
_REQUIRES_INIT = "_ZN5torch5utils24set_requires_device_initEN3c1010DeviceTypeEb"

_SLOTS = 64
"""Entries that are copied of the table of virtual functions; CUDAHooksInterface declares 54 in torch 2.13."""

_HEADER = 2
"""Entries before the first function: the offset of the object and its type."""


def _answer(result: Any, value: Any, *operands: Any) -> Any:
    """Return a C function of the hooks object and *operands* that returns *value*."""
    return ctypes.CFUNCTYPE(result, ctypes.c_void_p, *operands)(lambda *_: value)


_YES, _NO = _answer(ctypes.c_bool, True), _answer(ctypes.c_bool, False)
_NOTHING, _FIRST, _ONE = _answer(None, None), _answer(ctypes.c_int8, 0), _answer(ctypes.c_int8, 1)

_ANSWERS: dict[int, Any] = {
    2: _YES,  # isBuilt
    3: _YES,  # isAvailable
    4: _NO,  # hasPrimaryContext
    5: _NOTHING,  # init
    6: _ONE,  # deviceCount
    7: _NOTHING,  # setCurrentDevice
    8: _FIRST,  # getCurrentDevice
    9: _FIRST,  # exchangeDevice
    10: _FIRST,  # maybeExchangeDevice
    11: _NO,  # isPinnedPtr
    28: _NO,  # compiledWithCuDNN: the kernels of cuDNN are not chosen by a build but by a rule of ours
}
"""By their number in the table: two destructors, then in the order of declaration in 2.11 to 2.13."""


class _Guard(torch._C._acc.DeviceGuard):
    """A device guard that does nothing: one device, one stream, events that have always happened."""

    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.CUDA


_guard = _Guard()


@contextmanager
def pretended_tables() -> Iterator[None]:
    """Put answers of ours into both tables; afterwards they are as before."""
    with _guarded(), _hooked():
        try:
            yield
        finally:
            initialized: Any = torch.cuda.is_initialized
            if not initialized():  # the first real use shall initialize, as if nothing had been
                _requires_initialization()


@contextmanager
def _guarded() -> Iterator[None]:
    guards = (ctypes.c_void_p * _TYPES).in_dll(_library("c10"), _GUARDS)
    original = guards[_CUDA_TYPE]
    guards[_CUDA_TYPE] = _do_nothing(guards)
    try:
        yield
    finally:
        guards[_CUDA_TYPE] = original


@contextmanager
def _hooked() -> Iterator[None]:
    find = getattr(_library("torch_cpu"), _HOOKS)
    find.restype = ctypes.c_void_p
    table = ctypes.c_void_p.from_address(find())
    original = table.value
    copy = _functions(table)
    for number, function in _ANSWERS.items():
        copy[_HEADER + number] = ctypes.cast(function, ctypes.c_void_p)
    table.value = _first(copy)
    try:
        yield
    finally:
        table.value = original


def _functions(table: ctypes.c_void_p) -> Any:
    """Return a copy of a table of virtual functions, with its header."""
    whole = ctypes.c_void_p * (_HEADER + _SLOTS)
    return whole.from_buffer_copy(whole.from_address((table.value or 0) - _HEADER * ctypes.sizeof(ctypes.c_void_p)))


def _first(functions: Any) -> int:
    """Return where an object points that has these *functions*."""
    return ctypes.addressof(functions) + _HEADER * ctypes.sizeof(ctypes.c_void_p)


_made: list[Any] = []


def _do_nothing(guards: Any) -> int:
    """Return the address of a device guard that does nothing, made once: PyTorch keeps it for good.

    A stream is given back while an error of Python's makes its way through the engine. There the guard of Python
    would ask Python for its type, which nobody may while an error is set, and PyTorch would end the process
    (``exchangeStream`` is noexcept): it takes this function from the guard of the device ``meta``.
    """
    if not _made:
        before = guards[_PYTHON_TYPE]
        torch._C._acc.register_python_privateuseone_device_guard(_guard)
        address, meta = guards[_PYTHON_TYPE], ctypes.c_void_p.from_address(guards[_META_TYPE])
        guards[_PYTHON_TYPE] = before
        table = ctypes.c_void_p.from_address(address)
        functions = _functions(table)
        functions[_HEADER + _EXCHANGE_STREAM] = _functions(meta)[_HEADER + _EXCHANGE_STREAM]
        table.value = _first(functions)
        _made.extend((address, functions))
    return int(_made[0])


def _requires_initialization() -> None:
    forget: Callable[..., None] = getattr(_library("torch_python"), _REQUIRES_INIT)
    forget(ctypes.c_int8(_CUDA_TYPE), ctypes.c_bool(True))


@cache
def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob(f"*{name}.*"))))
