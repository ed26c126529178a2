"""``torch:package.module:factory``: the user's own function that makes a model and its batch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from graphsim.core.devices import Device
from graphsim.errors import SpecError, UsageError, suggest
from graphsim.sources.torch.capture import AS_IT_IS, Capture, capture, gpu
from graphsim.sources.torch.optimizers import named
from graphsim.step.training import Training

PREFIX = "torch:"

MADE = ("model", "inputs", "loss", "step", "optimizer", "optimizers")
"""What a factory may return in a dict, each as `from_torch` takes it; *optimizers* is a list or dict of several, which
the step gets in place of one."""


def capture_source(
    source: str,
    *,
    optimizer: Any = "adamw",
    device: Device | None = None,
    parameters: Mapping[str, Any],
    change: Callable[[Any], Any] | None = None,
    step: Callable[..., Any] | None = None,
    calls: bool = False,
    assume: Mapping[str, Any] | None = None,
    training: Training | None = None,
) -> Capture:
    """Capture what the factory named by *source* makes; it is called with those *parameters* that it takes.

    This imports and runs the user's code. The factory returns (model, inputs), (model, inputs, step), a model with an
    ``example_input_array``, or a dict of `MADE`. *change* is applied to the model first. A *step*
    is run instead of the factory's, *calls* are noted as `capture` does. A *training* says what is
    done to the model, the optimizer and the device.

    Raises:
        SpecError: there is no such function.
        UsageError: it does not take a parameter, or returns something else.
    """
    factory = _find(source)
    accepted = _accepted(factory, parameters, source)
    made: dict[str, Any] = {}

    def model() -> Any:
        made.update(_made(factory(**accepted), source) | ({} if step is None else {"step": step}))
        if change is not None:
            change(made["model"])
        return made["model"]

    def inputs() -> Any:
        batch = made.pop("inputs", None)
        batch = getattr(made["model"], "example_input_array", None) if batch is None else batch
        if batch is None:
            raise UsageError(f"{source} returns a model without inputs: return (model, inputs)")
        return batch

    if training is not None:
        optimizer, device = named(training.optimizer, training.optimizer_impl), gpu(training.target, training.gpu)
    return capture(
        model,
        inputs,
        optimizer=optimizer,
        loss=None,
        step=None,
        words=lambda: {name: made[name] for name in ("loss", "step", "optimizer") if made.get(name) is not None},
        name=source.removeprefix(PREFIX),
        calls=calls,
        device=device,
        assume=assume,
        training=training or AS_IT_IS,
    )


def _made(result: Any, source: str) -> dict[str, Any]:
    """Return what a factory returned by the names of `MADE`."""
    if not isinstance(result, Mapping):
        return dict(zip(("model", "inputs", "step"), result if isinstance(result, tuple) else (result,), strict=False))
    for name in result:
        if name not in MADE:
            raise UsageError(f"{source} returns a dict with '{name!s:.40}'; {suggest(str(name), MADE)}")
    if "model" not in result:
        raise UsageError(f"{source} returns a dict without 'model'")
    made = dict(result)
    if "optimizers" in made:
        if "optimizer" in made:
            raise UsageError(f"{source} returns both 'optimizer' and 'optimizers': name one")
        made["optimizer"] = made.pop("optimizers")
    return made


def takes(source: str, name: str) -> bool:
    """Whether the factory that *source* names takes a parameter *name*. This imports the user's code."""
    known = inspect.signature(_find(source)).parameters
    return name in known or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())


def stamp(source: str) -> bytes:
    """Return the text of the module that holds *source*, which is not imported; empty if it is not found."""
    names = source.removeprefix(PREFIX).partition(":")[0].split(".")
    for folder in ("", *sys.path):
        path = Path(folder, *names)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file.read_bytes()
    return b""


def _find(source: str) -> Callable[..., Any]:
    module_name, _, attribute = source.removeprefix(PREFIX).partition(":")
    if not module_name or not attribute:
        raise SpecError("write torch:package.module:function", source)
    here = str(Path.cwd())
    if here not in sys.path:  # as ``python -m`` does
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise SpecError(f"cannot import {module_name}: {error}", source) from error
    except AttributeError:
        names = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
        raise SpecError(f"module {module_name} has no '{attribute}'; {suggest(attribute, names)}", source) from None
    if not callable(found):
        raise SpecError(f"'{attribute}' is no function", source)
    return found  # type: ignore[no-any-return]


def _accepted(factory: Callable[..., Any], parameters: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    known = inspect.signature(factory).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return parameters
    for name in parameters:
        if name not in known:
            raise UsageError(f"{source} takes no '{name}'; {suggest(name, known)}")
    return parameters
