"""Plain functions as machine code (numba, extra `solver`), compiled when they are first called and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar, cast

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Arrays = TypeVar("Arrays", bound=tuple[np.typing.NDArray[np.generic] | int, ...])


def as_lists(arrays: Arrays) -> Arrays:
    """Return *arrays* as lists, of which the interpreter reads and writes one number in half the time.

    For those who use them one number at a time they are the same, so their type is kept.
    """
    listed: Any = (one.tolist() if isinstance(one, np.ndarray) else one for one in arrays)
    return type(arrays)(*listed)


def is_available() -> bool:
    """Return whether numba is installed, and loads."""
    if find_spec("numba") is None:
        return False
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def compiled(function: Function, **options: Any) -> Function:
    """Compile on first use; it does not hold the interpreter lock while it runs.

    It is kept on disk, where a folder can be written, until a file in the folder of its source changes: numba looks at
    its own file only, and constants of other files are part of it.
    """
    import numba

    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        found: Any = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written
        return cast(Function, numba.njit(**options)(function))
    newest = _newest_source(found)
    for file in _files(found):
        if file.stat().st_mtime < newest:
            file.unlink(missing_ok=True)
    return cast(Function, found)


def inlined(function: Function) -> Function:
    """Compile within its callers: numba optimizes what is only called anew at every level above."""
    import numba

    return cast(Function, numba.njit(inline="always", error_model="numpy")(function))


@cache
def compiled_functions(module: ModuleType) -> dict[str, Any]:
    """Return the functions of *module* by name, each compiled, which stay as they are for the interpreter.

    They may call each other; what else they use of the module must be constants. They must make no arrays: these are
    not counted, as to count a reference at each access (atomically) would take three quarters of the time.
    """
    from numba.core.options import DefaultOptions

    uncounted: dict[str, Any] = {"_nrt": False} if hasattr(DefaultOptions, "_nrt") else {}  # it has no public name
    names, found = dict(vars(module)), {}
    for name, function in vars(module).items():
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            copy = FunctionType(function.__code__, names, name, function.__defaults__)
            names[name] = found[name] = compiled(copy, **uncounted)
    return found


def is_kept(function: Any) -> bool:
    """Return whether *function* is kept on disk once it is compiled: there is a folder, and numba is to compile."""
    return hasattr(function, "stats") and function.stats.cache_path is not None


def is_on_disk(*functions: Any) -> bool:
    """Return whether all these functions have been compiled before, from the sources as they are."""
    return all(any(_files(function)) for function in functions)


def _files(function: Any) -> Iterator[Path]:
    """Yield the files that say what is kept of *function*."""
    if is_kept(function):
        yield from Path(function.stats.cache_path).glob(f"*.{function.__name__}-*.nbi")


def _newest_source(function: Any) -> float:
    folder = Path(function.py_func.__code__.co_filename).parent
    return max((file.stat().st_mtime for file in folder.glob("*.py")), default=0.0)
