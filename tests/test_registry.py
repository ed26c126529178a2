"""Plug-ins by name: ours from a literal table, those of other packages from entry points."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from graphsim.errors import UnknownNameError
from graphsim.registry import Registry
from graphsim.strategies import STRATEGIES
from graphsim.strategies.sqrt import Sqrt

TABLE = Registry("colours", "colour", {"red": "fractions:Fraction", "blue": "decimal:Decimal"})


def test_names_are_listed_and_looked_up():
    assert list(TABLE) == ["red", "blue"]
    assert len(TABLE) == 2
    assert "red" in TABLE
    assert "green" not in TABLE
    assert TABLE["red"].__name__ == "Fraction"


def test_a_name_becomes_a_plug_in_with_options_and_an_object_stays_itself():
    assert STRATEGIES.resolve("sqrt", spans=4) == Sqrt(spans=4)
    mine = Sqrt(spans=9)
    assert STRATEGIES.resolve(mine) is mine


def test_a_bad_name_answers_with_the_close_ones():
    with pytest.raises(UnknownNameError, match="unknown colour 'rde'; did you mean 'red'"):
        TABLE["rde"]
    with pytest.raises(LookupError, match="known: blue, red"):
        TABLE.resolve("x")


def test_other_packages_add_names_but_do_not_replace_ours(monkeypatch):
    found = EntryPoints(
        [
            EntryPoint("green", "collections:OrderedDict", "graphsim.colours"),
            EntryPoint("red", "collections:Counter", "graphsim.colours"),
        ]
    )
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **wanted: found.select(**wanted))
    assert list(TABLE) == ["red", "blue", "green"]
    assert TABLE["green"].__name__ == "OrderedDict"
    assert TABLE["red"].__name__ == "Fraction"


def test_listing_names_imports_no_plug_in():
    code = (
        "import sys; from graphsim.strategies import STRATEGIES; list(STRATEGIES); "
        "sys.exit('graphsim.strategies.sqrt' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
