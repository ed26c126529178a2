"""What handlers of ONNX ops work with: the graph so far, what is known of its nodes, and how ops are appended to it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from graphsim.core.graph import Op, Role, Tensor
from graphsim.errors import SpecError
from graphsim.sources.onnx.values import Constant, Node, Operand, Result, Stored, is_learned
from graphsim.sources.spec.builder import MAX_ELEMENTS, MAX_LAYERS
from graphsim.sources.spec.fields import attribute_value
from graphsim.step.ops import kind_of
from graphsim.step.ops.kind import Parameter, ShapeError
from graphsim.step.ops.tape import Type
from graphsim.units import FLOATING, format_number

Given = tuple[Stored, tuple[int, ...]]
"""What an op owns: an initializer, and its shape in PyTorch's layout."""


class Emitter:
    """Our graph, as far as it is made of an ONNX *graph*.

    Attributes:
        values: what each ONNX value is among ours.
        consumers: nodes that read an ONNX value.
        producers: the node that writes it.
        kept: outputs of the model.
    """

    def __init__(self, graph: Any, where: str) -> None:
        self.where = where
        self.values: dict[str, Operand] = {}
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.kept = {value.name for value in graph.output}
        self._names: Counter[str] = Counter()
        self._declared: dict[str, str] = {}
        self._buffers: dict[tuple[bytes, Type], str] = {}
        self._origin: dict[str, str] = {}

    # -- what is known of operands and nodes ---------------------------------------------------

    def array(self, value: Operand, node: Node) -> np.ndarray[Any, Any]:
        """Return the elements of a constant.

        Raises:
            SpecError: they depend on data.
        """
        if not isinstance(value, Constant):
            raise SpecError("an operand that must be constant depends on data", node.where)
        return value.array

    def integers(self, node: Node, number: int, name: str = "") -> list[int] | None:
        """Return constant integers: operand *number*, or the attribute *name* of older opsets; None if absent.

        Raises:
            SpecError: they depend on data.
        """
        if name and name in node.attributes:
            return [int(entry) for entry in node.attributes[name]]
        value = node.operand(number)
        if value is None:
            return None
        return [int(entry) for entry in self.array(value, node).reshape(-1)]

    def scalar(self, value: Operand | None) -> float | None:
        """Return a constant of one element, else None."""
        if isinstance(value, Constant) and value.array.size == 1:
            return float(value.array.reshape(-1)[0])
        return None

    def sole_consumer(self, name: str) -> Any:
        """Return the only node that reads the ONNX value *name*, if there is exactly one."""
        readers = self.consumers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.kept else None

    def fuse(self, parts: Sequence[Any], value: Operand) -> None:
        """Say that the results of later nodes are *value*: they are part of the op at hand."""
        for proto in parts:
            self.values[proto.output[0]] = value

    def is_closed(self, parts: Sequence[Any], end: Any) -> bool:
        """True if what *parts* write is read only by themselves and *end*, or for its shape."""
        inside = {part.output[0] for part in parts} | {end.output[0]}
        return not any(
            reader.output[0] not in inside and reader.op_type != "Shape"
            for part in parts
            for reader in self.consumers[part.output[0]]
        ) and not inside & (self.kept - {end.output[0]})

    # -- ops -----------------------------------------------------------------------------------

    def drop(self, parts: Sequence[Any]) -> None:
        """Take back the ops that were emitted for nodes that are part of another op."""
        origins = {part.output[0] for part in parts}
        gone = [op for op in self.ops if self._origin[op.name] in origins]
        for op in gone:
            for name in op.outputs:
                del self.tensors[name]
        names = {op.name for op in gone}
        self.ops = [op for op in self.ops if op.name not in names]

    def emit(self, node: Node, kind: str, operands: Sequence[Operand], **attributes: Any) -> Result:
        """Append an op of *kind* with one result that counts."""
        return self.layer(node, kind, operands, {}, **attributes)[0]

    def compute(self, node: Node, type_: Type) -> Result:
        """Append a kernel without a gradient."""
        operands = [value for value in node.inputs if value is not None and not isinstance(value, Constant)]
        result = self.emit(node, "compute", operands, shape=list(type_.shape), dtype=type_.dtype)
        return Result(result.name, result.tensor, learned=False)

    def layer(
        self,
        node: Node,
        kind: str,
        operands: Sequence[Operand],
        owned: Mapping[str, Given | None],
        **attributes: Any,
    ) -> list[Result]:
        """Append an op of *kind* that owns parameters: (initializer, shape in PyTorch's layout); None: made anew.

        Raises:
            SpecError: shapes do not suit, or an attribute is out of bounds.
        """
        names = [self.tensor(value, node) for value in operands]
        table = kind_of(kind)
        values = {a.name: attribute_value(a, attributes.get(a.name), {}, node.where) for a in table.attributes}
        try:
            signature = table.infer([Type(self.tensors[n].shape, self.tensors[n].dtype) for n in names], values)
        except ShapeError as error:
            raise SpecError(str(error), node.where) from None
        path = self._path(node, owned)
        base = self.unique(clean(node.proto.name, path or node.op))
        mine = {p.name: self._own(p, owned.get(p.name), node, path or base) for p in signature.parameters}
        learned = any(is_learned(value) for value in operands) or any(
            self.tensors[name].role is Role.PARAMETER for name in mine.values()
        )
        self._origin[base] = node.proto.output[0] if node.proto.output else base
        results = []
        for number, type_ in enumerate(signature.outputs):
            name = f"{base}:{number}" if number else base
            self.add(name, type_, Role.ACTIVATION, node.where)
            results.append(Result(name, type_, learned and type_.dtype in FLOATING))
        if len(self.ops) >= MAX_LAYERS:
            raise SpecError(f"the model has more than {MAX_LAYERS} ops", self.where)
        self.ops.append(
            Op(
                base,
                kind,
                (*names, *mine.values()),
                tuple(result.name for result in results),
                layer=path or base,
                attributes={**values, "owned": mine},
            )
        )
        return results

    def _path(self, node: Node, owned: Mapping[str, Given | None]) -> str:
        """Return the module path: that of the weight, else what the exporter says."""
        for entry in owned.values():
            if entry is not None and "::" not in entry[0].name and "." in entry[0].name:
                return clean(entry[0].name.rpartition(".")[0])
        return clean(node.layer)

    def _own(self, parameter: Parameter, given: Given | None, node: Node, path: str) -> str:
        if given is None:
            name = self.unique(f"{path}.{parameter.name}")
            self.add(name, Type(parameter.shape, parameter.dtype or "float32"), parameter.role, node.where)
            return name
        stored, shape = given
        if shape != parameter.shape:
            what = f"'{stored.name[:60]}' has shape {list(shape)}, '{parameter.name}' needs {list(parameter.shape)}"
            raise SpecError(what, node.where)
        return self.declare(stored, shape, role=parameter.role)

    def declare(self, stored: Stored, shape: tuple[int, ...] | None = None, *, role: Role | None = None) -> str:
        """Return the tensor of *stored*; the first to ask says its shape and role."""
        if stored.name not in self._declared:
            natural = stored.type.shape[::-1] if stored.transposed else stored.type.shape
            name = self.unique(clean(stored.name, "initializer"))
            self._declared[stored.name] = name
            self.add(name, Type(shape or natural, stored.type.dtype), role or stored.role, self.where)
        return self._declared[stored.name]

    def tensor(self, value: Operand, node: Node) -> str:
        """Return the name of the tensor that holds *value*, laid out as the ONNX graph means it."""
        if isinstance(value, Result):
            return (
                self.emit(node, "transpose", [self.unflipped(value)], a=-2, b=-1).name if value.flipped else value.name
            )
        if isinstance(value, Stored):
            name = self.declare(value)
            held = self.tensors[name]
            if held.shape == value.type.shape:
                return name
            result = Result(name, Type(held.shape, held.dtype), is_learned(value))
            return self.emit(node, "transpose", [result], a=0, b=1).name
        key = (value.array.tobytes(), value.type)
        if key not in self._buffers:
            self._buffers[key] = self.unique("constant")
            self.add(self._buffers[key], value.type, Role.BUFFER, node.where)
        return self._buffers[key]

    def unflipped(self, value: Result) -> Result:
        """Return *value* as it lies in memory."""
        return Result(value.name, value.tensor, value.learned)

    def prune(self, outputs: Sequence[str]) -> None:
        """Leave out what nothing is made of: shape arithmetic, weights that only a recurrent layer reads."""
        needed, ops = set(outputs), []
        for op in reversed(self.ops):
            if needed.intersection(op.outputs):
                needed.update(op.inputs, op.outputs)
                ops.append(op)
        self.ops = ops[::-1]
        self.tensors = {n: t for n, t in self.tensors.items() if n in needed or t.role is Role.INPUT}

    # -- names ---------------------------------------------------------------------------------

    def unique(self, stem: str) -> str:
        """Return *stem*, numbered if it stands already."""
        count = self._names[stem]
        self._names[stem] += 1
        return self.unique(f"{stem}.{count}") if count else stem

    def add(self, name: str, type_: Type, role: Role, where: str) -> None:
        """Declare a tensor.

        Raises:
            SpecError: it is empty, or too large to be true.
        """
        if any(extent < 1 for extent in type_.shape):
            raise SpecError(f"'{name}' would have shape {list(type_.shape)}: every extent must be >= 1", where)
        if prod(type_.shape) > MAX_ELEMENTS:
            raise SpecError(f"'{name}' would have {format_number(type_.size)} elements, beyond any real model", where)
        self.tensors[name] = Tensor(name, type_.shape, type_.dtype, role)


Handler = Callable[[Emitter, Node], Sequence[Operand]]
"""Makes ops of ours of a node; returns its outputs."""


def clean(name: str, otherwise: str = "") -> str:
    """Names come from strangers: printable and of bounded length."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(name)[:200]) or otherwise
