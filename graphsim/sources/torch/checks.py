"""Models that a capture would get wrong, noticed before it begins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from graphsim.errors import CaptureError

_SEVERAL = "runs in several processes or on several GPUs, which a capture does not follow: capture the model inside"
_COMPILED = (
    "is compiled, and a capture would show the step without the compiler: capture the model without torch.compile"
)
_CUDNN = 'runs in cuDNN on a GPU, whose reserve a capture does not know; a spec does (op = "lstm" or "gru")'
_SPARSE = "makes sparse gradients, which have no storage that a capture can follow: use sparse=False"


def check_model(model: nn.Module, *, on_gpu: bool) -> None:
    """Check *model*.

    Raises:
        CaptureError: a part of it is compiled, distributed, sparse, or of cuDNN; the message says what to do.
    """
    for path, module in model.named_modules():
        reason = _reason(module, on_gpu)
        if reason:
            raise CaptureError(f"{type(module).__name__} {reason}", path)


def _reason(module: nn.Module, on_gpu: bool) -> str:
    wrappers = _distributed()
    if isinstance(module, wrappers):
        return _SEVERAL
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    compiled = dynamo is not None and isinstance(module, dynamo.OptimizedModule)
    if compiled or getattr(module, "_compiled_call_impl", None) is not None:
        return _COMPILED
    if on_gpu and isinstance(module, nn.RNNBase) and torch.backends.cudnn.enabled:
        return _CUDNN
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return _SPARSE
    return ""


def _distributed() -> tuple[type[nn.Module], ...]:
    found: list[Any] = [nn.DataParallel, nn.parallel.DistributedDataParallel]
    sharded = sys.modules.get("torch.distributed.fsdp")
    found += [getattr(sharded, name) for name in ("FullyShardedDataParallel", "FSDPModule") if hasattr(sharded, name)]
    return tuple(found)


@contextmanager
def only_plain_wrappers() -> Iterator[None]:
    """Refuse wrappers for several processes where they are made: their constructors read every parameter."""

    def refuse(kind: type) -> Any:
        def init(self: Any, *_: Any, **__: Any) -> None:
            raise CaptureError(f"{kind.__name__} {_SEVERAL}")

        return init

    with ExitStack() as stack:
        for kind in _distributed():
            if "__init__" in vars(kind):
                stack.enter_context(patch.object(kind, "__init__", refuse(kind)))
        yield
