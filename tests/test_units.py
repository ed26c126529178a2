"""Bytes and numbers, to and from text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphsim.errors import UnknownNameError, UsageError
from graphsim.units import format_bytes, format_cost, format_count, format_number, itemsize, parse_bytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("8GiB", 8 * 2**30),
        ("8 gib", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("8G", 8 * 2**30),
        ("1.5KiB", 1536),
        ("1.5kB", 1500),
        ("100B", 100),
        ("9007199254740993", 2**53 + 1),
        ("0.1GB", 10**8),
    ],
)
def test_sizes_are_read_as_people_write_them(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-3", "8 parsecs", "1e9", "8GiBs", "9" * 400, "٣GiB", "8iB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.00 KiB"), (10 * 2**30, "10.00 GiB"), (500 * 2**20, "500.0 MiB")],
)
def test_bytes_are_shown_in_binary_units(nbytes, text):
    assert format_bytes(nbytes) == text


@given(st.integers(0, 2**60))
def test_what_is_shown_reads_back_within_a_percent(nbytes):
    assert parse_bytes(format_bytes(nbytes).replace(",", "")) == pytest.approx(nbytes, rel=0.01)


def test_counts_and_numbers_stay_short():
    assert (format_count(124_439_808), format_count(7)) == ("124.4 M", "7")
    assert (format_number(50_001), format_number(10**40), format_number(10**400)) == (
        "50001",
        "1e+40",
        "more than 1e308",
    )


@pytest.mark.parametrize(
    ("cost", "unit", "text"),
    [
        (1234.5, "seconds", "1,234 s"),
        (0.01234, "seconds", "12.3 ms"),
        (4.2e-8, "seconds", "0.04 µs"),
        (4.56e12, "flops", "4.56 TFLOP"),
        (12, "flops", "12.0 FLOP"),
        (1234567.0, "", "1,234,567"),
        (17.25, "ops", "17.25"),
    ],
)
def test_costs_are_shown_in_the_unit_they_are_in(cost, unit, text):
    assert format_cost(cost, unit) == text


def test_an_unknown_dtype_is_named():
    assert itemsize("bfloat16") == 2
    with pytest.raises(UnknownNameError, match="float32"):
        itemsize("float33")
