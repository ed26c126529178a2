"""Graph files: node-link JSON as `Graph.to_json` or networkx writes it."""

from __future__ import annotations

from pathlib import Path

from graphsim.core.files import read_text
from graphsim.core.graph import Graph
from graphsim.errors import GraphError

MAX_FILE = 2**30


def load_json(source: str | Path) -> Graph:
    """Return the graph of the JSON file *source*.

    Raises:
        SpecError: the file cannot be read.
        GraphError: it is not a graph.
    """
    text = read_text(source, MAX_FILE)
    try:
        return Graph.from_json(text)
    except GraphError as error:
        raise GraphError(f"{source}: {error}{_hint(text, source)}") from None


def _hint(text: str, source: str | Path) -> str:
    """Return what a file that is no graph may be instead."""
    if '"model_type"' in text:
        return f"; a transformers config? write hf:{source}"
    return "; a saved report? graphsim diff reads it" if '"graphsim-report/' in text[:200] else ""
