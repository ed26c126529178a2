"""The option ``roundup_power2_divisions`` of PyTorch's caching allocator, read as PyTorch reads it."""

from __future__ import annotations

from graphsim.errors import UsageError

INTERVALS = 16
"""Sizes from 1 MiB to 64 GiB, by powers of two, may each have divisions of their own."""


def divisions_of(text: str) -> list[int]:
    """Return the divisions by interval of size, as AcceleratorAllocatorConfig::parseRoundUpPower2Divisions does."""
    divisions = [0] * INTERVALS
    try:
        if not text.startswith("["):
            return [_power_of_two(text)] * INTERVALS
        last, entries = 0, text.strip("[]").split(",")
        for entry in entries:
            boundary, _, value = entry.partition(":")
            if boundary.strip() == ">":
                divisions[last + 1 :] = [_power_of_two(value)] * (INTERVALS - last - 1)
                continue
            index = min(_power_of_two(boundary).bit_length() - 1, INTERVALS - 1)
            if entry is entries[0]:
                divisions[:index] = [_power_of_two(value)] * index
            divisions[index] = _power_of_two(value)
            last = index
    except ValueError:
        raise UsageError(
            f"roundup_power2_divisions: {text[:60]!r} is not a power of 2 nor a list such as [256:1,512:2,>:8]"
        ) from None
    return divisions


def _power_of_two(text: str) -> int:
    number = int(text)
    if number < 0 or number & number - 1:
        raise ValueError(text)
    return number
