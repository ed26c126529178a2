"""The tape: records the kernels of a training step in the order in which PyTorch dispatches them.

A rule of an op kind talks to the tape only: `Tape.emit` runs a kernel, `Tape.view` makes an alias,
`Tape.differentiate` says what autograd saves and how the backward of it runs. Rules stay in the
terms of the framework's own source, and the graph that results is exact by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, NamedTuple

from graphsim.core.graph import HOLD, Op, Phase, Role, Tensor
from graphsim.options import parse_choice
from graphsim.step.libraries import Libraries
from graphsim.units import FLOATING, itemsize

Target = Literal["cpu", "cuda"]
TARGETS: tuple[Target, ...] = ("cpu", "cuda")


def parse_target(text: str) -> Target:
    """Return the target that *text* names.

    Raises:
        UnknownNameError: there is none.
    """
    return parse_choice("target", text, TARGETS)


class Type(NamedTuple):
    """Shape and dtype of a tensor that is yet to be written."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return prod(self.shape) * itemsize(self.dtype)


def refines(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """True if *fine* only splits dimensions of *coarse*: such a view never needs a copy."""
    extents = [extent for extent in fine if extent != 1]
    for whole in coarse:
        product = 1
        while product < whole and extents:
            product *= extents.pop(0)
        if product != whole:
            return False
    return not extents


Gradients = Sequence[Tensor | None]
Rule = Callable[[Tensor, tuple[bool, ...]], Gradients]
"""Backward of an op of one output: (its gradient, which inputs need one) -> gradients of the inputs."""
ManyRule = Callable[[tuple[Tensor | None, ...], tuple[bool, ...]], Gradients]
"""The same of an op of several outputs, of which at least one has a gradient."""


@dataclass(frozen=True, slots=True)
class Node:
    """An autograd node: what it differentiates, what it keeps alive until it has run, and how it runs."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    saved: tuple[Tensor, ...]
    rule: ManyRule
    layer: str
    forward_of: str


class Tape:
    """Ops and tensors recorded so far, and the autograd nodes that wait for the backward pass.

    `shared` holds what a model computes once per forward pass and keeps to its end (masks, tables),
    `weight_casts` what autocast does.

    Args:
        target: where the kernels run; rules differ where PyTorch does.
        training: modules are in training mode (dropout draws masks, batch norm uses batch statistics).
        gradients: autograd records; False is ``torch.no_grad()``.
        autocast: the low-precision dtype of an enclosing autocast region, if any.
        capability: CUDA compute capability, for rules that depend on it (kernel choice).
        processors: multiprocessors of the device, for kernels that sum in parts.
        warm: a step has run before, and the libraries of the device keep what they work in.
    """

    def __init__(
        self,
        target: Target = "cpu",
        *,
        training: bool = True,
        gradients: bool = True,
        autocast: str | None = None,
        capability: tuple[int, int] = (8, 0),
        processors: int = 108,
        warm: bool = False,
    ) -> None:
        self.target = target
        self.training = training
        self.gradients = gradients
        self.autocast = autocast
        self.capability = capability
        self.processors = processors
        self.warm = warm
        self.phase = Phase.FORWARD
        self.layer = ""
        self.forward_of = ""
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.weight_casts: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}
        self._requires_gradient: set[str] = set()
        self._leaves: set[str] = set()
        self._views: set[str] = set()
        self._strided: set[str] = set()
        self._sliced: set[str] = set()
        self._count: dict[str, int] = {}
        self._libraries = Libraries(capability) if target == "cuda" else None

    # -- tensors -------------------------------------------------------------------------------

    def source(
        self, name: str, shape: tuple[int, ...], dtype: str, role: Role, *, requires_gradient: bool = False
    ) -> Tensor:
        """Declare a tensor that exists before the step."""
        tensor = Tensor(name, shape, dtype, role)
        self.tensors[name] = tensor
        if requires_gradient:
            self._leaves.add(name)
            if self.gradients:
                self._requires_gradient.add(name)
        return tensor

    def requires_gradient(self, tensor: Tensor) -> bool:
        """True if autograd will want the gradient of *tensor*."""
        return tensor.name in self._requires_gradient

    def is_view(self, tensor: Tensor) -> bool:
        """True if *tensor* was made by a view op (its base is referenced as long as it is)."""
        return tensor.name in self._views

    def is_contiguous(self, tensor: Tensor) -> bool:
        """False for a transposed or sliced view, which a reshape has to copy."""
        return tensor.name not in self._strided

    def is_sliced(self, tensor: Tensor) -> bool:
        """True for a view of part of its base, which no transpose puts in order again."""
        return tensor.name in self._sliced

    def mark_strided(self, tensor: Tensor) -> None:
        """Say that the elements of *tensor* are not in order: an elementwise result of a transposed view."""
        self._strided.add(tensor.name)

    def retag(self, tensor: Tensor, role: Role) -> None:
        """Give the storage of *tensor* another role (a gradient that becomes ``parameter.grad``)."""
        self.tensors[tensor.base] = replace(self.tensors[tensor.base], role=role)

    # -- recording -----------------------------------------------------------------------------

    @contextmanager
    def scope(self, layer: str, forward_of: str = "") -> Iterator[None]:
        """Attribute what is recorded inside to *layer*."""
        outer = self.layer, self.forward_of
        self.layer, self.forward_of = layer, forward_of
        try:
            yield
        finally:
            self.layer, self.forward_of = outer

    def emit(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        output: Type,
        *,
        workspace: int = 0,
        flops: int | None = None,
        mutates: Sequence[Tensor] = (),
        role: Role = Role.ACTIVATION,
        name: str = "",
    ) -> Tensor:
        """Run a kernel with one output; see `emit_many`."""
        (result,) = self.emit_many(
            kind, inputs, (output,), workspace=workspace, flops=flops, mutates=mutates, role=role, name=name
        )
        return result

    def emit_many(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Type],
        *,
        workspace: int = 0,
        flops: int | None = None,
        mutates: Sequence[Tensor] = (),
        role: Role = Role.ACTIVATION,
        name: str = "",
    ) -> tuple[Tensor, ...]:
        """Run a kernel: allocate *outputs* (and *workspace* bytes of scratch) while *inputs* live.

        flops defaults to one per output element. Bytes moved are those of inputs and outputs.
        *name*, if given, is that of the op and its first output; it must be unique.
        """
        name = name or self._unique(kind)
        results = tuple(
            Tensor(f"{name}:{i}" if i else name, type_.shape, type_.dtype, role) for i, type_ in enumerate(outputs)
        )
        for tensor in results:
            self.tensors[tensor.name] = tensor
        self._record(name, kind, inputs, results, workspace, flops, mutates)
        return results

    def inplace(
        self, kind: str, tensor: Tensor, others: Sequence[Tensor] = (), *, workspace: int = 0, flops: int | None = None
    ) -> Tensor:
        """Run a kernel that overwrites *tensor*; return the result, an alias of it."""
        name = self._unique(kind)
        result = Tensor(name, tensor.shape, tensor.dtype, tensor.role, tensor.base)
        self.tensors[name] = result
        for marks in (self._strided, self._sliced, self._views):
            if tensor.name in marks:
                marks.add(name)
        self._record(name, kind, (tensor, *others), (result,), workspace, flops, (tensor,))
        return result

    def view(self, tensor: Tensor, shape: tuple[int, ...], *, kind: str = "view", contiguous: bool = True) -> Tensor:
        """Return an alias of *tensor* with *shape*; its gradient is viewed back.

        A view of part of the elements (a slice) is not differentiable this way: use `alias`.
        """
        if shape == tensor.shape and kind == "view":
            return tensor
        result = self.alias(tensor, shape, kind=kind, contiguous=contiguous)

        def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
            if kind == "view" and not refines(tensor.shape, shape):
                grad = self.contiguous(grad)
            in_order = contiguous and self.is_contiguous(grad)
            return (self.alias(grad, tensor.shape, kind=kind, contiguous=in_order),)

        self.differentiate((tensor,), result, (), backward)
        return result

    def alias(
        self,
        tensor: Tensor,
        shape: tuple[int, ...],
        *,
        kind: str = "view",
        contiguous: bool = True,
        sliced: bool = False,
    ) -> Tensor:
        """Return an alias of *tensor* that autograd does not see.

        Its elements may be out of order (not *contiguous*) because dimensions changed places, or
        because it is only part of its base (*sliced*).
        """
        name = self._unique(kind)
        result = Tensor(name, shape, tensor.dtype, tensor.role, tensor.base)
        self.tensors[name] = result
        self._views.add(name)
        if not contiguous:
            self._strided.add(name)
        if sliced or (self.is_sliced(tensor) and not contiguous):
            self._sliced.add(name)
        self._record(name, kind, (tensor,), (result,), 0, 0, ())
        return result

    def contiguous(self, tensor: Tensor) -> Tensor:
        """Return *tensor*, copied if its elements are not in order."""
        if self.is_contiguous(tensor):
            return tensor
        result = self.emit("clone", (tensor,), Type(tensor.shape, tensor.dtype))
        self.differentiate((tensor,), result, (), lambda grad, needs: (grad,))
        return result

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Keep *tensors* alive until here, as the framework does, though no data is read."""
        unique = {t.base: t for t in tensors if not self._is_resident(t)}
        if unique:
            self._record(self._unique(HOLD), HOLD, tuple(unique.values()), (), 0, 0, ())

    def name_as(self, tensor: Tensor, name: str, role: Role) -> Tensor:
        """Give *tensor* a second name and its storage a role: ``weight.grad`` for a stolen gradient."""
        self.retag(tensor, role)
        result = Tensor(name, tensor.shape, tensor.dtype, role, tensor.base)
        self.tensors[name] = result
        self._record(self._unique("steal"), "steal", (tensor,), (result,), 0, 0, ())
        return result

    # -- autograd ------------------------------------------------------------------------------

    def differentiate(self, inputs: Sequence[Tensor], output: Tensor, saved: Sequence[Tensor], rule: Rule) -> None:
        """Record an autograd node of one output; see `differentiate_many`."""

        def only(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
            (grad,) = (g for g in grads if g is not None)  # a node without a gradient does not run
            return rule(grad, needs)

        self.differentiate_many(inputs, (output,), saved, only)

    def differentiate_many(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], saved: Sequence[Tensor], rule: ManyRule
    ) -> None:
        """Record an autograd node, if any input requires a gradient.

        *saved* is what the framework keeps for backward and releases when the node has run.
        """
        if not self.gradients or not any(t.name in self._requires_gradient for t in inputs):
            return
        self._requires_gradient.update(t.name for t in outputs if t.dtype in FLOATING)
        name = self.ops[-1].name
        self.nodes.append(Node(tuple(inputs), tuple(outputs), tuple(saved), rule, self.layer, name))

    # -- autocast ------------------------------------------------------------------------------

    def to(self, tensor: Tensor, dtype: str) -> Tensor:
        """Return *tensor* in *dtype*: itself, or a differentiable copy."""
        if tensor.dtype == dtype:
            return tensor
        result = self.emit("to", (tensor,), Type(tensor.shape, dtype))

        def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
            return (self.emit("to", (grad,), Type(tensor.shape, tensor.dtype)),)

        self.differentiate((tensor,), result, (), backward)
        return result

    @contextmanager
    def without_autocast(self) -> Iterator[None]:
        """Run kernels inside of an op that autocast has cast as a whole."""
        outer, self.autocast = self.autocast, None
        try:
            yield
        finally:
            self.autocast = outer

    def low_precision(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Cast floating inputs of a matmul-like op as autocast does; fp32 leaves are cast once.

        Source: aten/src/ATen/autocast_mode.cpp, ``cached_cast``: a cast is cached if the argument is
        an fp32 leaf that requires a gradient (also under no_grad) and is no view; the cache is cleared
        on exit. The casts are arguments of one C++ call, which GCC evaluates from the last to the first.
        """
        dtype = self.autocast
        if dtype is None or self.phase is not Phase.FORWARD:
            return tensors
        return tuple(self._cached_cast(t, dtype) if t.dtype in FLOATING else t for t in reversed(tensors))[::-1]

    def full_precision(self, *tensors: Tensor, cpu: bool = False) -> tuple[Tensor, ...]:
        """Cast low-precision inputs of an op on autocast's fp32 list: CUDA's, and the CPU's if *cpu*.

        Source: aten/src/ATen/autocast_mode.h and .cpp. The CPU's list has losses, but neither norms nor softmax.
        """
        if self.autocast is None or self.phase is not Phase.FORWARD or not (cpu or self.target == "cuda"):
            return tensors
        low = ("float16", "bfloat16")
        return tuple(self.to(t, "float32") if t.dtype in low else t for t in reversed(tensors))[::-1]

    def widest(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Cast inputs to their widest floating dtype, as type promotion does."""
        floats = [t.dtype for t in tensors if t.dtype in FLOATING]
        dtype = max(floats, key=itemsize, default=tensors[0].dtype)
        return tuple(self.to(t, dtype) if t.dtype in FLOATING else t for t in tensors)

    def _cached_cast(self, tensor: Tensor, dtype: str) -> Tensor:
        if tensor.name not in self._leaves or tensor.dtype != "float32":
            return self.to(tensor, dtype)
        if tensor.name not in self.weight_casts:
            self.weight_casts[tensor.name] = self.to(tensor, dtype)
        return self.weight_casts[tensor.name]

    # -- internals -----------------------------------------------------------------------------

    def _is_resident(self, tensor: Tensor) -> bool:
        return self.tensors[tensor.base].role in (Role.PARAMETER, Role.INPUT, Role.BUFFER)

    def _unique(self, kind: str) -> str:
        stem = f"{self.layer}.{kind}" if self.layer else kind
        if self.phase is not Phase.FORWARD:
            stem = f"{stem}@{self.phase}"
        count = self._count.get(stem, 0)
        self._count[stem] = count + 1
        return f"{stem}.{count}" if count else stem

    def _kept_by_libraries(self, kind: str) -> tuple[Tensor, ...]:
        """Declare the workspace that an op of this *kind* is the first to need; return it if the op makes it."""
        needed = self._libraries.first_needed(kind, self.phase) if self._libraries else None
        if needed is None:
            return ()
        workspace = Tensor(needed.name, (needed.nbytes,), "uint8", Role.LIBRARY)
        self.tensors[workspace.name] = workspace
        return () if self.warm else (workspace,)

    def _record(
        self,
        name: str,
        kind: str,
        inputs: Sequence[Tensor],
        outputs: tuple[Tensor, ...],
        workspace: int,
        flops: int | None,
        mutates: Sequence[Tensor],
    ) -> None:
        free = kind == HOLD or flops == 0
        kept = self._kept_by_libraries(kind)
        moved = 0 if free else sum(t.nbytes for t in inputs) + sum(t.nbytes for t in outputs)
        self.ops.append(
            Op(
                name=name,
                kind=kind,
                inputs=tuple(t.name for t in inputs),
                outputs=tuple(t.name for t in (*outputs, *kept)),
                phase=self.phase,
                layer=self.layer,
                workspace=workspace,
                flops=sum(t.size for t in outputs) if flops is None else flops,
                moved=moved,
                mutates=tuple(t.name for t in mutates),
                forward_of=self.forward_of,
            )
        )
