"""Optimizers: their states, and the temporaries of their update in each implementation.

Hyperparameters are the defaults of torch.optim (momentum and Nesterov: 0.9), which decide what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from graphsim.core.graph import Tensor
from graphsim.errors import UnknownNameError, UsageError
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.tape import Tape, Target, Type
from graphsim.step.optimizers import eightbit, foreach, forloop, fused
from graphsim.step.optimizers.update import SCALAR, Update

IMPLEMENTATIONS = ("forloop", "foreach", "fused")

States = Callable[[Tensor], Mapping[str, Type]]
"""The states of a parameter."""


def _no_states(param: Tensor) -> Mapping[str, Type]:
    return {}


def _full(*names: str) -> States:
    """States of the shape and dtype of the parameter."""
    return lambda param: dict.fromkeys(names, like(param))


def _adafactor_states(param: Tensor) -> Mapping[str, Type]:
    if len(param.shape) < 2:
        return {"variance": like(param)}
    *outer, rows, columns = param.shape
    return {"row_var": Type((*outer, rows, 1), param.dtype), "col_var": Type((*outer, 1, columns), param.dtype)}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """How one optimizer is made.

    Attributes:
        implementations: the update, by name of `IMPLEMENTATIONS`.
        states: those made in step 1 for all parameters, before the update.
        late_states: those that the update itself makes in step 1.
        counter: there is a ``step`` per parameter: a tensor on the host, or on the device if fused.
        constructed: states are made with the optimizer: before step 1.
        cuda: the implementation that is the default on CUDA.
    """

    implementations: Mapping[str, Callable[[Update], None]]
    states: States = _no_states
    late_states: States = _no_states
    counter: bool = False
    constructed: bool = False
    cuda: str = "foreach"


def _sgd(*, momentum: bool = False, nesterov: bool = False) -> Optimizer:
    return Optimizer(
        {
            "forloop": partial(forloop.sgd, momentum=momentum, nesterov=nesterov),
            "foreach": partial(foreach.sgd, momentum=momentum, nesterov=nesterov),
            "fused": partial(fused.sgd, momentum=momentum),
        },
        late_states=_full("momentum_buffer") if momentum else _no_states,
    )


def _adam(*, weight_decay: bool = False, amsgrad: bool = False) -> Optimizer:
    states = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ()))
    kernel = "_fused_adamw_" if weight_decay else "_fused_adam_"
    return Optimizer(
        {
            "forloop": partial(forloop.adam, weight_decay=weight_decay, amsgrad=amsgrad),
            "foreach": partial(foreach.adam, weight_decay=weight_decay, amsgrad=amsgrad),
            "fused": partial(fused.adaptive, kernel=kernel, states=states),
        },
        states=_full(*states),
        counter=True,
    )


_FUSED_ADAGRAD = partial(fused.adaptive, kernel="_fused_adagrad_", states=("sum",))

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": _sgd(),
    "momentum": _sgd(momentum=True),
    "nesterov": _sgd(momentum=True, nesterov=True),
    "adam": _adam(),
    "adamw": _adam(weight_decay=True),
    "amsgrad": _adam(amsgrad=True),
    "adagrad": Optimizer(
        {"forloop": forloop.adagrad, "foreach": foreach.adagrad, "fused": _FUSED_ADAGRAD},
        states=_full("sum"),
        counter=True,
        constructed=True,
    ),
    "rmsprop": Optimizer(
        {"forloop": forloop.rmsprop, "foreach": foreach.rmsprop}, states=_full("square_avg"), counter=True
    ),
    "lion": Optimizer({"forloop": forloop.lion}, late_states=_full("exp_avg"), cuda="forloop"),
    # The documentation of torch.optim.Adafactor: the loop is the default, to save memory.
    "adafactor": Optimizer(
        {"forloop": forloop.adafactor, "foreach": foreach.adafactor},
        states=_adafactor_states,
        counter=True,
        cuda="forloop",
    ),
    "adam8bit": Optimizer({"forloop": eightbit.adam}, late_states=eightbit.states_of, cuda="forloop"),
}

TORCH = ("nadam", "radam", "adamax", "adadelta", "asgd", "rprop", "muon")
"""Optimizers of torch.optim that only captured models are trained with: they are run, not modelled."""


def check_modelled(optimizer: str) -> None:
    """Check that there are rules for *optimizer*.

    Raises:
        UsageError: only captures know it.
    """
    if optimizer in TORCH:
        raise UsageError(f"{optimizer} is for captured models (torch:, hf:); modelled: {', '.join(OPTIMIZERS)}")


def implementation_of(optimizer: str, implementation: str, target: Target) -> str:
    """Return the implementation asked for; if empty, what the optimizer's library picks on *target*.

    Raises:
        UnknownNameError: there is no such optimizer or implementation.
        UsageError: the optimizer does not have it.
    """
    if optimizer not in (*OPTIMIZERS, *TORCH):
        raise UnknownNameError("optimizer", optimizer, OPTIMIZERS)
    if implementation not in ("", *IMPLEMENTATIONS):
        raise UnknownNameError("optimizer implementation", implementation, IMPLEMENTATIONS)
    if optimizer in TORCH:
        return implementation or ("forloop" if target == "cpu" or optimizer == "muon" else "foreach")
    chosen = OPTIMIZERS[optimizer]
    if implementation and implementation not in chosen.implementations:
        raise UsageError(f"{optimizer} has no {implementation} form; it has: {', '.join(chosen.implementations)}")
    return implementation or ("forloop" if target == "cpu" else chosen.cuda)


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
    counter = chosen.counter and (tape.target == "cpu" or implementation == "fused")
    for p in parameters:
        states = {"step": SCALAR, **chosen.states(p)} if counter else chosen.states(p)
        for name, type_ in states.items():
            if first and not chosen.constructed:
                u.create("zeros_like", p, name, type_)
            else:
                u.existing(p, name, type_)
        if not first:
            for name, type_ in chosen.late_states(p).items():
                u.existing(p, name, type_)
    with u.function():
        chosen.implementations[implementation](u)
    return list(u.states.values())
