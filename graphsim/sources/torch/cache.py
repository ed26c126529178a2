"""A cache of keys and values, filled by the model itself: what generating one more token starts from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from graphsim.core.graph import Role
from graphsim.errors import UsageError
from graphsim.sources.torch.observe import Observer

NAMES = ("cache", "past_key_values")
"""What models of transformers call it: since version 5.20, and before."""


def fill_cache(observer: Observer, model: Any, batch: Any, tokens: int) -> dict[str, Any]:
    """Return *batch* with a cache of *tokens* tokens before its own, as ``generate`` has it in its loop.

    Raises:
        UsageError: the model has no such cache.
    """
    takes = inspect.signature(model.forward).parameters
    name = next((name for name in NAMES if name in takes), "")
    if not name or not isinstance(batch, Mapping) or "input_ids" not in batch or "decoder_input_ids" in takes:
        raise UsageError(f"--kv-cache {tokens}: {type(model).__name__} has no cache that its input_ids alone fill")
    ids = batch["input_ids"]
    with torch.no_grad():
        cache = model(input_ids=ids.new_zeros((ids.shape[0], tokens)), use_cache=True)[name]
        mask = ids.new_ones((ids.shape[0], tokens + ids.shape[1]))
    for number, tensor in enumerate(_tensors(cache)):
        storage = observer.find(tensor)
        if storage is not None:
            storage.label, storage.role = f"{name}.{number}", Role.BUFFER
    return {**batch, "attention_mask": mask, name: cache, "use_cache": True}


def _tensors(cache: Any) -> list[torch.Tensor]:
    """Return the tensors in a cache of transformers: a tuple of them, or an object with layers that have some."""
    parts = [vars(layer) for layer in getattr(cache, "layers", ())] or [cache]
    return [leaf for leaf in tree_leaves(parts) if isinstance(leaf, torch.Tensor)]
