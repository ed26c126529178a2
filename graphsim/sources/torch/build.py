"""From a recording to a graph: one step of it, its sources, and the holds that make lives end where they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

from graphsim.core.collector import uncollected
from graphsim.core.graph import HOLD, RESIDENT, Graph, Op, Phase, Role, Tensor
from graphsim.sources.torch.record import ALIVE, BEFORE, Executed, Geometry, Operand, Recording, Storage
from graphsim.units import ITEMSIZE, itemsize

SPLIT = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
"""Complex numbers are pairs."""


@uncollected()
def build_graph(recording: Recording, steps: slice, *, name: str, attributes: Mapping[str, Any]) -> Graph:
    """Return the graph of some steps of *recording*, one after the other."""
    bounds = recording.bounds[steps]
    return _Builder(recording, bounds[0][0], bounds[-1][1]).build(name, attributes)


class _Builder:
    def __init__(self, recording: Recording, begin: int, end: int) -> None:
        self.recording, self.begin, self.end = recording, begin, end
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self._base: dict[int, str] = {}
        self._names: dict[tuple[int, Geometry], str] = {}
        self._op_names: dict[int, str] = {}
        self._count: Counter[str] = Counter()

    def build(self, name: str, attributes: Mapping[str, Any]) -> Graph:
        self._sources()
        deaths = self._deaths()
        for position in range(self.begin, self.end):
            executed = self.recording.ops[position]
            read = self._emit(position, executed)
            if executed.kind == "native_batch_norm" and executed.statistics:
                self._update_statistics(executed)
            self._hold(executed.phase, executed.layer, deaths.get(position + 1, ()), read)
        return Graph(self.ops, self.tensors.values(), outputs=self._kept(), name=name, attributes=attributes)

    # -- storages ------------------------------------------------------------------------------

    def _sources(self) -> None:
        """What exists when the first op of the step runs."""
        for storage in self.recording.storages:
            if storage.born < self.begin and (storage.died == ALIVE or storage.died > self.begin):
                base = self._unique(storage.label or "before")
                role = storage.role or Role.ACTIVATION
                if role in RESIDENT and ALIVE != storage.died <= self.end:
                    role = Role.ACTIVATION
                self._base[id(storage)] = base
                shape, dtype = owned_type(storage.geometry, storage.nbytes)
                self.tensors[base] = Tensor(base, shape, dtype, role)

    def _deaths(self) -> dict[int, list[Storage]]:
        deaths: dict[int, list[Storage]] = {}
        for storage in self.recording.storages:
            if storage.died != ALIVE and self.begin < storage.died <= self.end:
                deaths.setdefault(storage.died, []).append(storage)
        return deaths

    def _hold(self, phase: Phase, layer: str, dying: Any, read: set[int]) -> None:
        """Keep alive to here what dies here, unless the op before uses it."""
        held = tuple(self._base[id(s)] for s in dying if id(s) not in read and id(s) in self._base and s.nbytes)
        if held:
            self.ops.append(Op(self._unique(_stem(layer, HOLD, phase)), HOLD, held, (), phase, layer))

    def _kept(self) -> list[str]:
        """What outlives the step, beside the sources that do so by their role."""
        names = (
            self._base[id(storage)]
            for storage in self.recording.storages
            if id(storage) in self._base and (storage.died == ALIVE or storage.died > self.end)
        )
        written = {name for op in self.ops for name in op.outputs}
        return [name for name in names if name in written or self.tensors[name].role not in RESIDENT]

    # -- ops -----------------------------------------------------------------------------------

    def _emit(self, position: int, executed: Executed) -> set[int]:
        """Append the op; return the storages that it touches."""
        layer = executed.layer or self._owner(executed)
        inplace = self._in_place(position, executed)
        kind = f"{executed.kind}_" if inplace else executed.kind
        name = self._unique(_stem(layer, kind, executed.phase))
        self._op_names[position] = name
        inputs = list(dict.fromkeys(self._name(operand) for operand in executed.inputs))
        mutates = [self._name(executed.inputs[number]) for number in executed.mutates]
        if inplace:
            mutates = [inputs[0]]
            self._base[id(executed.outputs[0][0])] = self.tensors[inputs[0]].base
        outputs = self._outputs(name, position, executed, inputs)
        views = not mutates and all(self.tensors[output].storage for output in outputs)
        size = sum(self.tensors[output].size for output in outputs)
        operands = (*inputs, *outputs)
        self.ops.append(
            Op(
                name,
                kind,
                tuple(inputs),
                tuple(outputs),
                executed.phase,
                layer,
                executed.workspace,
                executed.flops if executed.flops is not None else 0 if views else size,
                0 if views else sum(self.tensors[operand].nbytes for operand in operands),
                mutates=tuple(dict.fromkeys(mutates)),
                forward_of=self._op_names.get(executed.forward_of, "") if executed.forward_of != BEFORE else "",
                attributes=_attributes(executed),
            )
        )
        return {id(storage) for storage, _ in (*executed.inputs, *executed.outputs)}

    def _update_statistics(self, executed: Executed) -> None:
        """Batch norm in training overwrites its running statistics, which its schema does not say.

        An op of its own, as in graphsim.step.ops.norm: a recompute must not update the statistics again.
        """
        batch = [self._name(operand) for operand in executed.outputs[1:]]
        running = [self._name(operand) for operand in executed.inputs[-2:]]
        name = self._unique(_stem(executed.layer, "update_running_stats", executed.phase))
        self.ops.append(
            Op(
                name,
                "update_running_stats",
                (*batch, *running),
                (),
                executed.phase,
                executed.layer,
                mutates=tuple(running),
            )
        )

    def _outputs(self, name: str, position: int, executed: Executed, inputs: list[str]) -> list[str]:
        """Name the results; those over storages that the op did not allocate are aliases."""
        outputs: list[str] = []
        made: set[str] = set()
        read = {self.tensors[tensor].base for tensor in inputs}
        for number, operand in enumerate(executed.outputs):
            storage, geometry = operand
            result = name if not outputs else f"{name}:{number}"
            base = self._base.get(id(storage))
            if base is None:
                if storage.label and storage.role in (Role.OPTIMIZER_STATE, Role.LIBRARY):
                    result = self._unique(storage.label)
                self._base[id(storage)] = result
                shape, dtype = owned_type(geometry, storage.nbytes)
                self.tensors[result] = Tensor(result, shape, dtype, storage.role or _role(executed.phase))
            elif base in made:
                continue
            else:
                if executed.gradient_of and executed.kind == "detach":
                    result = self._unique(f"{executed.gradient_of}.grad")
                if base not in read:
                    inputs.append(base)
                    read.add(base)
                shape, dtype = alias_type(geometry)
                self.tensors[result] = Tensor(result, shape, dtype, self.tensors[base].role, base)
            self._names[id(storage), geometry] = result
            outputs.append(result)
            made.add(result)
        return outputs

    def _name(self, operand: Operand) -> str:
        """Return the latest tensor of that geometry over the storage, or the one that owns it."""
        storage, geometry = operand
        return self._names.get((id(storage), geometry)) or self._base[id(storage)]

    def _in_place(self, position: int, executed: Executed) -> bool:
        """True if the result takes the place of the first operand, which has no other use and dies here."""
        if not (executed.inplace or self._masks_scores(position, executed)):
            return False
        (first, geometry), *others = executed.inputs
        result, result_geometry = executed.outputs[0]
        return (
            first.died == position + 1
            and all(first is not other for other, _ in others)
            and first.nbytes == result.nbytes
            and geometry[0] == result_geometry[0]
        )

    def _masks_scores(self, position: int, executed: Executed) -> bool:
        """True for the mask that attention adds to its scores, in place unless observed.

        Source: aten/src/ATen/native/transformers/attention.cpp, ``_scaled_dot_product_attention_math``,
        the only user of ``_safe_softmax``.
        """
        if executed.kind != "add" or position + 1 >= self.end or len(executed.inputs) != 2:
            return False
        following = self.recording.ops[position + 1]
        return following.kind == "_safe_softmax" and following.inputs[0][0] is executed.outputs[0][0]

    def _owner(self, executed: Executed) -> str:
        """Return the module of the parameters that an op of the optimizer works on, if it is one."""
        owners = {storage.owner for storage, _ in (*executed.inputs, *executed.outputs) if storage.label}
        return owners.pop() if len(owners) == 1 else ""

    def _unique(self, stem: str) -> str:
        count = self._count[stem]
        self._count[stem] += 1
        return f"{stem}.{count}" if count else stem


def _stem(layer: str, kind: str, phase: Phase) -> str:
    stem = f"{layer}.{kind}" if layer else kind
    return stem if phase is Phase.FORWARD else f"{stem}@{phase}"


def _attributes(executed: Executed) -> dict[str, Any]:
    """Return the line, and of a collective the bytes that the rank sends and the group; see `Sent`."""
    attributes: dict[str, Any] = {"line": executed.line} if executed.line else {}
    if executed.sent:
        attributes |= {"sent": executed.sent.nbytes, "ranks": executed.sent.ranks}
        attributes |= {"first": executed.sent.first, "stride": executed.sent.stride}
    return attributes


def _role(phase: Phase) -> Role:
    return Role.TEMPORARY if phase is Phase.OPTIMIZER else Role.ACTIVATION


def alias_type(geometry: Geometry) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype in the words of `units.ITEMSIZE`; a complex number is a pair."""
    shape, _, _, dtype = geometry
    name = str(dtype).removeprefix("torch.")
    if name in SPLIT:
        return (*shape, 2), SPLIT[name]
    if name.startswith("float8"):
        return shape, "float8"
    if name in ITEMSIZE:
        return shape, name
    return shape, {1: "uint8", 2: "int16", 4: "int32"}.get(dtype.itemsize, "int64")


def owned_type(geometry: Geometry, nbytes: int) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of a tensor that owns *nbytes*: plain bytes, if it does not fill them."""
    shape, dtype = alias_type(geometry)
    return (shape, dtype) if prod(shape) * itemsize(dtype) == nbytes else ((nbytes,), "uint8")
