"""Hollow tensors: real tensors in every respect but one, their storages have a size and no memory.

Fake tensors are tensor subclasses, and autograd treats subclasses in its own way: it replays views
after an in-place write where a plain tensor gets ``as_strided`` (``is_python_dispatch`` in
tools/autograd/gen_inplace_or_view_type.py). The model therefore sees hollow tensors, which are plain,
while the fake *twin* of each says what an op would return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from graphsim.errors import CaptureError
from graphsim.sources.torch import cuda, zeros

_TWIN = "_graphsim_twin"
_FREED = "_graphsim_freed"


class _Twin:
    """Holds the twin of a tensor; a copy of the tensor, which copies its attributes, has a twin of its own."""

    __slots__ = ("fake",)

    def __init__(self, fake: torch.Tensor | None) -> None:
        self.fake = fake

    def __deepcopy__(self, memo: object) -> _Twin:
        return _Twin(None)


class Hollows:
    """Pairs of hollow tensors and their fake twins.

    Attributes:
        largest: bytes of the largest storage so far.
        resized: told of a storage that code has freed or allocated again, and whether it is there now.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        self.fake = fake
        self.largest = 1
        self.resized: Callable[[Any, bool], None] = lambda storage, there: None
        self._storages: WeakValueDictionary[int, Any] = WeakValueDictionary()

    @contextmanager
    def resizable(self) -> Iterator[None]:
        """Let code free the bytes of a storage and allocate them again, as FSDP2 does with gathered parameters.

        The storage itself stays as it is, so that tensors over it remain valid; who watches it is told.
        """
        resize, size = torch.UntypedStorage.resize_, torch.UntypedStorage.size

        def resized(storage: Any, nbytes: int) -> Any:
            if not self.is_hollow_storage(storage):
                return resize(storage, nbytes)
            if nbytes not in (0, storage.nbytes()):
                reason = f"a storage of {storage.nbytes()} bytes is resized to {nbytes}, which a capture cannot follow"
                raise CaptureError(reason)
            if nbytes != sized(storage):
                setattr(storage, _FREED, not nbytes)
                self.resized(storage, bool(nbytes))
            return storage

        def sized(storage: Any) -> int:
            return 0 if getattr(storage, _FREED, False) else size(storage)

        with ExitStack() as stack:
            stack.enter_context(patch.object(torch.UntypedStorage, "resize_", resized))
            stack.enter_context(patch.object(torch.UntypedStorage, "size", sized))
            yield

    def hollow(self, twin: torch.Tensor) -> torch.Tensor:
        """Return a hollow tensor for a fake one; it shares storage as the twin does.

        Raises:
            CaptureError: it is sparse, and has no storage.
        """
        dense([twin])
        with no_dispatch(), torch.no_grad():
            geometry = (twin.storage_offset(), twin.shape, twin.stride())
            tensor = self.over(self._storage(twin), twin.device, twin.dtype, *geometry)
        setattr(tensor, _TWIN, _Twin(twin))
        return tensor

    def storage(self, nbytes: int, device: torch.device) -> Any:
        """Return a new hollow storage, of which the twin is made when it is asked for."""
        storage = torch._C._construct_storage_from_data_pointer(zeros.ADDRESS, device, nbytes)
        setattr(storage, _TWIN, None)
        self.largest = max(self.largest, nbytes)
        return storage

    def over(
        self, storage: Any, device: torch.device, dtype: torch.dtype, offset: Any, shape: Any, stride: Any
    ) -> torch.Tensor:
        """Return a tensor over a hollow storage, of which the twin is made when it is asked for.

        To be called without dispatch and without gradients.
        """
        if device.type == "cuda":
            return cuda.plain(storage, dtype, offset, shape, stride)
        tensor = torch.empty(0, dtype=dtype)
        tensor.set_(storage, offset, shape, stride)
        return tensor

    def _storage(self, twin: torch.Tensor) -> Any:
        actual = twin.untyped_storage()
        storage = self._storages.get(actual._cdata)
        if storage is None or storage.nbytes() != actual.nbytes():
            storage = self.storage(actual.nbytes(), twin.device)
            setattr(storage, _TWIN, twin)
            self._storages[actual._cdata] = storage
        return storage

    def _base(self, storage: Any) -> torch.Tensor:
        """Return a fake tensor over the storage that stands for a hollow one."""
        base: torch.Tensor | None = getattr(storage, _TWIN)
        if base is None:
            with self.fake, torch.no_grad():
                base = torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device)
            setattr(storage, _TWIN, base)
            self._storages[base.untyped_storage()._cdata] = storage
        return base

    def is_hollow_storage(self, storage: Any) -> bool:
        """True if *storage* has a size and no memory."""
        return hasattr(storage, _TWIN)

    def is_hollow(self, tensor: torch.Tensor) -> bool:
        """True if *tensor* has a size and no memory.

        Raises:
            CaptureError: it is sparse, and has no storage.
        """
        if hasattr(tensor, _TWIN):
            return True
        dense([tensor])
        return hasattr(tensor.untyped_storage(), _TWIN)

    def known_twin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the fake twin of a hollow tensor, if one was made for it as it is now."""
        holder = getattr(tensor, _TWIN, None)
        known: torch.Tensor | None = None if holder is None else holder.fake
        if known is not None and _same(known, tensor, getattr(tensor.untyped_storage(), _TWIN, None)):
            return known
        return None

    def twin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the fake twin of a hollow tensor; made anew if autograd made the tensor or ``.data`` changed it."""
        known = self.known_twin(tensor)
        if known is not None:
            return known
        base = self._base(tensor.untyped_storage())
        with self.fake, torch.no_grad():
            known = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            known.set_(base.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
        setattr(tensor, _TWIN, _Twin(known))
        return known

    def become(self, tensor: torch.Tensor, hollow: torch.Tensor) -> None:
        """Give *tensor* what *hollow* has, in place: whoever holds it holds a hollow tensor from now on."""
        with no_dispatch(), torch.no_grad():
            tensor.data = hollow
        setattr(tensor, _TWIN, _Twin(self.known_twin(hollow)))

    def restore(self, tensor: torch.Tensor, data: torch.Tensor) -> None:
        """Give *tensor* back what it had before `become`."""
        with no_dispatch(), torch.no_grad():
            tensor.data = data
        if hasattr(tensor, _TWIN):
            delattr(tensor, _TWIN)

    def call(self, run: Callable[..., Any], func: Any, args: Any, kwargs: Any) -> Any:
        """Return the hollow result of ``run(func, args, kwargs)`` on the twins of the operands."""
        pairs: dict[int, torch.Tensor] = {}
        args = [self._twins(value, pairs) for value in args]
        kwargs = {name: self._twins(value, pairs) for name, value in kwargs.items()}
        with self.fake:
            result = run(func, args, kwargs)
        return self._result(result, pairs)

    def _twins(self, value: Any, pairs: dict[int, torch.Tensor]) -> Any:
        """No closure: one that calls itself is a cycle, and would keep the operands until it is collected."""
        if isinstance(value, torch.Tensor):
            twin = self.twin(value)
            pairs[id(twin)] = value
            return twin
        if isinstance(value, torch.UntypedStorage) and self.is_hollow_storage(value):
            return self._base(value).untyped_storage()
        if isinstance(value, list | tuple):
            return [self._twins(entry, pairs) for entry in value]
        return value

    def _result(self, result: Any, pairs: dict[int, torch.Tensor]) -> Any:
        if isinstance(result, torch.Tensor):
            operand = pairs.get(id(result))
            return self.hollow(result) if operand is None else self._refit(operand, result)
        if isinstance(result, list | tuple):
            return type(result)(self._result(entry, pairs) for entry in result)
        return result

    def _refit(self, operand: torch.Tensor, twin: torch.Tensor) -> torch.Tensor:
        """Follow an op that gave its operand another shape or storage."""
        storage = self._storage(twin)
        if twin.shape != operand.shape or storage._cdata != operand.untyped_storage()._cdata:
            with no_dispatch(), torch.no_grad():
                if twin.device.type == "cuda":
                    cuda.refit(operand, storage, twin.storage_offset(), twin.shape, twin.stride())
                else:
                    operand.set_(storage, twin.storage_offset(), twin.shape, twin.stride())
        return operand


def dense(values: Sequence[Any]) -> list[torch.Tensor]:
    """Return the tensors among *values*.

    Raises:
        CaptureError: one is sparse, and has no storage.
    """
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    for tensor in tensors:
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            raise CaptureError(f"a tensor of layout {layout} has no storage that a capture could follow: make it dense")
    return tensors


def _same(twin: torch.Tensor, tensor: torch.Tensor, base: Any) -> bool:
    return (
        base is not None
        and twin.untyped_storage()._cdata == base.untyped_storage()._cdata
        and twin.shape == tensor.shape
        and twin.stride() == tensor.stride()
        and twin.dtype == tensor.dtype
        and twin.storage_offset() == tensor.storage_offset()
    )
