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
from graphsim.sources.torch.capture import Capture, capture

PREFIX = "torch:"


def capture_source(
    source: str,
    *,
    optimizer: Any = "adamw",
    device: Device | None = None,
    parameters: Mapping[str, Any],
    change: Callable[[Any], Any] | None = None,
    assume: Mapping[str, Any] | None = None,
) -> Capture:
    """Capture what the factory named by *source* makes; it is called with those *parameters* that it takes.

    This imports and runs the user's code. The factory returns (model, inputs), (model, inputs, step),
    or a model with an ``example_input_array``. *change* is applied to the model first.

    Raises:
        SpecError: there is no such function.
        UsageError: it does not take a parameter, or returns something else.
    """
    factory = _find(source)
    accepted = _accepted(factory, parameters, source)
    made: list[Any] = []

    def model() -> Any:
        result = factory(**accepted)
        made.extend(result if isinstance(result, tuple) else (result,))
        if change is not None:
            change(made[0])
        return made[0]

    def inputs() -> Any:
        if len(made) > 1:
            return made[1]
        example = getattr(made[0], "example_input_array", None)
        if example is None:
            raise UsageError(f"{source} returns a model without inputs: return (model, inputs)")
        return example

    def step() -> Any:
        return made[2] if len(made) > 2 else None

    name = source.removeprefix(PREFIX)
    return capture(
        model,
        inputs,
        optimizer=optimizer,
        loss=None,
        step=None,
        made_step=step,
        name=name,
        device=device,
        assume=assume,
    )


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
