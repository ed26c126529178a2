"""A model that can be captured again with a file of checkpoints applied to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from graphsim.core.graph import Graph, Phase
from graphsim.core.simulation import with_costs
from graphsim.errors import UsageError
from graphsim.sources import Source
from graphsim.sources.torch.versions import need_torch
from graphsim.step.training import Training


class Recapture(Protocol):
    """Captures a step of a model anew, after *change* has been applied to the model."""

    def __call__(self, change: Callable[[Any], Any]) -> Graph:
        """Return the graph of the steady step."""


class Recapturable:
    """A captured step, and the means to capture it again.

    Attributes:
        graph: the step as it is.
        name: of the model, for people.
        called: paths of modules with a forward of their own.
        norms: paths of modules with running statistics.

    Raises:
        UsageError: the step already recomputes.
    """

    def __init__(self, recapture: Recapture, name: str) -> None:
        self.name = name
        self._recapture = recapture
        self.called: frozenset[str] = frozenset()
        self.norms: frozenset[str] = frozenset()
        self.graph = recapture(self._look)
        _check(self.graph)

    def applied(self, text: str) -> Graph:
        """Return the step of the model after ``apply`` of the file *text*."""
        namespace: dict[str, Any] = {"__name__": "checkpoint_plan"}
        exec(compile(text, "checkpoint_plan.py", "exec"), namespace)
        return self._recapture(namespace["apply"])

    def _look(self, model: Any) -> None:
        from torch import nn

        named = dict(model.named_modules())
        self.called = frozenset(path for path, m in named.items() if path and type(m).forward is not nn.Module.forward)
        self.norms = frozenset(path for path, m in named.items() if getattr(m, "track_running_stats", False))


def captured_source(source: Source, training: Training, *, costs: str = "") -> Recapturable:
    """Return the step of ``torch:package.module:function``, which can be captured again.

    Raises:
        MissingExtraError: PyTorch is not installed.
        SpecError, UsageError, CaptureError: as `load_torch`.
    """
    source.check(training)
    need_torch()
    from graphsim.sources.torch.source import PREFIX, capture_source

    def recapture(change: Callable[[Any], Any]) -> Graph:
        step = capture_source(
            source.what,
            training=training,
            parameters=source.params,
            change=change,
        )
        return with_costs(step.graph(), costs) if costs else step.graph()

    return Recapturable(recapture, source.name.removeprefix(PREFIX))


def _check(graph: Graph) -> None:
    again = next((op for op in graph.ops if op.phase is Phase.RECOMPUTE), None)
    if again is not None:
        raise UsageError(
            f"the model already recomputes (op '{again.name}'): turn its own checkpointing off, then plan anew"
        )
