"""The walk over the nodes: what is known becomes constants, the rest ops of our kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from graphsim.core.graph import Graph, Role
from graphsim.errors import SpecError
from graphsim.sources.onnx import arithmetic, layers, shapes
from graphsim.sources.onnx.emitter import Emitter, Handler, clean
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
from graphsim.step.ops.tape import Type
from graphsim.units import FLOATING

MAX_NESTED = 8

HANDLERS: dict[str, Handler] = {
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
    """Builds one graph: what is known stays known, handlers of op types append the rest with an `Emitter`."""

    def __init__(self, model: Any, where: str, binding: Binding) -> None:
        self.graph, self.where, self.binding = model.graph, where, binding
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.evaluation = Evaluation(opsets, self.initializers)
        self.emitter = Emitter(self.graph, where)

    def run(self) -> Graph:
        """Import all nodes and end in the loss."""
        self._sources()
        for number, proto in enumerate(self.graph.node):
            self._node(proto, number)
        outputs = self._finish([self._value(value.name, self.where) for value in self.graph.output])
        self.emitter.prune(outputs)
        return Graph(
            self.emitter.ops,
            self.emitter.tensors.values(),
            outputs=list(dict.fromkeys(outputs)),
            name=clean(Path(self.where).stem, "model"),
            attributes={"params": dict(self.binding.params), "batch": self.binding.batch, "frozen": []},
        )

    # -- sources -------------------------------------------------------------------------------

    def _sources(self) -> None:
        for tensor in self.initializers.values():
            learned = not self._is_table(tensor.name)
            self.emitter.values[tensor.name] = self._known(tensor, tensor.name, self.where, learned=learned)
        for value in self.graph.input:
            if value.name in self.initializers:
                continue
            where = f"{self.where}: input '{value.name[:60]}'"
            type_ = Type(self.binding.inputs[value.name], dtype_of(value.type.tensor_type.elem_type, where))
            name = self.emitter.unique(clean(value.name, "input"))
            self.emitter.add(name, type_, Role.INPUT, where)
            self.emitter.values[value.name] = Result(name, type_, learned=False)

    def _is_table(self, name: str) -> bool:
        """True for a mask or table that an exporter has computed: a name of its making, read elementwise only."""
        readers = self.emitter.consumers.get(name, ())
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
        if all(not name or name in self.emitter.values for name in proto.output):
            return  # part of another op
        what = f"node '{proto.name[:60]}'" if proto.name else f"node {number}"
        where = f"{self.where}: {what} ({proto.op_type[:60]})"
        inputs = tuple(self._value(name, where) if name else None for name in proto.input)
        attributes = {entry.name: self._attribute(entry, where) for entry in proto.attribute}
        if proto.op_type == "If":
            self._branch(proto, inputs, attributes, where, depth)
        elif proto.op_type == "Constant":
            self.emitter.values[proto.output[0]] = self._constant_node(proto, attributes, where)
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
            self.emitter.values[name] = value

    def _value(self, name: str, where: str) -> Operand:
        if name not in self.emitter.values:
            raise SpecError(f"reads '{name[:60]}', which no node before it writes", where)
        return self.emitter.values[name]

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
            self.emitter.values[tensor.name] = self._known(tensor, tensor.name, where)
        for number, inner in enumerate(branch.node):
            self._node(inner, number, depth + 1)
        for name, output in zip(proto.output, branch.output, strict=True):
            self.emitter.values[name] = self._value(output.name, where)

    def _translate(self, node: Node) -> Sequence[Operand]:
        handler = HANDLERS.get(node.op)
        free = node.op in NO_GRADIENT or not any(is_learned(value) for value in node.inputs if value is not None)
        if handler is not None and node.op not in NO_GRADIENT:
            return handler(self.emitter, node)
        if not free:
            raise SpecError(f"{node.op} has no counterpart among our ops: {REMEDY}", node.where)
        return [self.emitter.compute(node, type_) for type_ in node.outputs]

    # -- the end -------------------------------------------------------------------------------

    def _finish(self, outputs: Sequence[Operand]) -> list[str]:
        """Append the loss; return what the step keeps."""
        end = Node(onnx.NodeProto(name="loss", op_type="loss"), (), {}, (), f"{self.where}: loss", "")
        if self.binding.loss == "none":
            return [self.emitter.tensor(value, end) for value in outputs]
        floating = [value for value in outputs if value.type.dtype in FLOATING]
        if not floating:
            raise SpecError("no output is floating: there is nothing to make a loss of", self.where)
        first = floating[0]
        if self.binding.loss == "cross_entropy":
            return [self._cross_entropy(first, end).name]
        if not first.type.shape:
            return [self.emitter.tensor(first, end)]
        return [self.emitter.emit(end, "mean", [first], dims=list(range(len(first.type.shape)))).name]

    def _cross_entropy(self, logits: Operand, end: Node) -> Result:
        shape = logits.type.shape
        if len(shape) < 2:
            raise SpecError(f"cross_entropy needs logits (batch, ..., classes), not shape {list(shape)}", end.where)
        labels = Type(shape[:-1] if len(shape) < 4 else (shape[0], *shape[2:]), "int64")
        name = self.emitter.unique("labels")
        self.emitter.add(name, labels, Role.INPUT, end.where)
        return self.emitter.emit(end, "cross_entropy", [logits, Result(name, labels, learned=False)])
