"""Numeric formats of a training step."""

from __future__ import annotations

from dataclasses import dataclass

from graphsim.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class Precision:
    """Which dtypes a training step uses.

    Attributes:
        dtype: of parameters, floating buffers and inputs, and of activations outside autocast.
        autocast: the low-precision dtype of an autocast region around the forward pass.
        loss_scaling: a GradScaler multiplies the loss and unscales the gradients in place.
    """

    name: str
    dtype: str
    autocast: str | None = None
    loss_scaling: bool = False


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", "float32"),
        Precision("bf16", "bfloat16"),
        Precision("fp16", "float16"),
        Precision("amp-bf16", "float32", autocast="bfloat16"),
        Precision("amp-fp16", "float32", autocast="float16", loss_scaling=True),
    )
}


def precision_of(name: str) -> Precision:
    """Return the precision *name*.

    Raises:
        UnknownNameError: there is none.
    """
    try:
        return PRECISIONS[name]
    except KeyError:
        raise UnknownNameError("precision", name, PRECISIONS) from None
