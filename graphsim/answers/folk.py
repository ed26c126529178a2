"""The folk formulas: what people compute on the back of an envelope, as named baselines.

They come from a question asked often: "my network has 532,752 activations and 19,072,984
parameters, input 180 x 50 x 1, batch 128: how much GPU memory will training take?"

The published figures call 2**20 bytes a MB. The asker's "224.69 MB" is 235,614,816 bytes: 224.70 MiB
(cut off, not rounded), 235.61 MB. The accepted answer's arithmetic rounds the activations of one
sample to 2.03 "MB" before it multiplies by 2 x 128, and so reaches 742.34 "MB"; unrounded the
formula gives 779,021,856 bytes: 742.93 MiB, 779.02 MB.
"""

from __future__ import annotations

from typing import NamedTuple


class Counts(NamedTuple):
    """What a folk formula looks at. Elements, not bytes; inputs and activations per sample."""

    activations: int
    parameters: int
    inputs: int
    batch: int
    states: int = 0
    """Elements of optimizer state."""
    itemsize: int = 4


def asker(counts: Counts) -> int:
    """Activations of one sample + 3 x parameters + the batch of inputs (the question's own guess)."""
    elements = counts.activations + 3 * counts.parameters + counts.inputs * counts.batch
    return elements * counts.itemsize


def accepted(counts: Counts) -> int:
    """2 x activations x batch + 3 x parameters + the batch of inputs (the accepted correction)."""
    elements = 2 * counts.activations * counts.batch + 3 * counts.parameters + counts.inputs * counts.batch
    return elements * counts.itemsize


def states_only(counts: Counts) -> int:
    """Parameters + gradients + optimizer states: no activations at all."""
    return (2 * counts.parameters + counts.states) * counts.itemsize


FORMULAS = {"asker": asker, "accepted": accepted, "states_only": states_only}
"""Each formula: counts -> bytes. The first line of its docstring is its text."""


def folk_bytes(counts: Counts) -> dict[str, int]:
    """Return what each folk formula says, in bytes."""
    return {name: formula(counts) for name, formula in FORMULAS.items()}
