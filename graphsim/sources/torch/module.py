"""An ``nn.Module`` with its inputs as a source: what `from_torch` takes, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphsim.errors import UsageError
from graphsim.sources.torch.versions import need_torch

if TYPE_CHECKING:
    from graphsim.core.graph import Graph
    from graphsim.sources.torch.capture import Capture
    from graphsim.step.training import Training


@dataclass(frozen=True, eq=False)
class Module:
    """A model and its batch; see `from_torch` for what each may be.

    Attributes:
        optimizer: a function of the parameters, or an optimizer; None: the one that the training names.

    Raises:
        UsageError: the model is neither a module nor a function that makes one.
    """

    model: Any
    inputs: Any
    loss: Callable[..., Any] | None = None
    step: Callable[..., Any] | None = None
    optimizer: Any = None
    frontend: ClassVar[str] = "module"

    def __post_init__(self) -> None:
        if not callable(self.model):
            what = self.model if isinstance(self.model, str) else type(self.model).__name__
            raise UsageError(
                f"inputs are for a module, not for {what:.60}: say batch=8 or training=Training(...) by name"
            )

    @property
    def name(self) -> str:
        """The name of its class, or of the function that makes it."""
        return str(getattr(self.model, "__name__", type(self.model).__name__))


def load_module(module: Module, *, optimizer: Any = "adamw", target: str = "", device: str = "") -> Graph:
    """Return the steady step of *module*; see `from_torch`."""
    return _captured(module, optimizer, target, device).graph()


def load_steps(module: Module, *, training: Training) -> tuple[Graph, Graph]:
    """Return step 1 and the steady step of *module*, captured once, or once for each rank; see `from_torch`."""
    need_torch()
    from graphsim.sources.torch.optimizers import named
    from graphsim.sources.torch.ranks import steps_of

    optimizer = named(training.optimizer, training.optimizer_impl)
    return steps_of(training, lambda one: _captured(module, optimizer, one.target, one.gpu, one))


def _captured(module: Module, optimizer: Any, target: str, device: str, training: Training | None = None) -> Capture:
    need_torch()
    from graphsim.sources.torch.capture import AS_IT_IS, capture, gpu

    own = {} if module.optimizer is None else {"optimizer": module.optimizer}
    return capture(
        module.model,
        module.inputs,
        optimizer=optimizer,
        loss=module.loss,
        step=module.step,
        device=gpu(target, device, module.model),
        words=lambda: own,
        training=training or AS_IT_IS,
    )
