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


def is_compiled(module: ModuleType, name: str) -> bool:
    """Return whether function *name* of *module* has been compiled before, and is on disk."""
    return is_available() and any(
        any(Path(function.stats.cache_path).glob(f"{module.__name__.split('.')[-1]}.{name}-*.nbi"))
        for function in [compiled(module)[name]]
    )


@cache
def compiled(module: ModuleType) -> dict[str, Any]:
    """Return the functions of *module*, by name, compiled when they are first called, and kept on disk.

    They may call each other; what else they use of the module must be constants.
    """
    import numba

    names: dict[str, Any] = dict(vars(module))
    for name, function in vars(module).items():
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            copy = FunctionType(function.__code__, names, name, function.__defaults__)
            names[name] = numba.njit(cache=True, nogil=True, error_model="numpy")(copy)
    return names
