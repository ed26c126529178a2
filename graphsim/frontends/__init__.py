"""Frontends: a source becomes a `Graph`. One file each, one line in the table."""

from __future__ import annotations

from typing import Any, Protocol

from graphsim.graph import Graph
from graphsim.registry import Registry


class Frontend(Protocol):
    """Reads *source* with the overrides *parameters*."""

    def __call__(self, source: Any, **parameters: Any) -> Graph:
        """Return the graph of *source*; raise a `GraphSimError` that says where it is wrong."""


FRONTENDS = Registry(
    "frontends",
    "frontend",
    {
        "spec": "graphsim.frontends.spec:load_spec",
        "json": "graphsim.frontends.json:load_json",
        "networkx": "graphsim.graph:Graph.from_networkx",
    },
)
