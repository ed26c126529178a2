"""Prints the peak of every architecture of the tests, captured for CUDA: the same on every build of PyTorch."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "sources")]

import architectures_learning  # noqa: E402, F401
from architectures import PLAIN  # noqa: E402
from architectures_hf import TRANSFORMERS  # noqa: E402
from architectures_more import MORE  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError  # noqa: E402


def peak(name: str) -> str:
    """Return the peaks of both steps in bytes, or why there are none."""
    torch.manual_seed(0)
    model, batch = (PLAIN | MORE | TRANSFORMERS)[name]()
    try:
        steps = [gs.from_torch(model, batch, optimizer="adamw", target="cuda", first=first) for first in (True, False)]
    except CaptureError as error:
        return type(error).__name__
    return " ".join(str(gs.simulate(step).peak) for step in steps)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in (*PLAIN, *MORE, *TRANSFORMERS):
        print(name, peak(name), flush=True)  # noqa: T201
