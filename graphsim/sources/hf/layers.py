"""Models that are a stack of equal layers: captured with few of them, told from one to the next.

To capture a layer takes as long whether it is the first or the eightieth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import nn

from graphsim.errors import GraphSimError
from graphsim.sources.spec.expression import Value
from graphsim.sources.torch.capture import Capture
from graphsim.sources.torch.deeper import SHALLOW, UnlikeLayersError, deepened, same

WORTH = 20
"""Layers from which on it takes less to capture two shallow models, one to tell from and one to check by."""


class Stack(NamedTuple):
    """The list of layers of a model.

    Attributes:
        path: of the list, ``model.layers``.
        depth: how many there are.
    """

    path: str
    depth: int


_TOLD: dict[Hashable, Mapping[str, Any] | None] = {}
"""By model and training, whatever the batch: what changes of a capture's attributes; None where a capture with one more
layer was not what the one without it told."""


def of_few_layers(
    config: Any,
    make: Callable[[Any], nn.Module],
    configured: Callable[..., Any],
    capture: Callable[[Any], Capture],
    training: Hashable,
) -> Capture | None:
    """Return the capture of a deep model, told from that of a shallow one; None if it must be captured as it is.

    Args:
        config: of the model.
        make: makes a model of a config.
        configured: makes a config with changed fields.
        capture: captures the model of a config.
        training: what *capture* does with it.
    """
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < WORTH:
        return None
    what = (training, type(config), config.to_json_string())
    if _TOLD.get(what, {}) is None:
        return None
    try:
        stack, shallow = _shallow(config, make, configured)
        one = capture(shallow[0])
        if what not in _TOLD:
            other = capture(shallow[1])
            if not same(deepened(one.recording, stack.path, 1), other.recording):
                raise UnlikeLayersError("one more layer does not do what the others tell")
            _TOLD[what] = _changed(one.attributes, other.attributes, stack.depth - SHALLOW)
        recording = deepened(one.recording, stack.path, stack.depth - SHALLOW)
        return replace(one, recording=recording, attributes={**one.attributes, **(_TOLD[what] or {})})
    except UnlikeLayersError:
        _TOLD[what] = None
        return None


def _changed(one: Mapping[str, Any], other: Mapping[str, Any], more: int) -> dict[str, Any]:
    """Return those attributes that count layers, such as ``3 x LlamaDecoderLayer``, as they are with so many *more*."""
    different = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    if different not in ([], ["parallel"]) or len(one.get("parallel", ())) != len(other.get("parallel", ())):
        raise UnlikeLayersError(f"captures differ in {', '.join(different)}")
    return {name: [_counted(*words, more) for words in zip(one[name], other[name], strict=True)] for name in different}


def _counted(one: str, other: str, more: int) -> str:
    """Return the words of a model with *more* layers than that of *one*, where *other* is of one with one more."""
    first, second = (re.split(r"(\d+)", words) for words in (one, other))
    if first[::2] != second[::2]:
        raise UnlikeLayersError(f"'{one}' and '{other}'")
    counts = (int(few) + (int(many) - int(few)) * more for few, many in zip(first[1::2], second[1::2], strict=True))
    return "".join(word for pair in zip_longest(first[::2], map(str, counts), fillvalue="") for word in pair)


def _shallow(config: Any, make: Callable[[Any], nn.Module], configured: Callable[..., Any]) -> tuple[Stack, list[Any]]:
    """Return the stack of the model of *config*, and configs of the same with the least layers, and one more.

    Raises:
        UnlikeLayersError: it has no stack of equal layers.
    """
    try:
        with torch.device("meta"):
            full = make(config)
            stack = stack_of(full, config)
            shallow = [configured(**changes_to(depth, config)) for depth in (SHALLOW, SHALLOW + 1)]
            if stack and all(is_shallow(make(one), full, stack) for one in shallow):
                return stack, shallow
    except (GraphSimError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UnlikeLayersError(str(error)) from error  # what is wrong with it is said where it is captured
    raise UnlikeLayersError("layers differ")


Facts = dict[tuple[str, str], Any]
"""Of each module below a path, by its name there: what it is, its parameters, buffers and settings."""


def stack_of(model: nn.Module, config: Any) -> Stack | None:
    """Return the stack of *model*, if all that its config repeats is one list of layers that are equal."""
    depth = getattr(config, "num_hidden_layers", None)
    if type(depth) is not int or config.get_text_config() is not config:
        return None
    lists = [path for path, one in model.named_modules() if isinstance(one, nn.ModuleList) and len(one) == depth]
    if len(lists) != 1:
        return None
    layers = [_facts(layer) for layer in model.get_submodule(lists[0]).children()]
    return Stack(lists[0], depth) if _alike(layers, range(depth)) else None


def is_shallow(model: nn.Module, full: nn.Module, stack: Stack) -> bool:
    """Whether *model* is *full* with fewer of its layers, and differs in nothing else."""
    fewer = stack_of(model, model.config)
    if fewer is None or fewer.path != stack.path:
        return False
    layers = [_facts(each.get_submodule(f"{stack.path}.0")) for each in (model, full)]
    beside = [
        {key: fact for key, fact in _facts(each).items() if not key[0].startswith(f"{stack.path}.")}
        for each in (model, full)
    ]
    return _alike(layers) and _alike(beside, (fewer.depth, stack.depth))


def changes_to(depth: int, config: Any) -> dict[str, Value]:
    """Return the fields to change for *depth* layers.

    Raises:
        ValueError: the config tells layers apart.
    """
    fields = config.to_dict()
    changes: dict[str, Any] = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): depth}
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            if any(entry != value[0] for entry in value):
                raise ValueError(f"layers differ in {name}")
            changes[name] = value[:depth]
    return changes


def _facts(module: nn.Module) -> Facts:
    return {(path, name): fact for path, one in module.named_modules() for name, fact in _own(one)}


def _own(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield "type", type(module)
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield name, (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
    for name, value in vars(module).items():
        if not name.startswith("_") and isinstance(value, bool | int | float | str | tuple | list | NoneType):
            yield name, value


def _alike(each: list[Facts], numbers: Any = ()) -> bool:
    """Whether *each* says the same, but for settings that are the number of each (its place, or how many)."""
    first = each[0]
    if any(facts.keys() != first.keys() for facts in each):
        return False
    counts = list(numbers)
    for key, fact in first.items():
        said = [facts[key] for facts in each]
        if any(one != fact for one in said) and said != counts:
            return False
    return True
