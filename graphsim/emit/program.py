"""A captured forward and backward pass as calls over numbered storages: what can be run again in another order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from graphsim.core.graph import HOLD, RELEASE, Graph, Phase, Role
from graphsim.errors import UsageError

if TYPE_CHECKING:
    from graphsim.sources.torch.capture import Capture
    from graphsim.sources.torch.record import Call, Executed, Operand

UNSEEN = frozenset({HOLD, RELEASE, "update_running_stats"})
"""Ops of a captured graph that PyTorch does not dispatch."""

OTHERWISE = "--emit checkpoints wraps modules of the model instead"


class Place(NamedTuple):
    """Where a tensor lies: a storage by its number, and shape, strides, offset and dtype over it."""

    storage: int
    geometry: Any


@dataclass(frozen=True, slots=True)
class Line:
    """One call of the program.

    Attributes:
        call: as Python makes it.
        layer, phase: of the model, where it was made.
        inputs, outputs: where its operands and results lie.
        made: the storages that it allocates.
        written: the storages that it overwrites.
        over: it writes the result over the first operand, of which the overload of *call* makes a new tensor.
    """

    call: Call
    layer: str
    phase: Phase
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    made: tuple[int, ...]
    written: frozenset[int]
    over: bool

    @property
    def is_view(self) -> bool:
        """Whether it only looks at storages in another way."""
        return bool(self.outputs) and not self.made and not self.written


@dataclass(frozen=True)
class Program:
    """The pass of a captured step.

    Attributes:
        lines: by the number of the op in the graph.
        named: the model's tensors, by path.
        inputs: the batch's tensors, by name, in order.
        loss: what the backward pass begins with.
        gradients: by the path of the parameter.
        evaluating: paths of modules that are in eval mode.
        on_gpu: the model is on a GPU.
    """

    lines: Mapping[int, Line]
    named: Mapping[str, Place]
    inputs: Mapping[str, Place]
    loss: Place
    gradients: Mapping[str, Place]
    evaluating: tuple[str, ...]
    on_gpu: bool

    def persistent(self) -> frozenset[int]:
        """Return the storages that are there before the step and after it."""
        return frozenset(place.storage for place in (*self.named.values(), *self.inputs.values()))


def program_of(captured: Capture, graph: Graph) -> Program:
    """Return the forward and backward pass of a capture whose calls were noted; *graph* is its steady step.

    Raises:
        UsageError: it cannot be made again by the same calls; the message names the place and says why.
    """
    _check_training(graph)
    begin, executed = captured.steady_ops
    ops = [at for at, op in enumerate(graph.ops) if op.kind not in UNSEEN]
    first, last = _backward(executed)
    for text, position in captured.varies.items():
        if position <= begin + last:
            raise _unwritable(text)
    numbers = _Numbers()
    named = {one.path: numbers.place(one.operand) for one in captured.named if not one.is_input}
    inputs = _inputs(numbers, [(one.path, one.operand) for one in captured.named if one.is_input])
    known = {place.storage for place in (*named.values(), *inputs.values())}
    lines: dict[int, Line] = {}
    gradients: dict[str, Place] = {}
    for at, one in zip(ops[: last + 1], executed, strict=False):
        lines[at] = line = _line(one, graph.ops[at].name, graph.ops[at].kind != one.kind, numbers, known)
        known |= {*line.made}
        if one.gradient_of:
            gradients[one.gradient_of] = line.outputs[0]
    loss = numbers.place(executed[first - 1].inputs[0])
    on_gpu = graph.attributes["training"]["target"] == "cuda"
    return Program(lines, named, inputs, loss, gradients, captured.evaluating, on_gpu)


def _unwritable(why: str) -> UsageError:
    return UsageError(f"the step cannot be emitted: {why}; {OTHERWISE}")


def _check_training(graph: Graph) -> None:
    if graph.attributes.get("parallel"):
        raise _unwritable("it is that of one of several GPUs")
    check_stores_all(graph)


def check_stores_all(graph: Graph) -> None:
    """Check that the model does not recompute by itself.

    Raises:
        UsageError: it does.
    """
    again = next((op for op in graph.ops if op.phase is Phase.RECOMPUTE), None)
    if again is not None:
        raise UsageError(
            f"the model already recomputes (op '{again.name}'): turn its own checkpointing off, then plan anew"
        )


def _backward(executed: Sequence[Executed]) -> tuple[int, int]:
    """Return where the backward pass begins and ends.

    Raises:
        UsageError: there is none, or more than one, or an optimizer steps before it is over.
    """
    places = [at for at, one in enumerate(executed) if one.phase is Phase.BACKWARD]
    if not places:
        raise _unwritable("there is no backward pass")
    first, last = places[0], places[-1]
    other = next((one for one in executed[first:last] if one.phase is not Phase.BACKWARD), None)
    if other is not None or any(one.phase is Phase.OPTIMIZER for one in executed[:first]):
        where = f"op '{other.kind}' of {other.phase} runs within" if other else "an optimizer steps before"
        raise _unwritable(f"it has more than one forward and one backward pass ({where} the backward pass)")
    if not first or executed[first - 1].kind != "ones_like":
        raise _unwritable("its backward pass does not begin with a loss, as that of loss.backward() does")
    return first, last


@dataclass
class _Numbers:
    """Numbers of storages, in the order in which they are seen."""

    known: dict[int, int] = field(default_factory=dict)

    def place(self, operand: Operand) -> Place:
        storage, geometry = operand
        return Place(self.known.setdefault(id(storage), len(self.known)), geometry)

    def alias(self, operand: Operand, storage: int) -> None:
        self.known[id(operand[0])] = storage


def _inputs(numbers: _Numbers, operands: Iterable[tuple[str, Operand]]) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for path, operand in operands:
        name = path if path.isidentifier() else f"input_{len(found)}"
        while name in found:
            name = f"{name}_"
        place = numbers.place(operand)
        shared = next((other for other, at in found.items() if at.storage == place.storage), None)
        if shared is not None:
            raise _unwritable(f"'{name}' and '{shared}' of the batch share their memory")
        found[name] = place
    return found


def _line(one: Executed, name: str, over: bool, numbers: _Numbers, known: set[int]) -> Line:
    """Return the line of an op.

    Raises:
        UsageError: it has no text, or reads a tensor of which nobody knows where it is.
    """
    call = one.call
    if call is None or one.sent is not None:
        raise _unwritable(f"op '{name}' {'frees memory by hand' if call is None else 'talks to other processes'}")
    if call.unwritten:
        raise _unwritable(f"op '{name}': {call.unwritten}")
    inputs = tuple(numbers.place(operand) for operand in one.inputs)
    unknown = next((place for place in inputs if place.storage not in known), None)
    if unknown is not None:
        what = f"{tuple(unknown.geometry[0])} {unknown.geometry[3]}"
        raise _unwritable(
            f"op '{name}' reads a tensor ({what}) that is no parameter, buffer or attribute of the model and no part "
            "of the batch"
        )
    over = over and one.outputs[0][1] == one.inputs[0][1]
    if over:
        numbers.alias(one.outputs[0], inputs[0].storage)
    outputs = tuple(numbers.place(operand) for operand in one.outputs if operand[0].role is not Role.LIBRARY)
    made = tuple(dict.fromkeys(place.storage for place in outputs if place.storage not in known))
    written = {inputs[number].storage for number in one.mutates} | ({inputs[0].storage} if over else set())
    return Line(call, one.layer, one.phase, inputs, outputs, made, frozenset(written), over)
