"""The walk over the nodes: what is known becomes constants, the rest ops of our kinds."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphsim.core.graph import Graph, Op, Role, Tensor
from graphsim.errors import SpecError
from graphsim.sources.onnx import arithmetic, layers, shapes
from graphsim.sources.onnx.evaluation import MAX_FOLD, REMEDY, Evaluation, elements
from graphsim.sources.onnx.read import Binding
from graphsim.sources.onnx.values import (
    Constant,
    Node,
    Operand,
    Result,
    Stored,
    dtype_of,
    is_learned,
    layer_of,
)
from graphsim.sources.spec.builder import MAX_ELEMENTS, MAX_LAYERS
from graphsim.sources.spec.fields import attribute_value
from graphsim.step.ops import kind_of
from graphsim.step.ops.kind import Parameter, ShapeError
from graphsim.step.ops.tape import Type
from graphsim.units import FLOATING, format_number

MAX_NESTED = 8

HANDLERS: dict[str, Callable[[Importer, Node], Sequence[Operand]]] = {
    **layers.HANDLERS,
    **arithmetic.HANDLERS,
    **shapes.HANDLERS,
}

GENERATED = re.compile(r"onnx::.*|/.*|_?[a-z]+(_[a-z]+)*_\d+")
"""Names that PyTorch's exporters give to what they compute: onnx::Mul_12, /attn/Constant_output_0, unsqueeze_14."""

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Pow", "Slice", "Expand", "Unsqueeze", "Reshape", "Cast"})

NO_GRADIENT = frozenset(
    {"ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN"}
    | {"Not", "And", "Or", "Xor", "Sign", "Floor", "Ceil", "Round"}
)
"""Ops through which no gradient flows, whatever their operands."""


def import_model(model: Any, where: str, binding: Binding) -> Graph:
    """Return the forward graph of a parsed *model* whose inputs have the extents of *binding*.

    Raises:
        SpecError: a node is wrong, or has no counterpart among our ops.
    """
    return Importer(model, where, binding).run()


class Importer:
    """Builds one graph; handlers of op types call `emit` and `layer`."""

    def __init__(self, model: Any, where: str, binding: Binding) -> None:
        self.graph, self.where, self.binding = model.graph, where, binding
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.evaluation = Evaluation(opsets, self.initializers)
        self.values: dict[str, Operand] = {}
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.producers = {name: node for node in self.graph.node for name in node.output if name}
        self.kept = {value.name for value in self.graph.output}
        self._names: Counter[str] = Counter()
        self._declared: dict[str, str] = {}
        self._buffers: dict[tuple[bytes, Type], str] = {}
        self._origin: dict[str, str] = {}

    def run(self) -> Graph:
        """Import all nodes and end in the loss."""
        self._sources()
        for number, proto in enumerate(self.graph.node):
            self._node(proto, number)
        outputs = self._finish([self._value(value.name, self.where) for value in self.graph.output])
        self._prune(outputs)
        return Graph(
            self.ops,
            self.tensors.values(),
            outputs=list(dict.fromkeys(outputs)),
            name=_clean(Path(self.where).stem, "model"),
            attributes={"params": dict(self.binding.params), "batch": self.binding.batch, "frozen": []},
        )

    # -- sources -------------------------------------------------------------------------------

    def _sources(self) -> None:
        for tensor in self.initializers.values():
            learned = not self._is_table(tensor.name)
            self.values[tensor.name] = self._known(tensor, tensor.name, self.where, learned=learned)
        for value in self.graph.input:
            if value.name in self.initializers:
                continue
            where = f"{self.where}: input '{value.name[:60]}'"
            type_ = Type(self.binding.inputs[value.name], dtype_of(value.type.tensor_type.elem_type, where))
            name = self.unique(_clean(value.name, "input"))
            self._add(name, type_, Role.INPUT, where)
            self.values[value.name] = Result(name, type_, learned=False)

    def _is_table(self, name: str) -> bool:
        """True for a mask or table that an exporter has computed: a name of its making, read elementwise only."""
        readers = self.consumers.get(name, ())
        return bool(GENERATED.fullmatch(name)) and all(reader.op_type in ELEMENTWISE for reader in readers)

    def _known(self, tensor: Any, name: str, where: str, *, learned: bool = False) -> Operand:
        """Return an initializer, or the value of a Constant node."""
        type_ = Type(tuple(tensor.dims), dtype_of(tensor.data_type, f"{where}: '{name[:60]}'"))
        if any(extent < 0 for extent in type_.shape):
            raise SpecError(f"'{name[:60]}' has a negative extent", where)
        floating = type_.dtype in FLOATING
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        if type_.size <= (1 if floating and learned else MAX_FOLD) and not outside:
            return Constant(elements(tensor, where))
        return Stored(name, type_, Role.PARAMETER if floating and learned else Role.BUFFER)

    # -- nodes ---------------------------------------------------------------------------------

    def _node(self, proto: Any, number: int, depth: int = 0) -> None:
        if all(not name or name in self.values for name in proto.output):
            return  # part of another op
        what = f"node '{proto.name[:60]}'" if proto.name else f"node {number}"
        where = f"{self.where}: {what} ({proto.op_type[:60]})"
        inputs = tuple(self._value(name, where) if name else None for name in proto.input)
        attributes = {entry.name: self._attribute(entry, where) for entry in proto.attribute}
        if proto.op_type == "If":
            self._branch(proto, inputs, attributes, where, depth)
        elif proto.op_type == "Constant":
            self.values[proto.output[0]] = self._constant_node(proto, attributes, where)
        else:
            self._ordinary(proto, inputs, attributes, where)

    def _ordinary(
        self, proto: Any, inputs: tuple[Operand | None, ...], attributes: Mapping[str, Any], where: str
    ) -> None:
        types = self.evaluation.infer(proto, inputs, where)
        node = Node(proto, inputs, attributes, types, where, layer_of(proto))
        results = self.evaluation.fold(node) or self._translate(node)
        for name, value, type_ in zip(proto.output, results, types, strict=False):
            if value.type.shape != type_.shape:
                raise SpecError(f"has shape {list(type_.shape)}, we find {list(value.type.shape)}", where)
            self.values[name] = value

    def _value(self, name: str, where: str) -> Operand:
        if name not in self.values:
            raise SpecError(f"reads '{name[:60]}', which no node before it writes", where)
        return self.values[name]

    def _attribute(self, entry: Any, where: str) -> Any:
        if entry.ref_attr_name:
            raise SpecError(f"attribute '{entry.name[:60]}' refers to a function's", where)
        return onnx.helper.get_attribute_value(entry)

    def _constant_node(self, proto: Any, attributes: Mapping[str, Any], where: str) -> Operand:
        if "value" in attributes:
            if not isinstance(attributes["value"], onnx.TensorProto):
                raise SpecError("damaged: the value of the constant is no tensor", where)
            return self._known(attributes["value"], proto.output[0], where)
        if not attributes or "sparse_value" in attributes or any("string" in name for name in attributes):
            raise SpecError("only constants of numbers are read", where)
        return self.evaluation.run(proto, {}, where)[0]

    def _branch(
        self, proto: Any, inputs: Sequence[Operand | None], attributes: Mapping[str, Any], where: str, depth: int
    ) -> None:
        """Import the branch that is taken, if that is known."""
        condition = inputs[0]
        if not isinstance(condition, Constant) or depth > MAX_NESTED:
            raise SpecError("which branch is taken depends on data, or branches nest too deeply", where)
        branch = attributes["then_branch" if condition.array.any() else "else_branch"]
        for tensor in branch.initializer:
            self.values[tensor.name] = self._known(tensor, tensor.name, where)
        for number, inner in enumerate(branch.node):
            self._node(inner, number, depth + 1)
        for name, output in zip(proto.output, branch.output, strict=True):
            self.values[name] = self._value(output.name, where)

    def _translate(self, node: Node) -> Sequence[Operand]:
        handler = HANDLERS.get(node.op)
        free = node.op in NO_GRADIENT or not any(is_learned(value) for value in node.inputs if value is not None)
        if handler is not None and node.op not in NO_GRADIENT:
            return handler(self, node)
        if not free:
            raise SpecError(f"{node.op} has no counterpart among our ops: {REMEDY}", node.where)
        return [self.compute(node, type_) for type_ in node.outputs]

    # -- what handlers use ---------------------------------------------------------------------

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
        owned: Mapping[str, tuple[Stored, tuple[int, ...]] | None],
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
        base = self.unique(_clean(node.proto.name, path or node.op))
        mine = {p.name: self._own(p, owned.get(p.name), node, path or base) for p in signature.parameters}
        learned = any(is_learned(value) for value in operands) or any(
            self.tensors[name].role is Role.PARAMETER for name in mine.values()
        )
        self._origin[base] = node.proto.output[0] if node.proto.output else base
        results = []
        for number, type_ in enumerate(signature.outputs):
            name = f"{base}:{number}" if number else base
            self._add(name, type_, Role.ACTIVATION, node.where)
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

    def _path(self, node: Node, owned: Mapping[str, tuple[Stored, tuple[int, ...]] | None]) -> str:
        """Return the module path: that of the weight, else what the exporter says."""
        for entry in owned.values():
            if entry is not None and "::" not in entry[0].name and "." in entry[0].name:
                return _clean(entry[0].name.rpartition(".")[0])
        return _clean(node.layer)

    def _own(self, parameter: Parameter, given: tuple[Stored, tuple[int, ...]] | None, node: Node, path: str) -> str:
        if given is None:
            name = self.unique(f"{path}.{parameter.name}")
            self._add(name, Type(parameter.shape, parameter.dtype or "float32"), parameter.role, node.where)
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
            name = self.unique(_clean(stored.name, "initializer"))
            self._declared[stored.name] = name
            self._add(name, Type(shape or natural, stored.type.dtype), role or stored.role, self.where)
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
            self._add(self._buffers[key], value.type, Role.BUFFER, node.where)
        return self._buffers[key]

    def unflipped(self, value: Result) -> Result:
        """Return *value* as it lies in memory."""
        return Result(value.name, value.tensor, value.learned)

    # -- the end -------------------------------------------------------------------------------

    def _finish(self, outputs: Sequence[Operand]) -> list[str]:
        """Append the loss; return what the step keeps."""
        end = Node(onnx.NodeProto(name="loss", op_type="loss"), (), {}, (), f"{self.where}: loss", "")
        if self.binding.loss == "none":
            return [self.tensor(value, end) for value in outputs]
        floating = [value for value in outputs if value.type.dtype in FLOATING]
        if not floating:
            raise SpecError("no output is floating: there is nothing to make a loss of", self.where)
        first = floating[0]
        if self.binding.loss == "cross_entropy":
            return [self._cross_entropy(first, end).name]
        if not first.type.shape:
            return [self.tensor(first, end)]
        return [self.emit(end, "mean", [first], dims=list(range(len(first.type.shape)))).name]

    def _cross_entropy(self, logits: Operand, end: Node) -> Result:
        shape = logits.type.shape
        if len(shape) < 2:
            raise SpecError(f"cross_entropy needs logits (batch, ..., classes), not shape {list(shape)}", end.where)
        labels = Type(shape[:-1] if len(shape) < 4 else (shape[0], *shape[2:]), "int64")
        name = self.unique("labels")
        self._add(name, labels, Role.INPUT, end.where)
        return self.emit(end, "cross_entropy", [logits, Result(name, labels, learned=False)])

    def _prune(self, outputs: Sequence[str]) -> None:
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

    def _add(self, name: str, type_: Type, role: Role, where: str) -> None:
        if any(extent < 1 for extent in type_.shape):
            raise SpecError(f"'{name}' would have shape {list(type_.shape)}: every extent must be >= 1", where)
        if prod(type_.shape) > MAX_ELEMENTS:
            raise SpecError(f"'{name}' would have {format_number(type_.size)} elements, beyond any real model", where)
        self.tensors[name] = Tensor(name, type_.shape, type_.dtype, role)


def _clean(name: str, otherwise: str = "") -> str:
    """Names come from strangers: printable and of bounded length."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(name)[:200]) or otherwise
