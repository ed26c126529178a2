"""Optimizers: their states, and the temporaries of their update in each implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphsim.graph import Role, Tensor
from graphsim.ops.elementwise import like
from graphsim.ops.tape import Tape, Type

OPTIMIZERS = ("sgd", "adam")
IMPLEMENTATIONS = ("forloop", "foreach", "fused")


def update(
    tape: Tape,
    optimizer: str,
    implementation: str,
    parameters: Sequence[Tensor],
    gradients: Mapping[str, Tensor],
    *,
    first: bool,
) -> list[Tensor]:
    """Append one optimizer step to *tape*; return the states, which survive it.

    In the first step the states are created; later they are sources.
    """
    states = []
    for p in parameters:
        if optimizer == "adam":
            for name in ("exp_avg", "exp_avg_sq"):
                full = f"{p.name}.{name}"
                if first:
                    with tape.scope(p.name.rpartition(".")[0]):
                        zeros = tape.emit("zeros_like", (), like(p), role=Role.OPTIMIZER_STATE)
                    states.append(zeros)
                else:
                    states.append(tape.source(full, p.shape, p.dtype, Role.OPTIMIZER_STATE))
    for p in parameters:
        grad = gradients[p.name]
        if optimizer == "sgd":
            tape.emit_many("sgd", (p, grad), (), mutates=(p,), flops=2 * p.size)
        else:
            denominator = tape.emit("sqrt", (grad,), Type(p.shape, p.dtype), role=Role.TEMPORARY)
            divided = tape.emit("div", (denominator,), Type(p.shape, p.dtype), role=Role.TEMPORARY)
            tape.emit_many("addcdiv_", (p, divided), (), mutates=(p,), flops=2 * p.size)
    return states
