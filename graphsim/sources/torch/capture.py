"""The two steps: prepare model, batch and optimizer without data, run, observe."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graphsim.core.devices import Device, device_of
from graphsim.core.graph import Graph, Role
from graphsim.errors import CaptureError, UsageError
from graphsim.sources.torch import cuda, recipe, zeros
from graphsim.sources.torch.build import build_graph
from graphsim.sources.torch.cache import fill_cache
from graphsim.sources.torch.checks import check_model, nothing_compiled
from graphsim.sources.torch.group import Rank, process_group
from graphsim.sources.torch.lazy import hollow_copy, initialize, lazy_modules
from graphsim.sources.torch.notes import note_leftovers, noted_chance, observed_casts
from graphsim.sources.torch.observe import Observer, geometry_of
from graphsim.sources.torch.optimizers import Optimizers, describe, each, make_optimizer, states
from graphsim.sources.torch.place import located
from graphsim.sources.torch.prepare import build, exchanged, named_tensors
from graphsim.sources.torch.reads import guarded
from graphsim.sources.torch.record import Executed, Operand, Recording
from graphsim.sources.torch.scope import Scope
from graphsim.sources.torch.unknown import Policy
from graphsim.sources.torch.usual import UsualStep, call, configured, is_lightning, manual_step
from graphsim.sources.torch.values import Values
from graphsim.sources.torch.versions import installed
from graphsim.step.libraries import Libraries
from graphsim.step.ops.tape import TARGETS
from graphsim.step.training import Training

AS_IT_IS = Training()
"""Nothing is done to the model, and the usual step is plain."""


class Named(NamedTuple):
    """A tensor that is there before a step: an attribute of the model, or a part of the batch."""

    path: str
    operand: Operand
    is_input: bool


@dataclass(frozen=True)
class Capture:
    """Both steps of a captured training; `graph` is a cheap what-if, nothing is captured again.

    Attributes:
        varies: why a step with other numbers may be another one, with the position in the recording where it showed.
        named: by the path in the model, or the name in the batch, what was there before the steps, if calls were noted.
        evaluating: paths of the modules that are in eval mode.
    """

    recording: Recording
    name: str
    attributes: Mapping[str, Any]
    warmup: int = 1
    varies: Mapping[str, int] = field(default_factory=dict)
    named: tuple[Named, ...] = ()
    evaluating: tuple[str, ...] = ()

    def graph(self, *, first: bool = False) -> Graph:
        """Return step 1 if *first*, else the steady state: those after the warm-up, as one."""
        attributes = {**self.attributes, "first_step": first}
        steps = slice(0, 1) if first else self._steady
        return build_graph(self.recording, steps, name=self.name, attributes=attributes)

    @property
    def _steady(self) -> slice:
        return slice(min(self.warmup, len(self.recording.bounds) - 1), None)

    @property
    def steady_ops(self) -> tuple[int, list[Executed]]:
        """Where in the recording the steady state begins, and what was dispatched in it, in order."""
        bounds = self.recording.bounds[self._steady]
        return bounds[0][0], self.recording.ops[bounds[0][0] : bounds[-1][1]]

    def steps(self) -> tuple[Graph, Graph]:
        """Return step 1 and the steady state."""
        return self.graph(first=True), self.graph()


def capture(
    module: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    *,
    optimizer: Any,
    loss: Callable[..., Any] | None,
    step: Any,
    name: str = "",
    lines: bool = False,
    calls: bool = False,
    device: Device | None = None,
    assume: Mapping[str, Any] | None = None,
    words: Callable[[], Mapping[str, Any]] | None = None,
    training: Training = AS_IT_IS,
) -> Capture:
    """Run steps under observation, on a *device* of the catalogue or where the model is; see `from_torch`.

    Args:
        calls: note how Python makes each call, see `Call`.
        words: returns *loss*, *step* and *optimizer*, as far as the function that makes the model makes them too.
        training: what is done to the model, and in the usual step; which process of a group runs it.
    """
    zeros.give_back()
    policy = Policy({**dict(training.assume), **(assume or {})})
    rank = Rank(training.rank, training.gpus) if training.gpus else None
    fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=device is None)  # or a driver is called
    values = Values(fake, cuda.CUDA if device else None, policy, ranked=rank is not None)
    with ExitStack() as stack:
        if rank is not None:
            stack.enter_context(process_group(rank))
        if device:
            stack.enter_context(cuda.pretended(device))
        exchange = stack.enter_context(exchanged(values))
        model, batch = _made(module, inputs, values)
        if rank is not None and isinstance(module, nn.Module):
            model = hollow_copy(model, values)  # wrappers change a module for good
        said = words() if words else {}
        step, loss = said.get("step", step), said.get("loss", loss)
        check_model(model, ranked=values.ranked)
        if lazy_modules(model):
            model = hollow_copy(model, values)
            with located(model):
                exchange.batch(batch)
                initialize(model, lambda: call(model, batch), values)
        exchange.module(model)
        exchange.batch(batch)
        stack.enter_context(recipe.restored(model))
        recipe.changed(model, training, exchange)
        batch = recipe.cast_batch(batch, training, exchange)
        model, wrappers = recipe.parallel(model, training, exchange)
        lightning = step is None and loss is None and is_lightning(model)
        if lightning:
            said = {**said, "optimizer": build(lambda: configured(model), values)}
            if not getattr(model, "automatic_optimization", True):
                step = manual_step
        if step is not None:
            recipe.check_own_step(training, type(model).__name__)
        if "optimizer" in said:
            recipe.check_own_optimizer(training, type(model).__name__, said["optimizer"])
        optimizer = None if training.mode != "train" else said.get("optimizer", optimizer)
        optimizers = Optimizers(exchange)
        stack.callback(optimizers.undo)
        optimize = make_optimizer(recipe.sharded_states(optimizer, training), model, exchange)
        for one in each(optimize):
            optimizers.see(one)
        parameters = {id(p): path for path, p in model.named_parameters(remove_duplicate=False)}
        scope = Scope(model, parameters, values, optimizers)
        policy.layer = scope.layer
        libraries = Libraries(device.capability, installed()) if device else None
        observer = Observer(scope, values, lines=lines, calls=calls, libraries=libraries)
        policy.position = lambda: len(observer.recording.ops)
        _declare(observer, model, batch, optimize)
        casts = stack.enter_context(observed_casts())
        stack.enter_context(nothing_compiled(scope.layer))
        stack.enter_context(guarded(values))
        stack.enter_context(scope.observed())
        stack.enter_context(_quiet_collector())
        with located(model), observer:
            run = step or UsualStep(training, loss, lightning=lightning)
            _run_steps(observer, run, model, batch, optimize, training)
        named = tuple(_named(observer, model, batch)) if calls else ()
        evaluating = tuple(path for path, part in model.named_modules() if not part.training)
        observer.seal()
        note_leftovers(model, optimizers, policy)
        described = {
            "target": "cuda" if device else "cpu",
            "device": device.name if device else "",
            **describe(optimize, on_gpu=bool(device)),
        }
        attributes = {
            "captured": f"torch {torch.__version__}",
            "training": described,
            "batch": _batch_size(batch),
            "optimizers": list(optimizers.names()),
            "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
            "autocast": list(casts),
            "warnings": list(policy.notes),
            **recipe.said_of_ranks(wrappers, training, optimize),
        }
    return Capture(
        observer.recording, name or type(model).__name__, attributes, training.warmup, policy.varies, named, evaluating
    )


def _made(module: Any, inputs: Any, values: Values) -> tuple[nn.Module, Any]:
    """Return the model and the batch, made if they are functions."""
    with located():
        model = module if isinstance(module, nn.Module) else build(module, values)
        batch = build(inputs, values) if callable(inputs) and not isinstance(inputs, Mapping) else inputs
    return model, batch


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


CALLS = 64
"""Calls of the user's step in which an optimizer must have stepped."""


def _run_steps(observer: Observer, run: Any, model: nn.Module, batch: Any, optimizer: Any, training: Training) -> None:
    """Call the step until all steps of *training* are recorded; one, where nothing is trained.

    A step of training ends with the call in which an optimizer stepped: gradients may be accumulated over
    several calls. Where none steps, each call is one.
    """
    wanted = training.warmup + training.steps if training.mode == "train" else 1
    while len(observer.recording.bounds) < wanted:
        if training.kv_cache:
            batch = fill_cache(observer, model, batch, training.kv_cache)
        _run_step(observer, run, model, batch, optimizer)
        for used in observer.scope.optimizers.seen.values():
            for tensor, label, owner in states(used, model):
                storage = observer.find(tensor)
                if storage is not None and storage.role is None:
                    storage.label, storage.role, storage.owner = label, Role.OPTIMIZER_STATE, owner
        gc.collect()


def _run_step(observer: Observer, run: Any, model: nn.Module, batch: Any, optimizer: Any) -> None:
    scope = observer.scope
    begin, updates = len(observer.recording.ops), scope.updates
    for _ in range(CALLS):
        scope.begin_step()
        with noted_chance(observer.values):
            run(model, batch, optimizer)
        if scope.updates > updates or optimizer is None or not scope.after_backward:
            break
        gc.collect()
    else:
        if not scope.updates:
            raise CaptureError(f"no optimizer steps in {CALLS} calls of the step: pass optimizer=None if that is meant")
    observer.end_step(begin)


def _declare(observer: Observer, model: nn.Module, batch: Any, optimizer: Any) -> None:
    for path, parameter in model.named_parameters():
        observer.declare(parameter, path, Role.PARAMETER, path.rpartition(".")[0])
    for path, buffer in model.named_buffers():
        observer.declare(buffer, path, Role.BUFFER, path.rpartition(".")[0])
    for number, (key, tensor) in enumerate(named_tensors(batch)):
        observer.declare(tensor, key or f"input.{number}", Role.INPUT)
    for tensor, label, owner in states(optimizer, model):
        observer.declare(tensor, label, Role.OPTIMIZER_STATE, owner)
    for path, parameter in model.named_parameters():
        if parameter.grad is not None:
            observer.declare(parameter.grad, f"{path}.grad", Role.GRADIENT, path.rpartition(".")[0])


def _named(observer: Observer, model: nn.Module, batch: Any) -> Iterator[Named]:
    """Yield the tensors of *model*, parameters and buffers first, then plain attributes, and those of *batch*."""
    attributes = (
        (f"{path}.{name}" if path else name, value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    )
    own = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False), *attributes)
    inputs = ((key or f"input_{number}", tensor) for number, (key, tensor) in enumerate(named_tensors(batch)))
    for is_input, tensors in ((False, own), (True, inputs)):
        for path, tensor in tensors:
            storage = observer.find(tensor)
            if storage is not None:
                yield Named(path, (storage, geometry_of(tensor)), is_input)


def _batch_size(batch: Any) -> int:
    tensors = [tensor for _, tensor in named_tensors(batch) if tensor.dim()]
    return int(tensors[0].shape[0]) if tensors else 1


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """Cyclic garbage is collected before and between steps only: lives do not depend on the collector's mood.

    What is there before is frozen: to look through all of it after each step would take longer than a small capture.
    What the caller froze stays so.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.collect()
    if not frozen:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if enabled:
            gc.enable()
