"""A tape: the calls into ATen of one forward and backward pass of a model, over numbered storages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten

from graphsim.errors import UsageError

Step = Callable[..., Tensor]
"""Called with the model and a batch, it returns the loss."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor lies: a storage by its number, and the geometry over it."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def over(self, storage: torch.UntypedStorage) -> Tensor:
        """Return the tensor, over *storage*."""
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        function: the overload that was called.
        leaves, spec: its arguments, tensors as slots.
        results: the storage of each result that is a tensor, and whether the call made it.
    """

    function: Any
    leaves: tuple[Any, ...]
    spec: TreeSpec
    results: tuple[tuple[int, bool], ...]

    @property
    def kind(self) -> str:
        """The op's name, as ops of captured graphs are called."""
        return str(self.function._schema.name).removeprefix("aten::")

    @property
    def operands(self) -> tuple[Slot, ...]:
        """The slots among its arguments."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Slot))

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return torch.Tag.nondeterministic_seeded in self.function.tags


@dataclass(slots=True)
class Tape:
    """The calls of a step.

    Attributes:
        calls: in order.
        inputs: a slot for each tensor of the batch.
        named: by storage, the path of the parameter or buffer in it.
        constants: by storage, what else was there before the step.
        loss: what the step returned.
        gradients: by the path of the parameter.
    """

    calls: list[Call]
    inputs: tuple[Slot, ...]
    named: dict[int, str]
    constants: dict[int, torch.UntypedStorage]
    loss: Slot
    gradients: dict[str, Slot]


def record(model: nn.Module, step: Step, batch: Sequence[Tensor]) -> Tape:
    """Return the tape of ``step(model, *batch).backward()``; gradients, buffers and random state are as before.

    Raises:
        UsageError: a number is read from a tensor, so the calls may depend on it; or a tensor is not dense.
    """
    recorder = _Recorder()
    named = [*model.named_parameters(), *model.named_buffers()]
    names = {recorder.number(tensor): path for path, tensor in named}
    inputs = tuple(recorder.slot(tensor) for tensor in batch)
    gradients = {path: parameter.grad for path, parameter in model.named_parameters()}
    with _unchanged(model):
        try:
            model.zero_grad(set_to_none=True)
            with recorder:
                loss = step(model, *batch)
                loss.backward()
            made = {path: recorder.slot(p.grad) for path, p in model.named_parameters() if p.grad is not None}
            result = recorder.slot(loss.detach())
        finally:
            for path, parameter in model.named_parameters():
                parameter.grad = gradients[path]
    known = {*names, *(slot.storage for slot in inputs)}
    constants = {number: storage for number, storage in recorder.outside.items() if number not in known}
    return Tape(recorder.calls, inputs, names, constants, result, made)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put buffers and the random state back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@dataclass
class _Recorder(TorchDispatchMode):
    calls: list[Call] = field(default_factory=list)
    outside: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        begin: Callable[[], None] = super().__init__  # which has no types
        begin()
        self._number: dict[int, int] = {}
        self._weak: list[StorageWeakRef] = []  # while there is one, torch gives its address to no other storage

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name == "aten::_local_scalar_dense":
            raise UsageError(
                "the step reads a number from a tensor (item, or momentum=None): its calls may depend on it"
            )
        flat, spec = tree_flatten((args, kwargs or {}))
        leaves = tuple(self.slot(leaf) if isinstance(leaf, Tensor) else leaf for leaf in flat)
        result = function(*args, **(kwargs or {}))
        tensors = [one for one in tree_flatten(result)[0] if isinstance(one, Tensor)]
        results = []
        for tensor in tensors:
            before = len(self._weak)
            number = self.number(tensor, made=True)
            results.append((number, number == before))
        self.calls.append(Call(function, leaves, spec, tuple(results)))
        return result

    def slot(self, tensor: Tensor) -> Slot:
        if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
            raise UsageError(f"a tensor of the step is not dense ({tensor.layout}, {tensor.dtype})")
        geometry = tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        return Slot(self.number(tensor), *geometry, tensor.dtype)

    def number(self, tensor: Tensor, *, made: bool = False) -> int:
        storage = tensor.untyped_storage()
        weak = StorageWeakRef(storage)
        if weak.cdata not in self._number:
            self._number[weak.cdata] = len(self._weak)
            self._weak.append(weak)
            if not made:
                self.outside[len(self._weak) - 1] = storage
        return self._number[weak.cdata]
