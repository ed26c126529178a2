"""Plug-ins by name: ours from a literal table, others' from entry points, or an object as it is."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from graphsim.errors import GraphSimError, UnknownNameError
from graphsim.memory.allocators import ALLOCATORS
from graphsim.recompute.strategies import STRATEGIES
from graphsim.registry import Registry

SHAPES = Registry("shapes", "shape", {"fraction": "fractions:Fraction", "decimal": "decimal:Decimal"})


@pytest.fixture
def installed(monkeypatch):
    """Another package that offers a shape of its own, and one under a name of ours."""
    offered = [
        EntryPoint("path", "pathlib:PurePath", "graphsim.shapes"),
        EntryPoint("decimal", "pathlib:PurePath", "graphsim.shapes"),
    ]

    def entry_points(*, group, name=None):
        return [e for e in offered if e.group == group and name in (None, e.name)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


def test_a_name_gives_what_it_stands_for():
    assert SHAPES["fraction"].__name__ == "Fraction"
    assert SHAPES.names() == list(SHAPES) == ["fraction", "decimal"]
    assert len(SHAPES) == 2
    assert "decimal" in SHAPES
    assert "circle" not in SHAPES
    assert 3 not in SHAPES


def test_a_name_takes_options_and_an_object_stands_for_itself():
    assert SHAPES.resolve("fraction", numerator=1, denominator=2) == 0.5
    plugin = object()
    assert SHAPES.resolve(plugin) is plugin


def test_an_unknown_name_is_answered_with_close_ones_or_all():
    with pytest.raises(UnknownNameError, match=r"unknown shape 'fractoin'; did you mean 'fraction'\?"):
        SHAPES["fractoin"]
    with pytest.raises(UnknownNameError, match="unknown shape 'xyz'; known: decimal, fraction"):
        SHAPES.resolve("xyz")
    assert issubclass(UnknownNameError, GraphSimError)
    assert issubclass(UnknownNameError, LookupError)


def test_an_unknown_name_of_any_length_has_a_short_answer():
    with pytest.raises(UnknownNameError) as caught:
        SHAPES["x" * 10**6]
    assert len(str(caught.value)) < 200


@pytest.mark.usefixtures("installed")
def test_other_packages_add_names_but_do_not_replace_ours():
    assert SHAPES.names() == ["fraction", "decimal", "path"]
    assert SHAPES["path"].__name__ == "PurePath"
    assert SHAPES["decimal"].__name__ == "Decimal"
    assert Registry("sounds", "sound", {}).names() == []


@pytest.mark.parametrize("registry", [STRATEGIES, ALLOCATORS], ids=lambda registry: registry.group)
def test_every_name_of_ours_can_be_built(registry):
    assert len(registry) > 0
    for name in registry:
        assert callable(registry.resolve(name)), name


def test_every_allocator_says_whether_it_keeps_what_is_freed():
    keeps = {name: ALLOCATORS.resolve(name).caches for name in ALLOCATORS}
    assert keeps == {"exact": False, "cupy": True, "torch": True, "bfc": True, "arena": False}


def test_plug_ins_are_imported_only_when_asked_for():
    code = (
        "import sys, graphsim.recompute.strategies, graphsim.memory.allocators\n"
        "print([m for m in sys.modules if m in ('torch', 'cupy', 'scipy')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
