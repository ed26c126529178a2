"""Optimizers: their states, and the temporaries of their update in each implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from graphsim.graph import Tensor
from graphsim.ops.tape import Tape
from graphsim.optimizers import foreach, forloop
from graphsim.optimizers.update import SCALAR, Update

IMPLEMENTATIONS = ("forloop", "foreach", "fused")


@dataclass(frozen=True, slots=True)
class Optimizer:
    """How one optimizer is made.

    Attributes:
        states: names of the states of the parameter's shape, made for all parameters before the update.
        late: names of the states that step 1 makes during the update.
        counter: there is a ``step`` tensor per parameter.
        implementations: by name of `IMPLEMENTATIONS`, the update.
    """

    implementations: Mapping[str, Callable[[Update], None]]
    states: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    counter: bool = False


def _sgd(*late: str, **options: bool) -> Optimizer:
    return Optimizer(
        {"forloop": partial(forloop.sgd, **options), "foreach": partial(foreach.sgd, **options)}, late=late
    )


def _adam(*states: str, **options: bool) -> Optimizer:
    functions = {"forloop": partial(forloop.adam, **options), "foreach": partial(foreach.adam, **options)}
    return Optimizer(functions, ("exp_avg", "exp_avg_sq", *states), counter=True)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": _sgd(),
    "momentum": _sgd("momentum_buffer", momentum=True),
    "nesterov": _sgd("momentum_buffer", momentum=True, nesterov=True),
    "adam": _adam(),
    "adamw": _adam(weight_decay=True),
    "amsgrad": _adam("max_exp_avg_sq", amsgrad=True),
}


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
    chosen = OPTIMIZERS[optimizer]
    u = Update(tape, parameters, gradients, first=first)
    for p in parameters:
        if chosen.counter and (tape.target == "cpu" or implementation == "fused"):
            u.declare(p, "step", SCALAR, made_by="tensor")
        for state in chosen.states:
            u.declare(p, state)
        if not first:
            for state in chosen.late:
                u.existing(p, state)
    with u.function():
        chosen.implementations[implementation](u)
    return list(u.states.values())
