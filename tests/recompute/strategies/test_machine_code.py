"""Machine code: never older than its sources, and nothing that needs it where it cannot be had."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap

import pytest

from graphsim.recompute.machine_code import compiled, compiled_functions, is_available, is_on_disk

numba = pytest.importorskip("numba")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module with a function that uses a constant of another; return a way to load it as a process would."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loops_under_test.py").write_text(
        textwrap.dedent("""
            from rows_under_test import ROW

            def row():
                return ROW

            def twice():
                return 2 * row()
        """)
    )

    def load(constant: int):
        rows = tmp_path / "rows_under_test.py"
        rows.write_text(f"ROW = {constant}")
        os.utime(rows, (rows.stat().st_mtime + constant,) * 2)
        for name in ("loops_under_test", "rows_under_test"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("loops_under_test")

    return load


def test_functions_call_each_other_compiled_and_stay_as_they_are(module):
    loops = module(21)
    functions = compiled_functions(loops)
    assert set(functions) == {"row", "twice"}
    assert functions["twice"]() == loops.twice() == 42
    assert functions["row"].signatures
    assert not hasattr(loops.row, "signatures")


def test_it_is_compiled_anew_when_a_constant_of_another_file_changes(module):
    before = compiled_functions(module(1))["row"]
    assert not is_on_disk(before)
    assert before() == 1
    assert is_on_disk(before)
    after = compiled_functions(module(100))["row"]
    assert not is_on_disk(after)
    assert after() == 100


def test_without_a_folder_for_it_nothing_is_kept():
    scope: dict = {}
    exec("def one():\n    return 1", scope)  # a function without a file
    function = compiled(scope["one"])
    assert function() == 1
    assert not is_on_disk(function)


def test_a_numba_that_does_not_load_is_none(monkeypatch):
    assert is_available()
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not is_available()
