"""Reading an ONNX file within bounds, and giving its symbolic dimensions their extents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from graphsim.core.files import check_file
from graphsim.errors import SpecError, UsageError, suggest
from graphsim.sources.bounds import bounded_memory
from graphsim.sources.spec.expression import MAX_VALUE, Value

MAX_FILE = 2**31
"""protobuf's own limit; what is larger can be exported with its weights beside it."""

MAX_NODES = 100_000
LOSSES = ("mean", "cross_entropy", "none")
BATCH, SEQ = "batch", "seq"


@dataclass(frozen=True)
class Binding:
    """Extents of the graph's inputs by name, what was chosen, and the loss."""

    inputs: Mapping[str, tuple[int, ...]]
    params: Mapping[str, Value]
    batch: int
    loss: str


def read_model(source: str) -> Any:
    """Return the parsed file, an ``onnx.ModelProto``, its external data unread.

    Raises:
        SpecError: there is no such file, it is not ONNX, or it names data outside of its folder.
    """
    path = Path(source)
    check_file(path, MAX_FILE)
    try:
        size = path.stat().st_size
        with bounded_memory(4 * size + 2**30):
            model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise SpecError(error.strerror or str(error), source) from None
    except DecodeError:
        raise SpecError(
            "not an ONNX file, or a damaged one, or one that unpacks to far more than its size", source
        ) from None
    except MemoryError:
        raise SpecError(f"the file unpacks to far more than its {size} bytes", source) from None
    _check(model, source)
    return model


def _check(model: Any, source: str) -> None:
    graph = model.graph
    if not graph.node or not graph.output:
        raise SpecError("not an ONNX model: it has no graph with nodes and outputs", source)
    if len(graph.node) > MAX_NODES or len(graph.initializer) > MAX_NODES:
        raise SpecError(f"the graph has more than {MAX_NODES} nodes or initializers", source)
    if model.functions:
        raise SpecError("local functions are not read: inline them, onnx.inliner.inline_local_functions(model)", source)
    if graph.sparse_initializer:
        raise SpecError("sparse initializers are not read", source)
    if not all(isinstance(name, str) for name in _names_in(graph)):  # protobuf hands out damaged text as bytes
        raise SpecError("damaged: a name in it is not UTF-8 text", source)
    for tensor in graph.initializer:
        _check_location(tensor, source)


def _names_in(graph: Any) -> Iterator[Any]:
    """Yield every piece of text that import reads."""
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for entry in node.metadata_props:
            yield from (entry.key, entry.value)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)
            yield from _names_in(attribute.g)
    for tensor in graph.initializer:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _check_location(tensor: Any, source: str) -> None:
    """Data beside the file is not read either; a file that points elsewhere is not to be trusted at all."""
    for entry in tensor.external_data:
        if entry.key == "location":
            windows, posix = PureWindowsPath(entry.value), PurePosixPath(entry.value)
            if windows.is_absolute() or windows.drive or posix.is_absolute() or ".." in windows.parts:
                reason = f"initializer '{tensor.name[:60]}' names data outside of the file's folder"
                raise SpecError(f"{reason}: '{entry.value[:60]}'", source)


# -- dimensions ------------------------------------------------------------------------------------


def bind(graph: Any, source: str, parameters: Mapping[str, Value]) -> Binding:
    """Return extents for every input of *graph*.

    Raises:
        UsageError: a parameter is unknown, or an extent is missing or cannot be set.
        SpecError: an input is no tensor.
    """
    inputs = _inputs(graph)
    loss = parameters.get("loss", LOSSES[0])
    if loss not in LOSSES:
        raise UsageError(f"{source}: 'loss' cannot be {loss!r:.60}; {suggest(str(loss), LOSSES)}")
    names = {value.name: _names(value, source) for value in inputs}
    symbols = _symbols(inputs, names)
    extents = _extents({name: v for name, v in parameters.items() if name != "loss"}, symbols, source)
    shapes = {name: tuple(_extent(dim, name, extents, symbols, source) for dim in dims) for name, dims in names.items()}
    first = next(iter(shapes.values()), ())
    batch = extents.get(symbols.get(BATCH, ""), first[0] if first else 1)
    used = {dim for dims in names.values() for dim in dims}
    params = {word: extents[symbol] for word, symbol in symbols.items() if symbol in extents and symbol in used}
    return Binding(shapes, {**params, "loss": loss}, batch, str(loss))


def words(graph: Any, source: str) -> Iterable[str]:
    """Return the words that set the symbolic dimensions of the inputs of *graph*."""
    inputs = _inputs(graph)
    return _symbols(inputs, {value.name: _names(value, source) for value in inputs})


def _inputs(graph: Any) -> list[Any]:
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def _names(value: Any, source: str) -> tuple[int | str, ...]:
    """Return the dimensions of an input: extents, or names; one without either is named after its place."""
    if not value.type.HasField("tensor_type"):
        raise SpecError(f"input '{value.name[:60]}' is no tensor", source)
    dims = value.type.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or f"{value.name}.{i}"
        for i, dim in enumerate(dims)
    )


def _symbols(inputs: Iterable[Any], names: Mapping[str, tuple[int | str, ...]]) -> dict[str, str]:
    """Return symbolic dimensions by the word that sets them; ``batch`` and ``seq`` whatever their own names are."""
    symbols = {dim: dim for dims in names.values() for dim in dims if isinstance(dim, str)}
    whole = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    for value in inputs:
        dims = names[value.name]
        if dims and isinstance(dims[0], str):
            symbols.setdefault(BATCH, dims[0])
        if len(dims) == 2 and isinstance(dims[1], str) and value.type.tensor_type.elem_type in whole:
            symbols.setdefault(SEQ, dims[1])
    return symbols


def _extents(parameters: Mapping[str, Value], symbols: Mapping[str, str], source: str) -> dict[str, int]:
    extents: dict[str, int] = {symbols[BATCH]: 1} if BATCH in symbols else {}
    for name, value in parameters.items():
        if name not in symbols:
            fixed = f"; it has no symbolic dimension for '{name}': export the model with a dynamic one"
            hint = fixed if name in (BATCH, SEQ) else f"; {suggest(name, [*symbols, 'loss'])}"
            raise UsageError(f"{source} has no '{name[:60]}' to set{hint}")
        if type(value) is not int or not 1 <= value <= MAX_VALUE:
            raise UsageError(f"{source}: '{name[:60]}' must be a positive integer, not {value!r:.60}")
        extents[symbols[name]] = value
    return extents


def _extent(dim: int | str, name: str, extents: Mapping[str, int], symbols: Mapping[str, str], source: str) -> int:
    if isinstance(dim, int):
        return dim
    if dim not in extents:
        word = SEQ if symbols.get(SEQ) == dim else dim
        how = "--seq N" if word == SEQ else f"--set {word[:60]}=N"
        raise UsageError(
            f"{source}: dimension '{dim[:60]}' of input '{name[:60]}' is symbolic: give it an extent, {how}"
        )
    return extents[dim]
