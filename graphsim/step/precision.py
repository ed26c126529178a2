"""Numeric formats of a training step: dtypes, loss scaling, fp32 master weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from graphsim.core.graph import Role, Tensor
from graphsim.errors import UnknownNameError
from graphsim.step.ops.tape import Gradients, Tape, Type


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


class LossScaler:
    """torch.amp.GradScaler (torch/amp/grad_scaler.py): all that it holds are scalars.

    Args:
        tape: where its kernels are recorded.
        first: step 1, in which the first call of `scale` makes the scale and its growth tracker.
    """

    def __init__(self, tape: Tape, *, first: bool) -> None:
        self.tape, self.first = tape, first
        self._states: list[Tensor] = []
        self._found_inf: list[Tensor] = []

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale, which backward needs again."""
        tape = self.tape
        if not self._states:
            self._states = [self._state("scale", "float32"), self._state("growth_tracker", "int32")]
        scale = self._states[0]
        scaled = tape.emit("mul", (loss, scale), Type(loss.shape, loss.dtype))

        def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
            return (tape.emit("mul_backward", (grad, scale), Type(loss.shape, loss.dtype)),)

        tape.differentiate((loss,), scaled, (scale,), backward)
        return scaled

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide the gradients by the scale, in place, and look for infinities in the same kernel."""
        tape, scalar = self.tape, Type((), "float32")
        inverse = tape.emit("reciprocal", self._states[:1], scalar, role=Role.TEMPORARY)
        self._found_inf = [tape.emit("full", (), scalar, role=Role.TEMPORARY)]
        flops = sum(gradient.size for gradient in gradients)
        kind = "_amp_foreach_non_finite_check_and_unscale_"
        tape.emit_many(kind, (*gradients, *self._found_inf, inverse), (), mutates=gradients, flops=flops)

    def update(self) -> list[Tensor]:
        """Adapt the scale; return the states, which survive the step."""
        kind = "_amp_update_scale_"
        self.tape.emit_many(kind, (*self._states, *self._found_inf), (), mutates=self._states, flops=1)
        return self._states

    def _state(self, name: str, dtype: str) -> Tensor:
        full = f"grad_scaler.{name}"
        if self.first:
            return self.tape.emit("full", (), Type((), dtype), role=Role.OPTIMIZER_STATE, name=full)
        return self.tape.source(full, (), dtype, Role.OPTIMIZER_STATE)


@contextmanager
def master_weights(
    tape: Tape, parameters: Sequence[Tensor], gradients: Mapping[str, Tensor]
) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
    """Give (fp32 copies of the parameters, fp32 copies of their gradients) for an optimizer to work on.

    The scheme of NVIDIA Apex O2 (apex/fp16_utils/fp16_optimizer.py) and of Megatron-LM
    (Float16OptimizerWithFloat16Params): master weights are made with the optimizer and stay; all
    gradients are copied before the update and the copies go after it; the low-precision gradients stay
    until zero_grad; the updated masters are copied back.
    """
    masters = [tape.source(f"{p.name}.master", p.shape, "float32", Role.OPTIMIZER_STATE) for p in parameters]
    low = [gradients[p.name] for p in parameters]
    types = [Type(p.shape, "float32") for p in parameters]
    copies = tape.emit_many("to", low, types, role=Role.TEMPORARY)
    yield masters, {master.name: copy for master, copy in zip(masters, copies, strict=True)}
    tape.hold(copies)
    flops = sum(p.size for p in parameters)
    tape.emit_many("_foreach_copy_", (*parameters, *masters), (), mutates=parameters, flops=flops)
