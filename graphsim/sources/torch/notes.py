"""What a step did that a number alone does not say: for the header and the warnings of every output."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from graphsim.sources.torch.optimizers import Optimizers
from graphsim.sources.torch.unknown import Policy
from graphsim.sources.torch.values import Values


@contextmanager
def observed_casts() -> Iterator[dict[str, None]]:
    """Yield the dtypes to which autocast was on inside, in order."""
    seen: dict[str, None] = {}
    enter: Any = torch.autocast.__enter__

    def noted(self: Any) -> Any:
        if self._enabled:
            seen.setdefault(str(self.fast_dtype).removeprefix("torch."))
        return enter(self)

    with patch.object(torch.autocast, "__enter__", noted):
        yield seen


@contextmanager
def noted_chance(values: Values) -> Iterator[None]:
    """Note if the code inside draws random numbers in Python, by which it may decide."""
    before, begin = (random.getstate(), _numpy_state()), values.policy.position()
    values.running = True
    try:
        yield
    finally:
        values.running = False
        if (random.getstate(), _numpy_state()) != before:
            chance = "the step draws random numbers in Python: if it decides by them, this is one case of several"
            values.policy.note(chance)
            values.policy.vary(chance, begin)


def _numpy_state() -> tuple[Any, ...]:
    state: Any = np.random.get_state()  # noqa: NPY002  (it is the user's code that draws from it)
    name, key, *rest = state
    return name, bytes(key), *rest


def note_leftovers(model: nn.Module, optimizers: Optimizers, policy: Policy) -> None:
    """Note gradients that outlive the step although no optimizer has their parameters."""
    owned = optimizers.parameters()
    if not owned:
        return
    kept = [path for path, p in model.named_parameters() if p.grad is not None and id(p) not in owned]
    if kept:
        policy.note(f"gradients of {len(kept)} parameters are kept that no optimizer reads, such as {kept[0]}")
