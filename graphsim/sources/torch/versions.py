"""The versions of PyTorch that captures are tested with: they reach into it where it promises nothing."""

from __future__ import annotations

import re

from graphsim.errors import MissingExtraError, UsageError

TESTED = ((2, 11), (2, 13))
"""First and last, both included, with and without CUDA."""


def need_torch() -> None:
    """Check that there is a PyTorch that a capture can work with, before anything of it is changed.

    Raises:
        MissingExtraError: it is not installed.
        UsageError: its version is not among the tested ones.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch") from None
    check_version(torch.__version__)


def installed() -> tuple[int, ...]:
    """Return major and minor version of the PyTorch that is there."""
    import torch

    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def check_version(version: str) -> None:
    """Check that *version* is among the tested ones.

    Raises:
        UsageError: it is not.
    """
    first, last = TESTED
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or not first <= (int(match[1]), int(match[2])) <= last:
        shown = ".".join(map(str, first)), ".".join(map(str, last))
        raise UsageError(
            f"captures are tested with PyTorch {shown[0]} to {shown[1]}, and this is {version}: "
            f"pip install 'torch=={shown[1]}.*'"
        )
