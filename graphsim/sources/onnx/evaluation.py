"""What onnx itself says of a node: the types of its results, and their values where they follow from constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_node_outputs

from graphsim.errors import SpecError
from graphsim.sources.onnx.values import ELEMENTS, Constant, Node, Operand, Stored, dtype_of, element_type
from graphsim.step.ops.tape import Type

MAX_FOLD = 1024
"""Elements of a constant whose values are kept: shapes and indices have few."""

MAX_RANK = 8
"""Dimensions of a tensor: factors of a resize, one for each."""

REMEDY = "export the model without it, or capture its PyTorch code instead (graphsim peak torch:module:function)"


def elements(tensor: Any, where: str) -> np.ndarray[Any, Any]:
    """Return the elements of a ``TensorProto``.

    Raises:
        SpecError: they do not suit its shape.
    """
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise SpecError(f"the data of '{tensor.name[:60]}' does not suit its shape: {error}", where) from None


@dataclass(frozen=True)
class Evaluation:
    """Shape inference and reference evaluation in the opsets of a model."""

    opsets: Mapping[str, int]
    initializers: Mapping[str, Any]

    def infer(self, proto: Any, inputs: Sequence[Operand | None], where: str) -> tuple[Type, ...]:
        """Return the types of the node's results, by onnx's own inference from those of its operands.

        Raises:
            SpecError: the node is wrong, unknown, or the shape depends on data.
        """
        if proto.domain not in ("", "ai.onnx"):
            raise SpecError(f"is of the domain '{proto.domain[:60]}': {REMEDY}", where)
        given = {name: value for name, value in zip(proto.input, inputs, strict=True) if value is not None}
        data = {name: self._data(value, proto.op_type, where) for name, value in given.items()}
        try:
            schema = onnx.defs.get_schema(proto.op_type, self.opsets.get("", 1), "")
            types = infer_node_outputs(
                schema,
                proto,
                {name: element_type(value) for name, value in given.items()},
                {name: tensor for name, tensor in data.items() if tensor is not None},
                opset_imports=[onnx.helper.make_opsetid(domain, number) for domain, number in self.opsets.items()],
            )
        except onnx.defs.SchemaError:
            raise SpecError("is no op of ONNX in this opset", where) from None
        except (InferenceError, onnx.checker.ValidationError, ValueError, TypeError, RuntimeError) as error:
            raise SpecError(" ".join(str(error).split())[:300], where) from None
        return tuple(self._type(types.get(name), where) for name in proto.output if name)

    def _data(self, value: Operand, op: str, where: str) -> Any:
        """Return what a shape may follow from: constants, and the factors of a resize."""
        if isinstance(value, Constant):
            return onnx.numpy_helper.from_array(value.array)
        if op in ("Resize", "Upsample") and isinstance(value, Stored) and value.type.size <= MAX_RANK:
            tensor = self.initializers.get(value.name)
            return (
                None
                if tensor is None or tensor.external_data
                else onnx.numpy_helper.from_array(elements(tensor, where))
            )
        return None

    def _type(self, proto: Any, where: str) -> Type:
        if proto is None or not proto.HasField("tensor_type"):
            raise SpecError("what it returns is not known, or no tensor", where)
        dims = proto.tensor_type.shape.dim
        if not proto.tensor_type.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
            raise SpecError(f"the shape of its result depends on data; {REMEDY}", where)
        return Type(tuple(dim.dim_value for dim in dims), dtype_of(proto.tensor_type.elem_type, where))

    def fold(self, node: Node) -> Sequence[Constant]:
        """Return the results as constants, if they are small and follow from constants; else nothing."""
        if node.op in ("Shape", "Size"):
            return [Constant(_extents(node))]
        if any(type_.size == 0 for type_ in node.outputs):
            return [_empty(type_, node.where) for type_ in node.outputs]
        if sum(type_.size for type_ in node.outputs) > MAX_FOLD or node.op.startswith(("Random", "Bernoulli")):
            return ()
        if not all(value is None or isinstance(value, Constant) for value in node.inputs):
            return ()
        feeds = {n: v.array for n, v in zip(node.proto.input, node.inputs, strict=True) if isinstance(v, Constant)}
        return self.run(node.proto, feeds, node.where)

    def run(self, proto: Any, feeds: Mapping[str, np.ndarray[Any, Any]], where: str) -> list[Constant]:
        """Evaluate a node by onnx's reference implementation.

        Raises:
            SpecError: it cannot be evaluated.
        """
        try:
            evaluator: Any = ReferenceEvaluator(proto, opsets=dict(self.opsets))
            with np.errstate(all="ignore"):
                results = evaluator.run(None, dict(feeds))
            return [Constant(np.asarray(result)) for result in results]
        except MemoryError:
            raise
        except Exception as error:  # whatever numpy makes of a stranger's numbers
            raise SpecError(f"cannot be evaluated: {' '.join(str(error).split())[:200]}", where) from None


def _extents(node: Node) -> np.ndarray[Any, Any]:
    """Return the result of Shape or Size."""
    shape = node.required(0).type.shape
    if node.op == "Size":
        return np.array(prod(shape), dtype=np.int64)
    return np.array(shape[slice(node.get("start", 0), node.get("end"))], dtype=np.int64)


def _empty(type_: Type, where: str) -> Constant:
    try:
        return Constant(np.empty(type_.shape, onnx.helper.tensor_dtype_to_np_dtype(ELEMENTS[type_.dtype])))
    except ValueError:
        raise SpecError(f"shape {list(type_.shape)} is beyond any real model", where) from None
