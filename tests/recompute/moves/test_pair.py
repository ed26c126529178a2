"""Two searches side by side: what is compiled for them in a process of its own."""

from __future__ import annotations

import time
from typing import Any

import pytest

from graphsim.recompute.clock import Clock
from graphsim.recompute.moves import pair
from graphsim.recompute.moves.pair import compiling_beside
from graphsim.recompute.moves.rebuild import warm_up


@pytest.fixture
def nothing_compiled(monkeypatch):
    monkeypatch.setattr(pair, "is_compiled", lambda: False)


def test_what_a_process_of_its_own_compiles_is_what_the_search_uses():
    from graphsim.recompute.moves.ruin import search

    warm_up()
    compiled: Any = search  # numba's dispatcher
    signatures = list(compiled.signatures)
    warm_up()
    assert compiled.signatures == signatures
    assert len(signatures) == 1


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import time; time.sleep(60)"])
def test_a_process_that_fails_or_is_late_does_no_harm(code, monkeypatch):
    monkeypatch.setattr(pair, "_COMPILE", code)
    begin = time.perf_counter()
    with compiling_beside(Clock(begin + 1)):
        pass
    assert time.perf_counter() - begin < 30


@pytest.mark.usefixtures("nothing_compiled")
def test_it_does_not_outlive_an_error(monkeypatch):
    monkeypatch.setattr(pair, "_COMPILE", "import time; time.sleep(60)")
    begin = time.perf_counter()
    with pytest.raises(ZeroDivisionError), compiling_beside(Clock(begin + 60)):
        raise ZeroDivisionError
    assert time.perf_counter() - begin < 30


@pytest.mark.usefixtures("nothing_compiled")
def test_without_an_interpreter_to_start_it_is_compiled_when_it_is_used(monkeypatch):
    monkeypatch.setattr("sys.executable", "")
    with compiling_beside(Clock(time.perf_counter() + 60)):
        pass


@pytest.mark.usefixtures("nothing_compiled")
def test_what_would_not_be_kept_is_not_compiled_beside(monkeypatch):
    monkeypatch.setattr(pair, "is_kept", lambda function: False)
    monkeypatch.setattr(pair, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    with compiling_beside(Clock(time.perf_counter() + 60)):
        pass
