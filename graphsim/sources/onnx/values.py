"""What the names of an ONNX graph stand for during import, and a node with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from graphsim.core.graph import Role
from graphsim.errors import SpecError
from graphsim.step.ops.tape import Type

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.INT16: "int16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
    TensorProto.UINT64: "int64",
    TensorProto.UINT32: "int32",
    TensorProto.UINT16: "int16",
    TensorProto.FLOAT8E4M3FN: "float8",
    TensorProto.FLOAT8E5M2: "float8",
}
"""Our dtype of an element type; unsigned integers by the signed ones of their size."""

ELEMENTS = {dtype: element for element, dtype in reversed(DTYPES.items())}


def dtype_of(element: int, where: str) -> str:
    """Return our name of an ONNX element type.

    Raises:
        SpecError: it is one that no tensor of a training step has.
    """
    if element not in DTYPES:
        names = {number: name for name, number in TensorProto.DataType.items()}
        raise SpecError(f"element type {names.get(element, element)} is not supported", where)
    return DTYPES[element]


@dataclass(frozen=True)
class Constant:
    """A small tensor whose elements are known."""

    array: np.ndarray[Any, Any]

    @property
    def type(self) -> Type:
        """Shape and dtype."""
        return Type(self.array.shape, DTYPES[onnx.helper.np_dtype_to_tensor_dtype(self.array.dtype)])


@dataclass(frozen=True)
class Stored:
    """An initializer or a large constant, of which only the type counts.

    *transposed* if its two dimensions have changed places since.
    """

    name: str
    type: Type
    role: Role
    transposed: bool = False

    def flip(self) -> Stored:
        """Return it with its two dimensions exchanged."""
        return Stored(self.name, Type(self.type.shape[::-1], self.type.dtype), self.role, not self.transposed)


@dataclass(frozen=True)
class Result:
    """A tensor of our graph. *learned* if it depends on a parameter.

    If *flipped*, the tensor that the ONNX graph means has the last two dimensions exchanged: a product
    transposes them without a copy.
    """

    name: str
    tensor: Type
    learned: bool
    flipped: bool = False

    @property
    def type(self) -> Type:
        """Shape and dtype of what the ONNX graph means."""
        shape = self.tensor.shape
        return Type((*shape[:-2], shape[-1], shape[-2]), self.tensor.dtype) if self.flipped else self.tensor


Operand = Constant | Stored | Result


def is_learned(value: Operand) -> bool:
    """True if *value* is a parameter or depends on one."""
    return value.learned if isinstance(value, Result) else getattr(value, "role", None) is Role.PARAMETER


@dataclass(frozen=True)
class Node:
    """A node: its operands (None for an absent one), attributes, and the types of its outputs."""

    proto: Any
    inputs: tuple[Operand | None, ...]
    attributes: Mapping[str, Any]
    outputs: tuple[Type, ...]
    where: str
    layer: str

    @property
    def op(self) -> str:
        """The op type."""
        return str(self.proto.op_type)

    def operand(self, number: int) -> Operand | None:
        """Return an operand, None if it is absent."""
        return self.inputs[number] if number < len(self.inputs) else None

    def required(self, number: int) -> Operand:
        """Return an operand.

        Raises:
            SpecError: it is absent.
        """
        value = self.operand(number)
        if value is None:
            raise SpecError(f"operand {number} is missing", self.where)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)


def element_type(value: Operand) -> Any:
    """Return the ``TypeProto`` of *value*, for shape inference."""
    element = (
        onnx.helper.np_dtype_to_tensor_dtype(value.array.dtype)
        if isinstance(value, Constant)
        else ELEMENTS[value.type.dtype]
    )
    return onnx.helper.make_tensor_type_proto(element, value.type.shape)


def layer_of(proto: Any) -> str:
    """Return the module path that PyTorch's exporters leave in a node: ``transformer.h.0.attn``, or ''.

    TorchScript's exporter has it in the name, ``/layer1/layer1.0/conv1/Conv``; the newer one in metadata.
    """
    for entry in proto.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = [scope.strip(" '\"") for scope in entry.value[:2000].strip("[]").split(",")]
            return scopes[-2][:200] if len(scopes) > 1 else ""
    path = ""
    for part in str(proto.name)[:400].strip("/").split("/")[:-1]:
        path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
    return path[:200]
