"""Options of plug-ins as text."""

from __future__ import annotations

from time import process_time

import pytest

from graphsim.errors import GraphSimError, UnknownNameError
from graphsim.memory.allocators import ALLOCATORS
from graphsim.memory.allocators.arena import Arena
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.options import configure


def test_no_options_are_the_defaults():
    for name in ALLOCATORS:
        if name != "bfc":
            assert configure(ALLOCATORS[name], " ") == ALLOCATORS[name]()


def test_options_are_written_as_pytorch_or_the_command_line_writes_them():
    text = "max_split_size_mb:128, expandable_segments:True,garbage_collection_threshold:0.6,limit=16GiB"
    expected = TorchCaching(
        max_split_size_mb=128, expandable_segments=True, garbage_collection_threshold=0.6, limit=16 * 2**30
    )
    assert configure(TorchCaching, text) == expected
    listed = configure(TorchCaching, "roundup_power2_divisions:[256:1,512:2,>:8],limit=1GB")
    assert listed == TorchCaching(roundup_power2_divisions="[256:1,512:2,>:8]", limit=10**9)
    assert configure(Arena, "mode=climb,seconds=0.5") == Arena(mode="climb", seconds=0.5)


@pytest.mark.parametrize("text", ["128", "128MiB", "0.125GiB", "131072KiB"])
def test_an_option_that_counts_in_mebibytes_reads_units_as_what_they_are(text):
    assert configure(TorchCaching, f"max_split_size_mb={text}").max_split_size_mb == 128


def test_long_options_are_refused_in_time_that_grows_with_their_length():
    begin = process_time()
    for text in ("limit=" + " " * 4000 + "[", " " * 4000 + "[", "a=" * 2000, "[" * 4000, "x" + " " * 4000 + "="):
        with pytest.raises(GraphSimError):
            configure(TorchCaching, text)
    assert process_time() - begin < 1, "what is cubic takes minutes"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_split_size_mb=128.5KiB", "no whole number"),
        ("limit=[1", "write name=value"),
        ("limit=1]", "write name=value"),
        ("roundup_power2_divisions:[256:1]x,limit=1", "write name=value"),
        (",limit=1GiB", "write name=value"),
        ("expandable_segment:True", "expandable_segments"),
        ("limit=lots", "is not a size"),
        ("limit", "write name=value"),
        ("limit=1GiB;x=2", "is not a size"),
        ("=5", "write name=value"),
        ("limit=1,limit=2", "stands twice"),
        ("expandable_segments:yes", "True or False"),
        ("garbage_collection_threshold:high", "is a number"),
        ("garbage_collection_threshold:1.5", "between 0 and 1"),
        ("max_split_size_mb:4", "at least 20"),
        ("max_non_split_rounding_mb:1", "at least 20"),
        ("roundup_power2_divisions:3", "power of 2"),
        ("roundup_power2_divisions:[3:1]", "power of 2"),
        ("roundup_power2_divisions:[]", "power of 2"),
        ("per_process_memory_fraction:0", "between 0 and 1"),
        ("large_segment_size_mb:0", "at least 2"),
        ("limit=" + "9" * 5000, "write name=value"),
    ],
)
def test_a_wrong_option_is_one_clear_error(text, reason):
    with pytest.raises(GraphSimError) as error:
        configure(TorchCaching, text)
    assert reason in str(error.value)


def test_a_plug_in_without_options_says_so():
    with pytest.raises(GraphSimError, match="no options"):
        configure(lambda: None, "limit=5")
    with pytest.raises(UnknownNameError, match="known: limit, ties"):
        configure(ALLOCATORS["cupy"], "zzz=5")
