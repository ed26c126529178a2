"""Lookup tables: token and position embeddings.

Source: aten/src/ATen/native/Embedding.cpp (embedding_dense_backward: the gradient is a dense table).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphsim.core.graph import Role, Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import FLOATING, itemsize

SORTED = 3072
"""More indices than this are sorted before their gradients are summed (``embedding_dense_backward_cuda``)."""

ROWS_PER_THREAD = 10
"""``NROWS_PER_THREAD`` in cuda/EmbeddingBackwardKernel.cu."""


def embedding_backward_scratch(
    indices: int, rows: int, width: int, dtype: str, index: int = 8, *, counts: bool = False
) -> int:
    """Return the bytes that CUDA's kernel takes beside the gradient of the table; *index*: bytes of an index.

    Source: aten/src/ATen/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu, ``embedding_backward_cuda_kernel``:
    the indices sorted, their order and the begin of each segment; of at most min(indices, rows) segments, two
    counts; of at most so many and indices / 10 parts of them, the begin and the sum in fp32.
    """
    if indices <= SORTED and not counts:
        return 0
    segments = min(indices, rows)
    parts = indices // ROWS_PER_THREAD + segments
    sums = parts * width * max(4, itemsize(dtype))
    return index * ((4 if counts else 3) * indices + 2 * segments + parts) + sums


def lookup(tape: Tape, indices: Tensor, table: Tensor) -> Tensor:
    """Rows of *table* (rows, width) at int64 *indices*; saves the indices."""
    copy = 0 if tape.is_contiguous(indices) else indices.nbytes
    y = tape.emit(
        "embedding", (table, indices), Type((*indices.shape, table.shape[1]), table.dtype), flops=0, workspace=copy
    )

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        scratch = copy
        if tape.target == "cuda":
            scratch += embedding_backward_scratch(indices.size, table.shape[0], table.shape[1], grad.dtype)
        return (tape.emit("embedding_backward", (grad, indices), like(table), workspace=scratch),)

    tape.differentiate((table,), y, (indices,), backward)
    return y


def _infer_embedding(types: Sequence[Type], attributes: Attributes) -> Signature:
    (indices,) = types
    if indices.dtype in FLOATING:
        raise ShapeError(f"embedding needs integer indices, not {indices.dtype}")
    out = Type((*indices.shape, attributes["width"]))
    return Signature((out,), (Parameter("weight", (attributes["rows"], attributes["width"])),))


def _lower_embedding(
    tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes
) -> Tensor:
    return lookup(tape, inputs[0], owned["weight"])


def _infer_positions(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if len(x.shape) < 2 or x.shape[1] > attributes["rows"]:
        raise ShapeError(f"position_embedding: {attributes['rows']} rows are too few for shape {list(x.shape)}")
    out = Type((1, x.shape[1], attributes["width"]))
    parameters = [Parameter("weight", (attributes["rows"], attributes["width"]))]
    if attributes["buffer"]:
        parameters.append(Parameter("position_ids", (1, attributes["rows"]), Role.BUFFER, "int64"))
    return Signature((out,), tuple(parameters))


def _lower_positions(
    tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes
) -> Tensor:
    """Positions are a slice of a buffer, or counted anew in each step; the lookup saves them."""
    length = inputs[0].shape[1]
    if "position_ids" in owned:
        positions = tape.alias(owned["position_ids"], (1, length), kind="slice")
    else:
        positions = tape.emit("arange", (), Type((1, length), "int64"), workspace=8 * length, flops=0)
    return lookup(tape, positions, owned["weight"])


def _infer_token_types(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if len(x.shape) != 2 or x.shape[1] > attributes["positions"]:
        raise ShapeError(f"token_type_embedding: {attributes['positions']} positions are too few for {list(x.shape)}")
    return Signature(
        (Type((*x.shape, attributes["width"])),),
        (
            Parameter("weight", (attributes["rows"], attributes["width"])),
            Parameter("token_type_ids", (1, attributes["positions"]), Role.BUFFER, "int64"),
        ),
    )


def _lower_token_types(
    tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes
) -> Tensor:
    """All tokens have type 0, gathered from a buffer and expanded over the batch (transformers' BertEmbeddings)."""
    batch, length = inputs[0].shape
    kinds = tape.emit("gather", (owned["token_type_ids"],), Type((1, length), "int64"), flops=0)
    return lookup(tape, tape.alias(kinds, (batch, length), kind="expand", contiguous=False), owned["weight"])


_TABLE = (
    Attribute("rows", "int", about="entries of the table", minimum=1),
    Attribute("width", "int", about="extent of an entry", minimum=1),
)

KINDS: tuple[Kind, ...] = (
    Kind("embedding", _infer_embedding, _lower_embedding, _TABLE, about="rows of a learned table, by integer index"),
    Kind(
        "position_embedding",
        _infer_positions,
        _lower_positions,
        (*_TABLE, Attribute("buffer", "bool", False, "the positions are a buffer of the model")),
        about="rows 0, 1, ... of a learned table, one per position of the operand (batch, positions, ...)",
    ),
    Kind(
        "token_type_embedding",
        _infer_token_types,
        _lower_token_types,
        (*_TABLE, Attribute("positions", "int", about="extent of the buffer of types", minimum=1)),
        about="rows of a learned table, all of type 0 (BERT's segments), shaped like the operand (batch, positions)",
        source="transformers/models/bert/modeling_bert.py",
    ),
)
