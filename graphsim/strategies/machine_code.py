"""Plain functions as machine code (numba, extra `solver`): one source, interpreted or compiled."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any


def is_available() -> bool:
    """Return whether numba is installed."""
    return find_spec("numba") is not None


def is_on_disk(*functions: Any) -> bool:
    """Return whether all these functions of numba have been compiled before, and are kept on disk."""
    return all(any(Path(f.stats.cache_path).glob(f"*.{f.__name__}-*.nbi")) for f in functions)


@cache
def compiled(module: ModuleType) -> dict[str, Any]:
    """Return the functions of *module*, by name, compiled when they are first called, and kept on disk.

    They may call each other; what else they use of the module must be constants. They must make no arrays: these are
    not counted, as to count a reference at each access (atomically) would take three quarters of the time.
    """
    import numba
    from numba.core.options import DefaultOptions

    uncounted: dict[str, Any] = {"_nrt": False} if hasattr(DefaultOptions, "_nrt") else {}  # it has no public name
    names: dict[str, Any] = dict(vars(module))
    for name, function in vars(module).items():
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            copy = FunctionType(function.__code__, names, name, function.__defaults__)
            names[name] = numba.njit(cache=True, nogil=True, error_model="numpy", **uncounted)(copy)
    return names
