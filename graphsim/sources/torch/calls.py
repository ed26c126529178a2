"""Calls into ATen as Python text: what a program that makes them again is written of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch

from graphsim.sources.torch.record import Call

LARGEST = 1024
"""Elements of a tensor that Python code makes of numbers and that is written with them."""

_READS = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
_STATISTICS = frozenset(("running_mean", "running_var"))
_LAZY = frozenset((torch.ops.aten._conj.default, torch.ops.aten._neg_view.default))
"""Views of which the memory alone does not say what they hold."""
_NAMED = (torch.dtype, torch.layout, torch.memory_format)
_PLAIN = (bool, int, str, type(None))


class _UnwrittenError(Exception):
    """A call that has no text."""


def call_of(func: Any, args: Any, kwargs: Any, result: Any, device: str) -> Call:
    """Return the call of *func*; tensors on *device*, 'cpu' or 'cuda', are made where the model is."""
    if func is torch.ops.aten.lift_fresh.default:
        return _made_of_numbers(args[0])
    if not isinstance(func, torch._ops.OpOverload):
        return Call("", None, False, (), str(func), f"{func} is no op of one kernel")
    if func in _LAZY:
        return Call("", None, False, (), str(func), f"{func} is put off until its result is read")
    numbers = count()
    try:
        positional = [_text(value, numbers, device) for value in args]
        named = [f"{name}={_text(value, numbers, device)}" for name, value in kwargs.items()]
        reason = "it reads numbers from tensors, by which the step may go another way" if _reads(func, result) else ""
    except _UnwrittenError as error:
        positional, named, reason = [], [], str(error)
    function = str(func) if func.namespace == "aten" else f"torch.ops.{func}"
    text = f"{function}({', '.join((*positional, *named))})"
    random = torch.Tag.nondeterministic_seeded in func.tags
    return Call(text, _pattern(result, count()), random, _statistics(func, args), function, reason)


def _made_of_numbers(tensor: torch.Tensor) -> Call:
    if tensor.numel() > LARGEST:
        return Call("", None, False, (), "torch.tensor", f"it makes a tensor of {tensor.numel():,} numbers")
    with no_dispatch():
        numbers = tensor.tolist()
    try:
        text = f"torch.tensor({_text(numbers, iter(()), '')}, dtype={tensor.dtype})"
    except _UnwrittenError as error:
        return Call("", None, False, (), "torch.tensor", str(error))
    return Call(text, 0, False, (), "torch.tensor")


def _text(value: Any, numbers: Iterator[int], device: str) -> str:
    """Return *value* as Python has it, for ``str.format``; tensors are place holders with the next of *numbers*."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_conj() or value.is_neg():
            raise _UnwrittenError(f"an operand is not dense ({value.layout}, {value.dtype})")
        return f"{{{next(numbers)}}}"
    if isinstance(value, float):
        return repr(value) if value - value == 0 else f"float('{value}')"
    if isinstance(value, _PLAIN):
        return repr(value).replace("{", "{{").replace("}", "}}")
    if isinstance(value, _NAMED):
        return str(value)
    if isinstance(value, torch.device):
        return "{device}" if value.type == device else f"torch.device('{value.type}')"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(entry, numbers, device) for entry in value)}]"
    raise _UnwrittenError(f"an argument is a {type(value).__name__}")


def _pattern(result: Any, numbers: Iterator[int]) -> Any:
    if isinstance(result, torch.Tensor):
        return next(numbers)
    if isinstance(result, list | tuple):
        return tuple(_pattern(entry, numbers) for entry in result)
    return None


def _reads(func: Any, result: Any) -> bool:
    return not _READS.isdisjoint(func.tags) or isinstance(result, bool | int | float)


def _statistics(func: Any, args: Any) -> tuple[int, ...]:
    """Return the operands of *func* that are running statistics, counted as `Executed.inputs` are."""
    number, found = 0, []
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.name in _STATISTICS and isinstance(value, torch.Tensor):
            found.append(number)
        number += sum(isinstance(one, torch.Tensor) for one in (value if isinstance(value, list | tuple) else (value,)))
    return tuple(found)
