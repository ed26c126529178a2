"""The house is in order: few modules at the door, no file that is too long, no two modules that need each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import networkx as nx

import graphsim

ROOT = Path(graphsim.__file__).parent
MODULES = {".".join(("graphsim", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


class Imports(ast.NodeVisitor):
    """Modules of graphsim that a module imports when it runs, at its top or inside of functions."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert not node.level, "imports are absolute"
        names = (f"{node.module}.{alias.name}" for alias in node.names)
        self.found.update(name if name in MODULES else str(node.module) for name in names)


def imports_of(text: str) -> set[str]:
    visitor = Imports()
    visitor.visit(ast.parse(text))
    return visitor.found & set(MODULES)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    graph = nx.DiGraph((name, other) for name, others in imports.items() for other in others if other != name)
    return sorted(sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1)


def test_no_two_modules_import_each_other():
    assert circles({name: imports_of(path.read_text()) for name, path in MODULES.items()}) == []


def test_a_circle_through_a_function_is_found_and_one_of_types_is_none():
    inside = "def f():\n    from graphsim.core import graph\n"
    types = "if TYPE_CHECKING:\n    from graphsim.core.graph import Graph\nelse:\n    import graphsim.units\n"
    assert imports_of(inside) == {"graphsim.core.graph"}
    assert imports_of(types) == {"graphsim.units"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_at_most_eight_modules_stand_at_the_door():
    assert len(list(ROOT.glob("*.py"))) <= 8


def test_no_file_is_longer_than_450_lines():
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > 450} == {}


def test_few_lines_hide_from_the_type_checker():
    ignored = [name for name, path in MODULES.items() for _ in re.findall(r"#\s*type:\s*ignore", path.read_text())]
    assert len(ignored) <= 15, ignored
