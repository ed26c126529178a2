"""Bytes and numbers, to and from text."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphsim.errors import UnknownNameError, UsageError
from graphsim.units import format_bytes, format_cost, format_count, format_number, itemsize, parse_budget, parse_bytes


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
    ("text", "nbytes"),
    [("8GiB", 2**33), ("64 KiB", 2**16), ("40B", 40), ("1048576", 2**20), ("0.6x", 600), ("60%", 600), (" 60 % ", 600)],
)
def test_budgets_are_sizes_or_shares_of_what_the_thing_takes(text, nbytes):
    assert parse_budget(text, 1000) == nbytes
    assert parse_budget(text, lambda: 1000) == nbytes


def test_a_share_is_exact_however_large_and_asks_for_the_reference_only_then():
    assert parse_budget("0.1x", 10**40) == 10**39
    assert parse_budget("1GiB", lambda: pytest.fail("not asked for")) == 2**30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8", "8 bytes? write 8GiB, or 8B"),
        ("16384", "16384 bytes? write 16384MiB"),
        ("0", "at least one byte"),
        ("0x", "at least one byte"),
        ("0.0001%", "at least one byte"),
        ("much", "not a size"),
        ("60%%", "not a size"),
        ("-1x", "not a size"),
    ],
)
def test_a_budget_that_is_a_slip_is_answered_with_the_likely_meaning(text, words):
    with pytest.raises(UsageError) as error:
        parse_budget(text, 1000)
    assert words in str(error.value)


def test_a_share_needs_something_to_be_a_share_of():
    with pytest.raises(UsageError, match="write a size"):
        parse_budget("0.6x")


def test_long_texts_are_refused_in_time_that_grows_with_their_length():
    def seconds(length: int) -> float:
        begin = process_time()
        for text in ("8" + " " * length + "x]", " " * length, "9" * length, "8" + "\t" * length + "%%"):
            for parse in (parse_bytes, parse_budget):
                with pytest.raises(UsageError):
                    parse(text)
        return process_time() - begin

    assert seconds(200_000) < 1, "what is quadratic takes hours"


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
