"""What text may reach a terminal."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphsim.errors import DISTRIBUTION, MissingExtraError, SpecError, UnknownNameError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1.weight", "conv1.weight"),
        ("größe 層 µs ▁▂▃", "größe 層 µs ▁▂▃"),
        ("two\n\tlines", "two\n\tlines"),
        ("\x1b[31mred\x1b[0m", "?red?"),
        ("\x1b]0;title\x07x", "?x"),
        ("\x1b]8;;http://example.org\x1b\\\\link".replace("\\\\", "\\"), "?link"),
        ("\x9b2Jx\x9d0;t\x9cy", "?x?y"),
        ("\x1bPq#0\x1b\\x", "?x"),
        ("\x1b", "?"),
        ("a\rb\bc\x00", "a?b?c?"),
        ("\ud800", "?"),
        ("\u202egnp.exe", "?gnp.exe"),
    ],
)
def test_escapes_controls_and_lone_surrogates_do_not_reach_the_terminal(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(categories=None), max_size=200), st.booleans())
def test_what_is_printable_stays_so_and_can_be_written(text, colors):
    shown = printable(text, colors=colors)
    assert printable(shown, colors=colors) == shown
    shown.encode()
    rest = shown.replace("\x1b[", "") if colors else shown
    assert all(letter.isprintable() or letter in "\n\t" for letter in rest)


def test_our_own_colours_may_stay():
    assert printable("\x1b[1;31mred\x1b[0m \x1b[2J", colors=True) == "\x1b[1;31mred\x1b[0m ?"


def test_errors_are_one_line_whatever_is_in_a_name():
    for error in (SpecError("a\nb\x1b[31m", "c\x07"), UnknownNameError("op", "x\x1b]0;t\x07\ny", ["add"])):
        assert str(error).isprintable()


def test_long_texts_take_time_that_grows_with_their_length():
    assert len(printable("\x1b]" * 100_000)) <= 200_000
    assert len(printable("\x1b[" * 100_000)) <= 200_000


def test_the_remedy_for_a_missing_extra_is_what_pip_calls_this_package():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION != "graphsim", "on PyPI that is a project of others"
    assert str(MissingExtraError("matplotlib", "plot")) == f"this needs matplotlib: pip install '{DISTRIBUTION}[plot]'"
