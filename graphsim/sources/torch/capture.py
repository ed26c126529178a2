"""The two steps: prepare model, batch and optimizer without data, run, observe."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from graphsim.core.devices import Device, device_of
from graphsim.core.graph import Graph, Role
from graphsim.errors import UsageError
from graphsim.sources.torch import cuda
from graphsim.sources.torch.build import build_graph
from graphsim.sources.torch.lazy import hollow_copy, initialize, lazy_modules
from graphsim.sources.torch.libraries import Libraries
from graphsim.sources.torch.observe import Observer
from graphsim.sources.torch.optimizers import describe, make_optimizer, states
from graphsim.sources.torch.place import located
from graphsim.sources.torch.prepare import build, guarded, hollow_tensors, hollowed
from graphsim.sources.torch.record import Recording
from graphsim.sources.torch.scope import Scope
from graphsim.sources.torch.values import Values
from graphsim.step.ops.tape import TARGETS


@dataclass(frozen=True)
class Capture:
    """Both steps of a captured training; `graph` is a cheap what-if, nothing is captured again."""

    recording: Recording
    name: str
    attributes: Mapping[str, Any]

    def graph(self, *, first: bool = False) -> Graph:
        """Return step 1 if *first*, else step 2, the steady state."""
        attributes = {**self.attributes, "first_step": first}
        return build_graph(self.recording, 0 if first else 1, name=self.name, attributes=attributes)


def capture(
    module: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    *,
    optimizer: Any,
    loss: Callable[..., Any] | None,
    step: Any,
    name: str = "",
    lines: bool = False,
    device: Device | None = None,
) -> Capture:
    """Run two steps under observation, on a *device* of the catalogue or where the model is; see `from_torch`."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    values = Values(fake, cuda.CUDA if device else None)
    with ExitStack() as stack:
        if device:
            stack.enter_context(cuda.pretended(device))
        model = module if isinstance(module, nn.Module) else build(module, values)
        batch = hollow_tensors(build(inputs, values) if callable(inputs) else inputs, values)
        if lazy_modules(model):
            model = hollow_copy(model, values)
            with located(model):
                initialize(model, lambda: _call(model, batch), values)
        fakes = stack.enter_context(hollowed(model, values))
        optimize = make_optimizer(optimizer, model, fakes, values)
        parameters = {id(p): path for path, p in model.named_parameters(remove_duplicate=False)}
        scope = Scope(model, parameters, values)
        values.layer = scope.layer
        libraries = Libraries(device.capability) if device else None
        observer = Observer(scope, values, lines=lines, libraries=libraries)
        _declare(observer, model, batch, optimize)
        run = step or default_step(loss)
        stack.enter_context(guarded(values))
        stack.enter_context(scope.observed())
        stack.enter_context(_quiet_collector())
        with located(model), observer:
            for _ in range(2):
                _run_step(observer, run, model, batch, optimize)
        observer.seal()
    training = {
        "target": "cuda" if device else "cpu",
        "device": device.name if device else "",
        **describe(optimize, on_gpu=bool(device)),
    }
    attributes = {"captured": f"torch {torch.__version__}", "training": training, "batch": _batch_size(batch)}
    return Capture(observer.recording, name or type(model).__name__, attributes)


def gpu(target: str, name: str = "", module: Any = None) -> Device | None:
    """Return the GPU to capture for; None for the CPU. *target* may be empty: where *module* is.

    Raises:
        UsageError: there is no such target, or the CPU is to be a GPU.
        UnknownNameError: the catalogue has no such device.
    """
    if target not in ("", *TARGETS):
        raise UsageError(f"target must be one of {', '.join(TARGETS)}, not {target!r:.40}")
    there = isinstance(module, nn.Module) and any(p.is_cuda for p in module.parameters())
    if target == "cuda" or (there and not target):
        return device_of(name, "cuda")
    if name:
        raise UsageError(f"device {name:.40} is a GPU: capture for target 'cuda'")
    return None


def _run_step(observer: Observer, run: Any, model: nn.Module, batch: Any, optimizer: Any) -> None:
    begin = len(observer.recording.ops)
    observer.scope.begin_step()
    run(model, batch, optimizer)
    observer.end_step(begin)
    for tensor, label, owner in states(optimizer, model):
        storage = observer.find(tensor)
        if storage is not None and storage.role is None:
            storage.label, storage.role, storage.owner = label, Role.OPTIMIZER_STATE, owner
    gc.collect()


def _declare(observer: Observer, model: nn.Module, batch: Any, optimizer: Any) -> None:
    for path, parameter in model.named_parameters():
        observer.declare(parameter, path, Role.PARAMETER, path.rpartition(".")[0])
    for path, buffer in model.named_buffers():
        observer.declare(buffer, path, Role.BUFFER, path.rpartition(".")[0])
    named = batch.items() if isinstance(batch, Mapping) else [("", batch)]
    tensors = [(key, leaf) for key, value in named for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    for number, (key, tensor) in enumerate(tensors):
        observer.declare(tensor, str(key) if key else f"input.{number}", Role.INPUT)
    for tensor, label, owner in states(optimizer, model):
        observer.declare(tensor, label, Role.OPTIMIZER_STATE, owner)
    for path, parameter in model.named_parameters():
        if parameter.grad is not None:
            observer.declare(parameter.grad, f"{path}.grad", Role.GRADIENT, path.rpartition(".")[0])


def default_step(loss: Callable[..., Any] | None) -> Any:
    """Return the usual step. The model's output goes when the loss is known; the loss stays to the end."""
    arity = 1 if loss is None else _arity(loss)

    def forward(model: Any, batch: Any) -> Any:
        output = _call(model, batch)
        return _plain_loss(output) if loss is None else loss(output) if arity == 1 else loss(output, batch)

    def run(model: Any, batch: Any, optimizer: Any) -> None:
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        else:
            model.zero_grad(set_to_none=True)
        value = forward(model, batch)
        value.backward()
        if optimizer is not None:
            optimizer.step()

    return run


def _call(model: Any, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def _arity(function: Callable[..., Any]) -> int:
    """Return how many operands a loss function wants: the output, or output and batch."""
    if isinstance(function, nn.Module):
        return 2
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        wanted = inspect.signature(function).parameters.values()
    except ValueError:  # a function written in C, such as torch.sum
        return 1
    return min(2, sum(p.kind in kinds and p.default is p.empty for p in wanted)) or 1


def _plain_loss(output: Any) -> torch.Tensor:
    """Return the output's loss; else the output if it is a scalar; else the mean of its first floating tensor."""
    named: torch.Tensor | None = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if named is not None:
        return named
    tensor = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
    return tensor if tensor.dim() == 0 else tensor.mean()


def _batch_size(batch: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    return int(tensors[0].shape[0]) if tensors else 1


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """Cyclic garbage is collected between steps only: lives do not depend on the collector's mood."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
