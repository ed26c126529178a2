"""What an optimizer's Python code sees while it updates: parameters, gradients, states, local variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod

from graphsim.graph import Role, Tensor
from graphsim.ops.elementwise import like
from graphsim.ops.tape import Tape, Type

SCALAR = Type((), "float32")
"""A counter: one float, whatever the parameter (torch.optim.optimizer._get_scalar_dtype)."""


class Update:
    """One optimizer step on the tape, in the terms of Python: in-place calls, new tensors, names.

    A temporary lives until the name that holds it is bound again or the function returns, as in
    CPython. A nameless temporary lives until its last reader has run.

    Args:
        tape: where kernels are recorded.
        parameters: those that have a gradient, in the order of ``model.parameters()``.
        gradients: by parameter name.
        first: step 1, in which states are created; later they are sources.
    """

    def __init__(
        self, tape: Tape, parameters: Sequence[Tensor], gradients: Mapping[str, Tensor], *, first: bool
    ) -> None:
        self.tape = tape
        self.parameters = list(parameters)
        self.gradients = [gradients[p.name] for p in parameters]
        self.first = first
        self.states: dict[str, Tensor] = {}
        self._locals: dict[str, list[Tensor]] = {}

    # -- states --------------------------------------------------------------------------------

    def declare(self, parameter: Tensor, state: str, type_: Type | None = None, *, made_by: str = "zeros_like") -> None:
        """Create a state in step 1, outside of any temporary; in later steps it is a source."""
        if self.first:
            self.create(made_by, parameter, state, type_)
        else:
            self.existing(parameter, state, type_)

    def create(self, kind: str, parameter: Tensor, state: str, type_: Type | None = None, *reads: Tensor) -> None:
        """Run a kernel that makes a state."""
        name = f"{parameter.name}.{state}"
        with self.tape.scope(_layer(parameter)):
            self.states[name] = self.tape.emit(
                kind, reads, type_ or like(parameter), role=Role.OPTIMIZER_STATE, name=name
            )

    def existing(self, parameter: Tensor, state: str, type_: Type | None = None) -> None:
        """A state that was there before the step."""
        name, type_ = f"{parameter.name}.{state}", type_ or like(parameter)
        self.states[name] = self.tape.source(name, type_.shape, type_.dtype, Role.OPTIMIZER_STATE)

    def state(self, parameter: Tensor, state: str) -> Tensor:
        """Return a state of one parameter."""
        return self.states[f"{parameter.name}.{state}"]

    def all(self, state: str) -> list[Tensor]:
        """Return a state of all parameters."""
        return [self.state(p, state) for p in self.parameters]

    # -- kernels -------------------------------------------------------------------------------

    def each(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Loop over (parameter, gradient); what runs inside belongs to the parameter's layer."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            with self.tape.scope(_layer(parameter)):
                yield parameter, gradient

    def inplace(self, kind: str, target: Tensor, *reads: Tensor) -> None:
        """Overwrite *target*: ``target.kind(*reads)``."""
        self.foreach_(kind, [target], *([read] for read in reads))

    def new(self, kind: str, type_: Type, *reads: Tensor) -> Tensor:
        """Return a new temporary of *type_*."""
        return self.tape.emit(kind, reads, type_, role=Role.TEMPORARY)

    def foreach_(self, kind: str, targets: Sequence[Tensor], *reads: Sequence[Tensor]) -> None:
        """Overwrite every one of *targets*; the k-th list of *reads* is the k-th argument."""
        inputs = [*targets, *(tensor for read in reads for tensor in read)]
        flops = (1 + len(reads)) * sum(prod(t.shape) for t in targets)
        self.tape.emit_many(kind, inputs, (), mutates=targets, flops=flops)

    def foreach(self, kind: str, types: Sequence[Type], *reads: Sequence[Tensor]) -> list[Tensor]:
        """Return new temporaries of *types*, each with its own storage."""
        inputs = [tensor for read in reads for tensor in read]
        return list(self.tape.emit_many(kind, inputs, types, role=Role.TEMPORARY))

    # -- local variables -----------------------------------------------------------------------

    def bind(self, name: str, *tensors: Tensor) -> None:
        """Bind a local variable; what it held before is let go."""
        old = self._locals.pop(name, [])
        self._locals[name] = list(tensors)
        self.tape.hold(old)

    def delete(self, name: str) -> None:
        """``del name``."""
        self.tape.hold(self._locals.pop(name, []))

    @contextmanager
    def function(self) -> Iterator[None]:
        """A function body: its local variables are let go on return."""
        outer, self._locals = self._locals, {}
        yield
        self.tape.hold([tensor for tensors in self._locals.values() for tensor in tensors])
        self._locals = outer


def _layer(parameter: Tensor) -> str:
    return parameter.name.rpartition(".")[0]
