"""Graph files: node-link JSON as `Graph.to_json` or networkx writes it."""

from __future__ import annotations

from pathlib import Path

from graphsim.core.graph import Graph
from graphsim.errors import GraphError, SpecError

MAX_FILE = 2**30


def load_json(source: str | Path) -> Graph:
    """Return the graph of the JSON file *source*.

    Raises:
        SpecError: the file cannot be read.
        GraphError: it is not a graph.
    """
    path = Path(source)
    try:
        if path.stat().st_size > MAX_FILE:
            raise SpecError(f"the file is larger than {MAX_FILE} bytes", str(source))
        return Graph.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text (byte {error.start})", str(source)) from None
    except (OSError, ValueError) as error:
        raise SpecError(getattr(error, "strerror", None) or str(error), str(source)) from None
    except GraphError as error:
        raise GraphError(f"{source}: {error}") from None
