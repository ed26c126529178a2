"""ONNX files: an inference graph becomes a forward graph of our op kinds, to be trained by our differentiation.

Only shapes are read: of the weights, in the file or beside it, no byte is looked at.
"""

from __future__ import annotations

from graphsim.core.graph import Graph
from graphsim.errors import MissingExtraError, SpecError
from graphsim.sources.bounds import bounded_memory
from graphsim.sources.spec.expression import Value

MAX_BYTES = 2**31
"""Of memory for the graph; real ones take a hundredth of it."""


def load_onnx(source: str, **parameters: Value) -> Graph:
    """Return the forward graph of the ONNX file *source*.

    Floating initializers of more than one element are parameters (batch norm's statistics are
    buffers). What an exporter takes apart is put together again where PyTorch runs one kernel: a
    product and its bias (linear), SiLU, GELU and scaled dot-product attention.

    Args:
        source: path of the file.
        parameters: ``batch`` is the first dimension of the inputs, ``seq`` the second one of token
            ids; other symbolic dimensions go by their names. ``loss`` is 'mean' (of the first floating
            output; the default), 'cross_entropy' (of logits (N, C), (N, S, C) or (N, C, H, W) and
            labels) or 'none'.

    Raises:
        MissingExtraError: onnx is not installed.
        SpecError: the file is wrong, or has an op that we cannot train; the message names the node.
        UsageError: a parameter does not exist, or has a value that cannot be used.
    """
    _need_onnx()
    from graphsim.sources.onnx.importer import import_model
    from graphsim.sources.onnx.read import bind, read_model

    model = read_model(source)
    binding = bind(model.graph, source, parameters)
    try:
        with bounded_memory(MAX_BYTES):
            return import_model(model, source, binding)
    except MemoryError:
        raise SpecError(f"to work out its shapes takes more than {MAX_BYTES} bytes", source) from None


def takes(source: str, name: str) -> bool:
    """Whether *name* can be set: a symbolic dimension of an input, by its word, or the loss."""
    _need_onnx()
    from graphsim.sources.onnx.read import read_model, words

    return name == "loss" or name in words(read_model(source).graph, source)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise MissingExtraError("onnx", "onnx") from None
