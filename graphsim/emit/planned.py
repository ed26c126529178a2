"""A training step that runs by a plan: any schedule of a captured graph, applied to the user's own model.

The forward and backward pass of the model are recorded once (`emit.tape`), call by call, and found again in the
captured graph. From then on the schedule says which call comes next and which comes again; a storage goes after the
last call of the schedule that reads it. The calls are those of PyTorch's own eager step, so gradients are equal to the
bit: random ops that run again draw the same numbers, batch norm that runs again leaves the running statistics alone.

    step = planned_step(model, lambda model, x: model(x).mean(), [x], graph, plan.schedule)
    loss = step(x)  # instead of loss = ...; loss.backward()
    optimizer.step()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from graphsim.core.graph import HOLD, RELEASE, Graph, Phase
from graphsim.core.schedule import Schedule
from graphsim.emit.tape import Call, Slot, Step, Tape, record
from graphsim.errors import UsageError

_UNSEEN = frozenset({HOLD, RELEASE, "update_running_stats"})
"""Ops of a captured graph that PyTorch does not dispatch."""
_STATISTICS = frozenset({"running_mean", "running_var"})


@dataclass(frozen=True, slots=True)
class _Execution:
    """One call at its place in the schedule.

    Attributes:
        again: it ran before.
        repeated: it will run again.
        over: PyTorch writes the result over the first operand where nobody looks, and so does this.
        ends: the storages that nothing reads after it.
    """

    call: Call
    number: int
    again: bool
    repeated: bool
    over: bool
    ends: tuple[int, ...]


def planned_step(
    model: nn.Module, step: Step, batch: Sequence[Tensor], graph: Graph, schedule: Schedule
) -> PlannedStep:
    """Return the forward and backward pass of *step*, run as *schedule* says.

    Args:
        model: as the graph was captured, in the same mode; recording runs it once, and leaves it as it is.
        step: called with the model and a batch, it returns the loss.
        batch: tensors as the step will get: of the same shapes, strides and dtypes.
        graph: the captured step.
        schedule: of the graph's ops; those of the optimizer are left to the user.

    Raises:
        UsageError: the schedule offloads, the calls depend on numbers that tensors hold, a tensor is not dense, the
            model does not do what the graph says, or random ops do not first run in their order.
    """
    if schedule.offloads:
        raise UsageError("the schedule offloads to the host, which a planned step does not: plan without --offload")
    tape = record(model, step, batch)
    return PlannedStep(model, tape, tuple(_executions(tape, graph, schedule)))


class PlannedStep:
    """Called with a batch, it returns the loss and leaves the gradients in the parameters, which must have none."""

    def __init__(self, model: nn.Module, tape: Tape, executions: tuple[_Execution, ...]) -> None:
        self.model, self._tape, self._executions = model, tape, executions
        self._training = _modes(model)

    @property
    def ran_again(self) -> dict[str, int]:
        """How many ops of each kind a step runs again."""
        return dict(Counter(one.call.kind for one in self._executions if one.again))

    @torch.no_grad()
    def __call__(self, *batch: Tensor) -> Tensor:
        """Run the step.

        Raises:
            UsageError: the batch is not as recorded, the model is in another mode, or a parameter has a gradient.
        """
        storages = self._bound(batch)
        del batch
        states: dict[int, Tensor] = {}
        for one in self._executions:
            _execute(one, storages, states)
            for storage in one.ends:
                storages.pop(storage, None)
        parameters = dict(self.model.named_parameters())
        for path, slot in self._tape.gradients.items():
            parameters[path].grad = slot.over(storages[slot.storage])
        return self._tape.loss.over(storages[self._tape.loss.storage])

    def _bound(self, batch: Sequence[Tensor]) -> dict[int, torch.UntypedStorage]:
        """Return the storages of what is there before the step, by number."""
        tape = self._tape
        given = [(tuple(t.shape), t.stride(), t.storage_offset(), t.dtype) for t in batch]
        if given != [(slot.size, slot.stride, slot.offset, slot.dtype) for slot in tape.inputs]:
            raise UsageError("the batch is not as recorded: shapes, strides and dtypes must be the same")
        if _modes(self.model) != self._training:
            raise UsageError("the model is not in the mode in which it was recorded: see train() and eval()")
        there = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for path in tape.gradients:
            if there[path].grad is not None:
                raise UsageError(f"parameter {path} has a gradient: call zero_grad() before the step")
        storages = {number: there[path].untyped_storage() for number, path in tape.named.items()}
        storages |= {slot.storage: t.untyped_storage() for slot, t in zip(tape.inputs, batch, strict=True)}
        return storages | tape.constants


def _modes(model: nn.Module) -> tuple[bool, ...]:
    return tuple(module.training for module in model.modules())


def _executions(tape: Tape, graph: Graph, schedule: Schedule) -> Iterable[_Execution]:
    """Yield the calls that *schedule* makes, each with what ends with it."""
    number, over = _matched(tape, graph)
    order = [number[op] for op in schedule.ops.tolist() if op in number]
    again, repeated, seen = _repeats(order)
    if seen != set(range(len(tape.calls))):
        raise UsageError("the schedule does not run every op of the forward and backward pass")
    firsts = [call for call, repeat in zip(order, again, strict=True) if not repeat and tape.calls[call].is_random]
    if firsts != sorted(firsts):
        raise UsageError("the schedule first runs random ops in another order: they would draw other numbers")
    ends = _ends(tape, order)
    for at, call in enumerate(order):
        yield _Execution(tape.calls[call], call, again[at], repeated[at], call in over, tuple(sorted(ends[at])))


def _matched(tape: Tape, graph: Graph) -> tuple[dict[int, int], set[int]]:
    """Return the call of each op, and the calls whose result the graph writes over an operand."""
    ops = [at for at, op in enumerate(graph.ops) if op.phase is not Phase.OPTIMIZER and op.kind not in _UNSEEN]
    for place, (at, call) in enumerate(zip(ops, tape.calls, strict=False)):
        if graph.ops[at].kind not in (call.kind, f"{call.kind}_"):
            raise UsageError(
                f"the model is not what the graph was captured from: call {place} is {call.kind}, op "
                f"{graph.ops[at].name} is {graph.ops[at].kind}"
            )
    if len(ops) != len(tape.calls):
        raise UsageError(f"the model makes {len(tape.calls):,} calls, the captured graph has {len(ops):,}")
    over = {call for call, at in enumerate(ops) if graph.ops[at].kind != tape.calls[call].kind}
    return {at: call for call, at in enumerate(ops)}, over


def _repeats(order: Sequence[int]) -> tuple[list[bool], list[bool], set[int]]:
    again, seen = [], set[int]()
    for call in order:
        again.append(call in seen)
        seen.add(call)
    last = {call: at for at, call in enumerate(order)}
    return again, [last[call] != at for at, call in enumerate(order)], seen


def _ends(tape: Tape, order: Sequence[int]) -> list[set[int]]:
    """Return the storages that go after each execution: those not read again before they are made again."""
    wanted = {slot.storage for slot in (*tape.gradients.values(), tape.loss, *tape.inputs)}
    wanted |= {*tape.named, *tape.constants}
    ends: list[set[int]] = [set() for _ in order]
    for at in reversed(range(len(order))):
        call = tape.calls[order[at]]
        made = {number for number, new in call.results if new}
        touched = made | {slot.storage for slot in call.operands}
        ends[at] = touched - wanted
        wanted = (wanted - made) | {slot.storage for slot in call.operands}
    return ends


def _execute(one: _Execution, storages: dict[int, torch.UntypedStorage], states: dict[int, Tensor]) -> None:
    """Make the call."""
    leaves = [leaf.over(storages[leaf.storage]) if isinstance(leaf, Slot) else leaf for leaf in one.call.leaves]
    args, kwargs = tree_unflatten(leaves, one.call.spec)
    if one.again:
        args = _sparing_statistics(one.call, args)
    function = _overwriting(one.call.function) if one.over else one.call.function
    run = partial(function, *args, **kwargs)
    result = _run_random(one, run, leaves, states) if one.call.is_random else run()
    tensors = [tensor for tensor in tree_flatten(result)[0] if isinstance(tensor, Tensor)]
    for tensor, (number, new) in zip(tensors, one.call.results, strict=True):
        if new:
            storages[number] = tensor.untyped_storage()


def _overwriting(function: Any) -> Any:
    """Return the overload that writes the result of *function* over its first operand."""
    packet = getattr(torch.ops.aten, f"{function._schema.name.removeprefix('aten::')}_")
    return getattr(packet, function._schema.overload_name or "default")


def _sparing_statistics(call: Call, args: Sequence[Any]) -> list[Any]:
    """Return *args* with copies of running statistics: they have been updated."""
    names = [argument.name for argument in call.function._schema.arguments]
    return [
        arg.clone() if name in _STATISTICS and isinstance(arg, Tensor) else arg
        for name, arg in zip(names, args, strict=False)
    ]


def _run_random(one: _Execution, run: Any, leaves: Sequence[Any], states: dict[int, Tensor]) -> Any:
    """Draw the numbers of the first time, if it is not that; keep the state, if the op will run again."""
    device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), torch.device("cpu"))
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    if not one.again:
        if one.repeated:
            states[one.number] = generator.get_state()
        return run()
    present = generator.get_state()
    generator.set_state(states[one.number] if one.repeated else states.pop(one.number))
    try:
        return run()
    finally:
        generator.set_state(present)
