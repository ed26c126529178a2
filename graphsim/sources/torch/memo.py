"""Forms of results: what an op returned for operands of some geometry, it returns for others of the same.

Fake kernels are slow, and models and optimizers repeat themselves: all layers but the first run on what is kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch

from graphsim.sources.torch.hollow import Hollows

Key = tuple[Any, ...]

_UNSTEADY = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view})
_OURS = ("aten", "graphsim")
"""Namespaces of ops whose result is known to depend on nothing but the operands."""

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_SCALARS = frozenset(
    {int, float, bool, str, type(None), torch.dtype, torch.layout, torch.device, torch.memory_format, torch.Size}
)


@dataclass(frozen=True, slots=True)
class _Same:
    """The result is an operand."""

    operand: int


@dataclass(frozen=True, slots=True)
class _View:
    """The result has the storage of one of the tensors before it, operands first, or one of its own of *nbytes*."""

    storage_of: int | None
    nbytes: int
    device: torch.device
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Any


_Form = _Same | _View | _Constant


class Memo:
    """Results that were returned before, as forms that are filled with new storages.

    Args:
        hollows: makes the tensors.
        ruled_out: ops whose result depends on more than the geometry of their operands.
    """

    def __init__(self, hollows: Hollows, ruled_out: Callable[[Any], bool]) -> None:
        self._hollows = hollows
        self._ruled_out = ruled_out
        self._steady: dict[Any, bool] = {}
        self._forms: dict[Key, tuple[type | None, tuple[_Form, ...]]] = {}

    def key(self, func: Any, args: Any, kwargs: Any) -> tuple[Key, list[torch.Tensor]] | None:
        """Return what decides on the form of the result, and the tensors among the operands; None: more decides."""
        if not self._is_steady(func):
            return None
        operands: list[torch.Tensor] = []
        parts: list[Any] = [func, torch.get_default_dtype(), tuple(kwargs)]
        if _describe(args, parts, operands) and _describe(kwargs.values(), parts, operands):
            return tuple(parts), operands
        return None

    def _is_steady(self, func: Any) -> bool:
        known = self._steady.get(func)
        if known is None:
            outputs = any(argument.kwarg_only and argument.is_write for argument in func._schema.arguments)
            unsteady = func.namespace not in _OURS or not _UNSTEADY.isdisjoint(func.tags) or outputs
            known = self._steady[func] = not unsteady and not self._ruled_out(func)
        return known

    def knows(self, key: Key) -> bool:
        """True if the form of the result is known."""
        return key in self._forms

    def result(self, key: Key, operands: list[torch.Tensor]) -> Any:
        """Return the hollow result for *operands*."""
        container, forms = self._forms[key]
        tensors = list(operands)
        results: list[Any] = []
        with no_dispatch(), torch.no_grad():
            for form in forms:
                if isinstance(form, _View):
                    tensors.append(self._tensor(form, tensors))
                    results.append(tensors[-1])
                else:
                    results.append(form.value if isinstance(form, _Constant) else operands[form.operand])
        return results[0] if container is None else container(results)

    def _tensor(self, form: _View, tensors: list[torch.Tensor]) -> torch.Tensor:
        if form.storage_of is None:
            storage = self._hollows.storage(form.nbytes, form.device)
        else:
            storage = tensors[form.storage_of].untyped_storage()
        return self._hollows.over(storage, form.device, form.dtype, form.offset, form.shape, form.stride)

    def keep(self, key: Key, operands: list[torch.Tensor], result: Any) -> None:
        """Keep the form of a hollow result; of one that is nested nothing is kept."""
        container = type(result) if isinstance(result, list | tuple) else None
        numbered = list(enumerate(operands))[::-1]  # of operands that are one, the first is what an op returns
        numbers = {id(operand): number for number, operand in numbered}
        storages = {operand.untyped_storage()._cdata: number for number, operand in numbered}
        forms: list[_Form] = []
        made = len(operands)
        for entry in result if container else (result,):
            if entry is None or isinstance(entry, int | float):
                forms.append(_Constant(entry))
            elif not isinstance(entry, torch.Tensor):
                return
            elif id(entry) in numbers:
                forms.append(_Same(numbers[id(entry)]))
            else:
                storage = entry.untyped_storage()
                geometry = (int(entry.storage_offset()), entry.shape, entry.stride())
                shared = storages.get(storage._cdata)
                forms.append(_View(shared, storage.nbytes(), entry.device, entry.dtype, *geometry))
                storages.setdefault(storage._cdata, made)
                made += 1
        self._forms[key] = container, tuple(forms)


def _describe(values: Any, parts: list[Any], operands: list[torch.Tensor]) -> bool:
    """Add what *values* are to *parts*; False if something else than their geometry may matter."""
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            if value.layout is not torch.strided or value.dtype.is_complex:
                return False
            parts += (value.shape, value.stride(), value.storage_offset(), value.dtype, value.device)
            operands.append(value)
        elif kind in _SCALARS:
            parts += (kind, value)  # 2, 2.0 and True are equal and differ in what they make of integers
        elif kind is list or kind is tuple:
            parts += (kind, len(value))
            if not _describe(value, parts, operands):
                return False
        else:
            return False
    return True
