"""Where hollow storages point: a region of zeros that takes no memory, and notices when it is read.

PyTorch reads some tensors below its dispatcher, where no observer stands: ``torch.tensor([loss])``, DLPack,
pickling, the reducers of C++. At an address where nothing is mapped such a read ends the interpreter. Here it
finds zeros: the region is reserved, not committed, and the kernel lends one page of zeros to all that is read.

A zero that nobody computed is a wrong value, so a read is not left at that: the kernel knows which pages were
touched since they were given back (``mincore``), and `was_read` asks it.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

SIZES = (2**45, 2**42, 2**38, 2**34)
"""Bytes of address space to ask for; the first that the system grants is taken."""

NOWHERE = 4096
"""An address at which nothing is mapped, for systems that grant no region."""

_NO_RESERVE = {"linux": 0x4000}
"""``MAP_NORESERVE`` (asm-generic/mman-common.h), which Python 3.11 does not name."""

_PAGE = mmap.PAGESIZE
_ASKED_AT_ONCE = 2**30
"""Bytes of which one question asks."""


def _reserve() -> Any:
    if sys.platform == "win32":
        return None
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE.get(sys.platform, 0)
    for size in SIZES:
        for protection in (mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ):
            try:
                return mmap.mmap(-1, size, flags=flags, prot=protection)
            except (OSError, ValueError, OverflowError):
                continue
    return None


def _address(region: Any) -> int:
    """Return where *region* begins."""
    if region is None:
        return NOWHERE
    view = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(region), ctypes.byref(view), 0)
    return int(view.start or NOWHERE)


class _Buffer(ctypes.Structure):
    """``Py_buffer``, of which the first field is read. Never released: the region stays as long as the process."""

    _fields_ = (("start", ctypes.c_void_p), ("rest", ctypes.c_char * 256))


_region = _reserve()

ADDRESS = _address(_region)
"""Of every hollow storage."""

_mincore: Any = getattr(ctypes.CDLL(None), "mincore", None) if _region is not None else None
if _mincore is not None:
    _mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_first = (ctypes.c_ubyte * 1)()


def was_read(extent: int = 1) -> bool:
    """True if the first *extent* bytes of the region, in whole pages, were touched since it was asked last.

    Almost every read begins in the first page. Always False where the system cannot tell.
    """
    if _mincore is None:
        return False
    touched = any(_touched(begin, min(extent - begin, _ASKED_AT_ONCE)) for begin in range(0, extent, _ASKED_AT_ONCE))
    if touched:
        give_back()
    return touched


def _touched(begin: int, size: int) -> bool:
    count = -(-size // _PAGE)
    pages = _first if count == 1 else (ctypes.c_ubyte * count)()
    if _mincore(ADDRESS + begin, count * _PAGE, pages):
        return False
    return any(bytes(pages).strip(b"\0"))


def give_back() -> None:
    """Forget what was read, and what may have been written there: the region is zeros again."""
    if _region is not None:
        _region.madvise(mmap.MADV_DONTNEED)
