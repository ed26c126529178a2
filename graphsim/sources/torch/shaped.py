"""Results that follow from some of their operands, or from none: shapes from masks and lengths, checks, fills."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch

aten = torch.ops.aten

Content = Callable[[torch.Tensor], torch.Tensor]


def _index(args: Any, content: Content) -> torch.Tensor:
    """Indexing with masks: each is as many index vectors as it has dimensions."""
    x, indices = args
    plain: list[torch.Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            with no_dispatch():
                count = int(content(index).count_nonzero())
            plain += [x.new_empty(count, dtype=torch.int64) for _ in range(index.dim())]
        else:
            plain.append(index)
    indexed: torch.Tensor = aten.index.Tensor(x, plain)
    return indexed


def _index_counted(args: Any, count: int) -> torch.Tensor:
    x, indices = args
    plain: list[torch.Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype in (torch.bool, torch.uint8)
        plain += [x.new_empty(count, dtype=torch.int64) for _ in range(index.dim())] if masks else [index]
    indexed: torch.Tensor = aten.index.Tensor(x, plain)
    return indexed


def _masked_select(args: Any, content: Content) -> torch.Tensor:
    x, mask = args
    shape = (x + mask).shape
    with no_dispatch():
        count = int(content(mask).expand(shape).count_nonzero())
    selected: torch.Tensor = x.new_empty(count)
    return selected


def _ctc_loss(args: Any, content: Content) -> tuple[torch.Tensor, torch.Tensor]:
    """Source: aten/src/ATen/native/LossCTC.cpp: a cell for each time and each label, blanks between."""
    scores, _, _, lengths = args[:4]
    if isinstance(lengths, torch.Tensor):
        with no_dispatch():
            lengths = content(lengths).tolist()
    steps, batch = scores.shape[:2]
    return scores.new_empty(batch), scores.new_empty(batch, steps, 2 * max(lengths) + 1)


SHAPED: dict[Any, Callable[[Any, Content], Any]] = {
    aten.index.Tensor: _index,
    aten.masked_select.default: _masked_select,
    aten._ctc_loss.default: _ctc_loss,
    aten._ctc_loss.Tensor: _ctc_loss,
}
"""Ops whose result has a shape that depends on the values of some operands."""


COUNTED: dict[str, Callable[[Any, int], torch.Tensor]] = {
    "aten::index": _index_counted,
    "aten::masked_select": lambda args, count: args[0].new_empty(count),
    "aten::nonzero": lambda args, count: args[0].new_empty((count, args[0].dim()), dtype=torch.int64),
    "torchvision::nms": lambda args, count: args[0].new_empty(count, dtype=torch.int64),
}
"""Ops that select what the numbers decide, by name: (arguments, how many that are) -> result."""


CHECKS: dict[Any, Callable[[Any], bool | None]] = {
    aten.isnan.default: lambda args: False,
    aten.isinf.default: lambda args: False,
    aten.eq.Scalar: lambda args: False if isinstance(args[1], float) and math.isinf(args[1]) else None,
    aten.ne.Scalar: lambda args: True if isinstance(args[1], float) and math.isinf(args[1]) else None,
    aten.eq.Tensor: lambda args: True if args[0] is args[1] else None,
}
"""Ops of unknown numbers that are answered as for finite ones. ``isfinite`` is made of these."""


def checked(func: Any, operands: list[torch.Tensor]) -> bool | None:
    """Return what a check of PyTorch's own hears: numbers are nearly as expected, and no flag of an error is set.

    Source: torch/nn/utils/parametrizations.py, ``_is_orthogonal``; SpectralOps.cpp, ``istft``
    (``is_scalar_tensor_true``).
    """
    if func is aten.allclose.default:
        return True
    flags = func is aten.equal.default and all(t.dim() == 0 and t.dtype is torch.bool for t in operands)
    return False if flags else None


MAX_CHECKED = 2**26
"""Elements of a tensor of such answers that are kept."""

CREATORS = frozenset(
    packet
    for name in ("arange", "full", "zeros", "ones", "linspace", "scalar_tensor", "eye", "tril_indices", "triu_indices")
    if (packet := getattr(aten, name, None))
)
"""Ops without operands whose result is known."""

RANDOM = frozenset({aten.rand, aten.randn, aten.randint, aten.randperm})
"""Ops without operands whose result is drawn."""

FILLS = frozenset(
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("uniform_", "default"),
        ("normal_", "default"),
        ("exponential_", "default"),
        ("bernoulli_", "float"),
        ("random_", "default"),
        ("random_", "from"),
        ("random_", "to"),
    )
)
"""Ops that fill a tensor with random numbers, whatever it held."""
