"""Where in the model and in the step we are: module paths, phases, and the forward op behind an autograd node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from graphsim.core.graph import Phase
from graphsim.sources.torch.optimizers import Optimizers
from graphsim.sources.torch.record import BEFORE
from graphsim.sources.torch.unknown import python_line
from graphsim.sources.torch.values import Values


class Place(NamedTuple):
    """Attribution of one op: see `Executed`."""

    phase: Phase
    layer: str
    forward_of: int
    parameter: str = ""
    node: str = ""


class Scope:
    """Tracks the module that is being called, the optimizer that steps, the autograd node that runs.

    Args:
        model: the module whose paths name the layers.
        parameters: names of parameters by the id of their tensor.
        values: told when an optimizer steps.
        optimizers: told of each optimizer before it steps.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[int, str], values: Values, optimizers: Optimizers) -> None:
        self.optimizers = optimizers
        self.values = values
        self.paths = {id(module): name for name, module in model.named_modules()}
        self.parameters = parameters
        self.stack: list[str] = []
        self.stepping = 0
        self.updates = 0
        self.after_backward = False
        self._nodes: dict[int, tuple[str, int]] = {}
        self._last = ""

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Follow calls of modules and optimizers inside.

        Modules are followed by wrapping ``Module.__call__``: hooks would not be left when an exception
        passes, as it does where checkpointing stops a recompute early.
        """
        original = nn.Module.__call__
        stack, paths = self.stack, self.paths

        @wraps(original)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            stack.append(paths.get(id(module)) or (stack[-1] if stack else ""))
            try:
                return original(module, *args, **kwargs)
            finally:
                stack.pop()

        hooks = (
            register_optimizer_step_pre_hook(lambda optimizer, *_: self._enter(optimizer)),
            register_optimizer_step_post_hook(lambda *_: self._step(-1)),
        )
        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]
            for hook in hooks:
                hook.remove()

    def _enter(self, optimizer: Any) -> None:
        self.optimizers.see(optimizer)
        self.optimizers.stepped(optimizer)
        self.updates += 1
        if all(p.grad is None for group in optimizer.param_groups for p in group["params"]):
            name = type(optimizer).__name__
            self.values.policy.note(f"{python_line()}: {name} steps, and none of its parameters has a gradient")
        self._step(1)

    def _step(self, change: int) -> None:
        self.stepping += change
        self.values.stepping += change  # an optimizer reads numbers (norms, counters), and only computes with them

    def layer(self) -> str:
        """Return the path of the module that is being called."""
        return self.stack[-1] if self.stack else ""

    def begin_step(self) -> None:
        """Forget what belongs to the step before."""
        self.after_backward = False
        self._last = ""

    def place(self, position: int) -> Place:
        """Return the attribution of the op that is dispatched as number *position*."""
        if torch._C._current_graph_task_id() != -1:
            self.after_backward = True
            place = self._in_backward(position)
        elif self.stepping:
            place = Place(Phase.OPTIMIZER, "", BEFORE)
        elif self.stack:
            place = Place(Phase.FORWARD, self.stack[-1], BEFORE)
            self._remember(place.layer, position)
        elif self.after_backward and not torch.is_grad_enabled():
            place = Place(Phase.OPTIMIZER, "", BEFORE)  # gradient clipping, averages of the weights
        else:
            place = Place(Phase.FORWARD, "", BEFORE)
            self._remember("", position)
        self._last = place.layer
        return place

    def _remember(self, layer: str, position: int) -> None:
        """An autograd node takes its number right before its op is dispatched."""
        self._nodes.setdefault(torch._C._autograd._get_sequence_nr() - 1, (layer, position))

    def _in_backward(self, position: int) -> Place:
        node = torch._C._current_autograd_node()
        if node is None:
            return Place(Phase.BACKWARD, self._last, BEFORE)
        layer, forward_of = self._nodes.get(node._sequence_nr(), (self._last, BEFORE))
        if torch.is_grad_enabled():  # checkpointing runs forward code again
            layer = self.stack[-1] if self.stack else layer
            self._remember(layer, position)
            return Place(Phase.RECOMPUTE, layer, BEFORE)
        parameter = ""
        kind = node.name()
        if kind == "torch::autograd::AccumulateGrad":
            parameter = self.parameters.get(id(getattr(node, "variable", None)), "")
            layer, forward_of = parameter.rpartition(".")[0], BEFORE
        return Place(Phase.BACKWARD, layer, forward_of, parameter, kind)
