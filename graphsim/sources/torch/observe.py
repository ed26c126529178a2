"""The observer: a dispatch mode that records every op with the storages it allocates, aliases and overwrites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from graphsim.core.graph import Role
from graphsim.sources.torch.calls import call_of
from graphsim.sources.torch.collectives import Collective, collective_of, is_in_place, overwrites, sent, wraps_result
from graphsim.sources.torch.inplace import unobserved_in_place
from graphsim.sources.torch.kernels import Workspace, scratch, uncounted
from graphsim.sources.torch.record import BEFORE, Call, Executed, Geometry, Operand, Recording, Reference, Storage
from graphsim.sources.torch.reducer import is_pinned
from graphsim.sources.torch.scope import Scope
from graphsim.sources.torch.unknown import python_line
from graphsim.sources.torch.values import Values
from graphsim.sources.torch.wrappers import asks_for_shapes, passes_on, plain
from graphsim.step.libraries import Libraries, LibraryWorkspace

aten = torch.ops.aten


class Signature(NamedTuple):
    """What the schema of an op says, and its scratch."""

    kind: str
    writes: tuple[int, ...]
    writes_by_name: tuple[str, ...]
    scratch: Workspace | None
    collective: Collective | None


class Observer(TorchDispatchMode):
    """Records what is dispatched, and runs it on hollow tensors.

    Storages are watched by weak references: torch keeps one Python object per storage alive as long as
    the storage, so its end is the end of the bytes. Nothing here may keep a tensor alive.
    """

    def __init__(
        self,
        scope: Scope,
        values: Values,
        *,
        lines: bool = False,
        calls: bool = False,
        libraries: Libraries | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = values
        self.libraries = libraries
        self.device = values.device.type if values.device else "cpu"
        self.lines = lines
        self.calls = calls
        self._random_state: torch.Tensor | None = None
        self.scope = scope
        self.recording = Recording()
        self._live: dict[int, Storage] = {}
        self._signatures: dict[Any, Signature] = {}
        self._constants = 0
        values.hollows.resized = self._resized

    # -- storages ------------------------------------------------------------------------------

    def declare(self, tensor: torch.Tensor, label: str, role: Role, owner: str = "") -> Storage:
        """Register the storage of a tensor that exists before the step; the first name of a storage stands."""
        tensor = plain(tensor)
        return self._storage(tensor, geometry_of(tensor), BEFORE, label, role, owner)

    def find(self, tensor: torch.Tensor) -> Storage | None:
        """Return the record of a tensor's storage, if it is known."""
        return self._live.get(plain(tensor).untyped_storage()._cdata)

    def _storage(
        self,
        tensor: torch.Tensor,
        geometry: Geometry,
        born: int,
        label: str = "",
        role: Role | None = None,
        owner: str = "",
    ) -> Storage:
        actual = tensor.untyped_storage()
        key = actual._cdata
        known = self._live.get(key)
        if known is not None:
            return known
        storage = Storage(self._bytes(tensor), geometry, born, label, role, owner)
        self._watch(actual, storage, key)
        return storage

    def _bytes(self, tensor: torch.Tensor) -> int:
        """Return the bytes of a tensor's storage on the device; what stays on the host takes no memory of a GPU."""
        return int(tensor.untyped_storage().nbytes()) if tensor.device.type == self.device else 0

    def _watch(self, actual: Any, storage: Storage, key: int) -> None:
        reference = Reference(actual, self._gone)
        reference.storage, reference.key = storage, key
        storage.ref = reference
        self._live[key] = storage
        self.recording.storages.append(storage)

    def _gone(self, reference: Reference) -> None:
        reference.storage.died = len(self.recording.ops)
        del self._live[reference.key]

    def _resized(self, actual: Any, there: bool) -> None:
        """Code freed a storage, or allocated its bytes again: others, to the record."""
        position = len(self.recording.ops)
        known = self._live.pop(actual._cdata, None)
        if known is not None:
            known.died, known.ref = position, None
        if there:
            geometry = ((actual.nbytes(),), (1,), 0, torch.uint8)
            nbytes = int(actual.nbytes()) if actual.device.type == self.device else 0
            storage = Storage(nbytes, geometry, position)
            self._watch(actual, storage, actual._cdata)
            place = self.scope.place(position)
            self.recording.ops.append(
                Executed("storage_resize", [], [(storage, geometry)], [], place.phase, place.layer, place.forward_of)
            )

    # -- dispatch ------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if passes_on(types):
            return NotImplemented
        if asks_for_shapes():
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():  # modes that answer for the user's code need not answer for ours
            return self._observe(func, args, kwargs or {})

    def _observe(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.values.check_unread()
        if func is aten.is_pinned.default:
            return is_pinned(args[0])
        run = self.values.run
        if self.values.integers.takes(func, args, kwargs):
            run = self.values.integers.run
        elif func is not aten.lift_fresh.default:
            args, kwargs = self._adopt(args), {name: self._adopt_one(value) for name, value in kwargs.items()}
        position = len(self.recording.ops)
        place = self.scope.place(position)
        signature = self._signatures.get(func) or self._sign(func)
        inputs: list[Operand] = []
        mutates: list[int] = []
        if func is not aten.lift_fresh.default:
            self._read(signature, args, kwargs, inputs, mutates, position)
        created = func is aten.lift_fresh.default
        result = self.values.lift(args[0]) if created else run(func, args, kwargs)
        outputs = [self._operand(tensor, position) for tensor in _tensors((args[0] if wraps_result(func) else result,))]
        if not inputs and not outputs:  # marks of the profiler
            return result
        if mutates:
            self._follow_resize(signature, args, kwargs, position)
        if place.parameter:
            _mark_gradient(outputs, place.parameter)
        if self.libraries:
            outputs += self._kept(self.libraries.first_needed(signature.kind, place.phase), position)
        workspace = signature.scratch
        flops = flop_registry.get(func._overloadpacket)
        self.recording.ops.append(
            Executed(
                signature.kind,
                inputs,
                outputs,
                mutates,
                place.phase,
                place.layer,
                place.forward_of,
                place.parameter,
                bool(place.node) and unobserved_in_place(signature.kind, place.node, args),
                workspace(args, result) if workspace else 0,
                int(flops(*args, **kwargs, out_val=result)) if flops else None,
                python_line() if self.lines else "",
                func is aten.native_batch_norm.default and bool(args[5]) and args[3] is not None,
                sent(func, signature.collective, args, kwargs, result) if signature.collective else None,
                self._call(func, args, kwargs, result) if self.calls else None,
            )
        )
        return result

    def _call(self, func: Any, args: Any, kwargs: Any, result: Any) -> Call:
        call = call_of(func, args, kwargs, result, self.device)
        if call.random:
            state = torch.default_generator.get_state()  # no kernel runs that would change it
            if self._random_state is not None and not torch.equal(state, self._random_state):
                return replace(call, unwritten="the step sets the random state")
            self._random_state = state
        return call

    def _kept(self, workspace: LibraryWorkspace | None, position: int) -> list[Operand]:
        if workspace is None:
            return []
        name, nbytes = workspace
        storage = Storage(nbytes, ((nbytes,), (1,), 0, torch.uint8), position, name, Role.LIBRARY)
        self.recording.storages.append(storage)
        return [(storage, storage.geometry)]

    def _sign(self, func: Any) -> Signature:
        schema = func._schema
        if uncounted(func, self.device):
            self.values.policy.note(f"{python_line()}: the temporaries of {schema.name} are not known and not counted")
        written = [
            (number, argument)
            for number, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        positions = tuple(number for number, argument in written if not argument.kwarg_only)
        names = tuple(argument.name for _, argument in written)
        collective = collective_of(func)
        kind = collective.kind if collective else schema.name.removeprefix("aten::")
        if is_in_place(func) and overwrites(func):
            positions = (0,)
        signature = Signature(kind, positions, names, scratch(func, self.device), collective)
        self._signatures[func] = signature
        return signature

    def _read(
        self, signature: Signature, args: Any, kwargs: Any, inputs: list[Operand], mutates: list[int], position: int
    ) -> None:
        for number, value in enumerate(args):
            written = number in signature.writes
            for tensor in _tensors((value,)):
                if written:
                    mutates.append(len(inputs))
                inputs.append(self._operand(tensor, BEFORE))
        for name, value in kwargs.items():
            for tensor in _tensors((value,)):
                if name in signature.writes_by_name:
                    mutates.append(len(inputs))
                inputs.append(self._operand(tensor, BEFORE))

    def _operand(self, tensor: torch.Tensor, born: int) -> Operand:
        geometry = geometry_of(tensor)
        return self._storage(tensor, geometry, born), geometry

    def _follow_resize(self, signature: Signature, args: Any, kwargs: Any, position: int) -> None:
        """An op with an ``out`` argument may resize it: new bytes in place of the old."""
        written = [args[number] for number in signature.writes if number < len(args)]
        written += [kwargs[name] for name in signature.writes_by_name if name in kwargs]
        for tensor in _tensors(written):
            actual = tensor.untyped_storage()
            storage = self._live.get(actual._cdata)
            if storage is not None and storage.nbytes != self._bytes(tensor):
                storage.died = position + 1
                self._watch(actual, Storage(self._bytes(tensor), geometry_of(tensor), position), actual._cdata)

    # -- tensors from outside ------------------------------------------------------------------

    def _adopt(self, args: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(self._adopt_one(value) for value in args)

    def _adopt_one(self, value: Any) -> Any:
        """Replace a real tensor that the code brings along by its hollow, which is the same each time."""
        if isinstance(value, torch.Tensor) and not self.values.hollows.is_hollow(value):
            hollow = self.values.adopt(value)
            if self.find(hollow) is None:
                self._constants += 1
                self._note_elsewhere(value)
                self.declare(hollow, f"constant.{self._constants}", Role.BUFFER)
            return hollow
        if isinstance(value, list):
            return [self._adopt_one(entry) for entry in value]
        return value

    def _note_elsewhere(self, value: torch.Tensor) -> None:
        if value.dim() and value.device.type != self.device:
            what = f"a tensor of {value.numel() * value.itemsize} bytes"
            self.values.policy.note(f"{python_line()}: {what} that is no part of the model stays on the CPU")

    # -- steps ---------------------------------------------------------------------------------

    def end_step(self, begin: int) -> None:
        """Close the step that began when *begin* ops had been dispatched.

        Raises:
            CaptureError: memory was read that is not there.
        """
        self.values.check_unread(widely=True)
        self.recording.bounds.append((begin, len(self.recording.ops)))

    def seal(self) -> None:
        """Stop watching: what lives now outlives the step."""
        for storage in self.recording.storages:
            storage.ref = None
        self._live.clear()


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mark_gradient(outputs: list[Operand], parameter: str) -> None:
    """What autograd's last node for a parameter makes or hands over is its ``.grad``."""
    for storage, _ in outputs:
        if storage.role is None:
            storage.role, storage.label = Role.GRADIENT, f"{parameter}.grad"
            storage.owner = parameter.rpartition(".")[0]


def geometry_of(tensor: torch.Tensor) -> Geometry:
    """Return shape, strides, offset and dtype of *tensor*."""
    return (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)
