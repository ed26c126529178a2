"""Frontends: a source becomes a `Graph`. One file each, one line in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from graphsim.registry import Registry

if TYPE_CHECKING:
    from graphsim.core.graph import Graph

GRAPH_FILES = (".json", ".jsonl", ".log")
"""Suffixes of files that hold a graph, a whole step, and no model with params to set."""


class Frontend(Protocol):
    """Reads *source* with the overrides *parameters*."""

    def __call__(self, source: Any, **parameters: Any) -> Graph:
        """Return the graph of *source*; raise a `GraphSimError` that says where it is wrong."""


FRONTENDS: Registry[Graph] = Registry(
    "frontends",
    "frontend",
    {
        "spec": "graphsim.sources.spec:load_spec",
        "dtr": "graphsim.sources.dtr:load_dtr",
        "hf": "graphsim.sources.hf:load_hf",
        "json": "graphsim.sources.json:load_json",
        "layered": "graphsim.sources.layered:load_layered",
        "networkx": "graphsim.core.interchange:from_networkx",
        "onnx": "graphsim.sources.onnx:load_onnx",
        "torch": "graphsim.sources.torch:load_torch",
    },
)


def load(source: Any, **parameters: Any) -> Graph:
    """Return the graph of *source*.

    Args:
        source: a spec file or the name of a shipped spec, a graph's JSON file, a networkx DAG, a DTR
            operator log (.log or .jsonl), an ONNX file (.onnx), ``torch:package.module:factory``, your own
            function that returns (model, inputs), ``hf:config.json``, the local config of a
            transformers model, or ``layered:250``, a random layered graph of so many nodes.
        parameters: values for a spec's ``[params]``, for instance ``batch=8``; ``mutations`` of a log;
            ``seed`` and ``width`` of a layered graph.

    Raises:
        SpecError, GraphError, UsageError: the source is wrong; the message says where.
    """
    if hasattr(source, "adj") and hasattr(source, "nodes"):
        name = "networkx"
    elif str(source).startswith(("torch:", "hf:", "layered:")):
        name = str(source).partition(":")[0]
    else:
        suffix = str(source).rpartition(".")[2]
        name = {"json": "json", "jsonl": "dtr", "log": "dtr", "onnx": "onnx"}.get(suffix, "spec")
    return FRONTENDS[name](source, **parameters)
