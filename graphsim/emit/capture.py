"""A model that can be captured again with a plan applied to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from graphsim.core.graph import Graph
from graphsim.core.simulation import with_costs
from graphsim.emit.program import Program, program_of
from graphsim.sources import Source
from graphsim.sources.torch.versions import need_torch
from graphsim.step.precision import precision_of
from graphsim.step.training import Training

if TYPE_CHECKING:
    from graphsim.sources.torch.capture import Capture


class Recapture(Protocol):
    """Captures a step of a model anew, with its calls."""

    def __call__(self, change: Callable[[Any], Any], step: Callable[..., Any] | None = None) -> Capture:
        """Return the capture, after *change* has been applied to the model; by *step* in place of its own."""


class Recapturable:
    """A captured step, and the means to capture it again.

    Attributes:
        graph: the steady step as it is.
        name: of the model, for people.
        called: paths of modules with a forward of their own.
        norms: paths of modules with running statistics.
    """

    def __init__(self, recapture: Recapture, name: str, costs: str = "") -> None:
        self.name = name
        self._recapture, self._costs = recapture, costs
        self.called: frozenset[str] = frozenset()
        self.norms: frozenset[str] = frozenset()
        self._captured = recapture(self._look)
        self.graph = self._graph(self._captured)

    @cached_property
    def program(self) -> Program:
        """The forward and backward pass, call by call.

        Raises:
            UsageError: it cannot be made again by the same calls.
        """
        return program_of(self._captured, self.graph)

    def applied(self, text: str) -> Graph:
        """Return the steady step of the model after ``apply`` of the file *text*."""
        return self._graph(self._recapture(executed(text)["apply"]))

    def trained_by(self, text: str) -> Graph:
        """Return the steady step of the model with ``step`` of the file *text* for a forward and backward pass."""
        from graphsim.sources.torch.optimizers import each
        from graphsim.sources.torch.prepare import named_tensors

        planned = executed(text)["step"]

        def step(model: Any, batch: Any, optimizer: Any) -> None:
            for owner in each(optimizer) or [model]:
                owner.zero_grad()
            planned(model, *(tensor for _, tensor in named_tensors(batch)))
            for one in each(optimizer):
                one.step()

        return self._graph(self._recapture(lambda model: None, step))

    def _graph(self, captured: Capture) -> Graph:
        graph = captured.graph()
        return with_costs(graph, self._costs) if self._costs else graph

    def _look(self, model: Any) -> None:
        from torch import nn

        named = dict(model.named_modules())
        self.called = frozenset(path for path, m in named.items() if path and type(m).forward is not nn.Module.forward)
        self.norms = frozenset(path for path, m in named.items() if getattr(m, "track_running_stats", False))


def executed(text: str) -> dict[str, Any]:
    """Return the names of the file *text*, after it was run."""
    namespace: dict[str, Any] = {"__name__": "planned"}
    exec(compile(text, "planned.py", "exec"), namespace)
    return namespace


def captured_source(source: Source, training: Training, *, costs: str = "") -> Recapturable:
    """Return the step of ``torch:package.module:function``, which can be captured again.

    Raises:
        MissingExtraError: PyTorch is not installed.
        UsageError: it is no training step of one batch.
        SpecError, UsageError, CaptureError: as `load_torch`.
    """
    source.check(training)
    need_torch()
    from graphsim.sources.torch.recipe import OF_THE_STEP
    from graphsim.sources.torch.source import PREFIX, capture_source

    by_own_code = [name for name in OF_THE_STEP if name != "precision" or precision_of(training.precision).autocast]
    plain = replace(training, **{name: getattr(Training(), name) for name in by_own_code})

    def recapture(change: Callable[[Any], Any], step: Callable[..., Any] | None = None) -> Capture:
        return capture_source(
            source.what,
            training=training if step is None else plain,
            parameters=source.params,
            change=change,
            step=step,
            calls=True,
        )

    return Recapturable(recapture, source.name.removeprefix(PREFIX), costs)
