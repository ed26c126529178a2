"""What an optimizer's Python code sees while it updates: parameters, gradients, states, local variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from graphsim.core.graph import Role, Tensor
from graphsim.step.ops.shape import mean_workspace
from graphsim.step.ops.tape import Tape, Type
from graphsim.units import itemsize

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

    def create(self, kind: str, parameter: Tensor, state: str, type_: Type, *reads: Tensor) -> None:
        """Run a kernel that makes a state."""
        name = f"{parameter.name}.{state}"
        with self.tape.scope(_layer(parameter)):
            self.states[name] = self.tape.emit(kind, reads, type_, role=Role.OPTIMIZER_STATE, name=name)

    def existing(self, parameter: Tensor, state: str, type_: Type) -> None:
        """A state that was there before the step."""
        name = f"{parameter.name}.{state}"
        self.states[name] = self.tape.source(name, type_.shape, type_.dtype, Role.OPTIMIZER_STATE)

    def state(self, parameter: Tensor, state: str) -> Tensor:
        """Return a state of one parameter."""
        return self.states[f"{parameter.name}.{state}"]

    def shared(self, name: str, type_: Type, *, made: bool) -> None:
        """A state of the optimizer itself: one that is there already (*made*), or is moved to the device now."""
        if name in self.states:
            return
        if made:
            self.states[name] = self.tape.source(name, type_.shape, type_.dtype, Role.OPTIMIZER_STATE)
        else:
            self.states[name] = self.tape.emit("to", (), type_, role=Role.OPTIMIZER_STATE, name=name)

    def all(self, state: str) -> list[Tensor]:
        """Return a state of all parameters."""
        return [self.state(p, state) for p in self.parameters]

    # -- kernels -------------------------------------------------------------------------------

    def each(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Loop over (parameter, gradient); what runs inside belongs to the parameter's layer."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            with self.tape.scope(_layer(parameter)):
                yield parameter, gradient

    def inplace(self, kind: str, target: Tensor, *reads: Tensor, number: bool = False) -> None:
        """Overwrite *target*: ``target.kind(*reads)``; *number*: an operand is a Python number."""
        self.foreach_(kind, [target], *([read] for read in reads), number=number)

    def new(self, kind: str, type_: Type, *reads: Tensor, number: bool = False) -> Tensor:
        """Return a new temporary of *type_*."""
        (result,) = self.foreach(kind, [type_], reads, number=number)
        return result

    def foreach_(self, kind: str, targets: Sequence[Tensor], *reads: Sequence[Tensor], number: bool = False) -> None:
        """Overwrite every one of *targets*; the k-th list of *reads* is the k-th argument."""
        inputs = [*targets, *(tensor for read in reads for tensor in read)]
        flops = (1 + len(reads)) * sum(t.size for t in targets)
        workspace = self._wrapped(targets[0].dtype) if number else 0
        self.tape.emit_many(kind, inputs, (), mutates=targets, flops=flops, workspace=workspace)

    def foreach(self, kind: str, types: Sequence[Type], *reads: Sequence[Tensor], number: bool = False) -> list[Tensor]:
        """Return new temporaries of *types*, each with its own storage."""
        inputs = [tensor for read in reads for tensor in read]
        workspace = self._wrapped(types[0].dtype) if number else 0
        return list(self.tape.emit_many(kind, inputs, types, role=Role.TEMPORARY, workspace=workspace))

    def mean(self, type_: Type, tensor: Tensor) -> Tensor:
        """Return the mean of *tensor* over the dimensions that *type_* has as 1."""
        workspace = mean_workspace(self.tape, tensor, type_)
        return self.tape.emit("mean", (tensor,), type_, role=Role.TEMPORARY, flops=tensor.size, workspace=workspace)

    def _wrapped(self, dtype: str) -> int:
        """Bytes of a number operand: a double tensor and its cast (c10 wrapped_scalar_tensor, TensorIterator)."""
        return 8 + itemsize(dtype) if self.tape.target == "cpu" else 0

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
