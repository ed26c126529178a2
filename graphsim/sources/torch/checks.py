"""What a capture would get wrong, noticed before it begins or where it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphsim.errors import CaptureError
from graphsim.sources.torch.unknown import python_line

SEVERAL = (
    "runs in several processes or on several GPUs: capture the model inside, or let its factory wrap it and say how "
    "many GPUs there are (--gpus N, gpus=N)"
)
OLD = "is not captured on several GPUs: use fully_shard or DistributedDataParallel"
_COMPILED = (
    "is compiled, and a capture would show the step without the compiler: capture it without torch.compile "
    "(TORCH_COMPILE_DISABLE=1)"
)
_FUSED_BY_ITSELF = "torch.nn.attention"
"""Where functions are defined that are one op to a capture, compiled or not: FlexAttention."""
_SPARSE = "makes sparse gradients, which have no storage that a capture can follow: use sparse=False"


def check_model(model: nn.Module, *, ranked: bool = False) -> None:
    """Check *model*, which is that of one rank of several if *ranked*.

    Raises:
        CaptureError: a part of it is compiled, distributed or sparse; the message says what to do.
    """
    for path, module in model.named_modules():
        reason = _reason(module, ranked)
        if reason:
            raise CaptureError(f"{type(module).__name__} {reason}", path)


def _reason(module: nn.Module, ranked: bool) -> str:
    if isinstance(module, _refused(ranked)):
        return OLD if ranked else SEVERAL
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    compiled = dynamo is not None and isinstance(module, dynamo.OptimizedModule)
    if compiled or getattr(module, "_compiled_call_impl", None) is not None:
        return _COMPILED
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return _SPARSE
    return ""


def _of_fsdp(*names: str) -> list[type[nn.Module]]:
    sharded = sys.modules.get("torch.distributed.fsdp")
    return [getattr(sharded, name) for name in names if hasattr(sharded, name)]


def _distributed() -> tuple[type[nn.Module], ...]:
    wrappers = _of_fsdp("FullyShardedDataParallel", "FSDPModule")
    return (nn.DataParallel, nn.parallel.DistributedDataParallel, *wrappers)


def _refused(ranked: bool) -> tuple[type[nn.Module], ...]:
    """Return the wrappers that are not captured: of one rank of several, those for which there are better ones."""
    return (nn.DataParallel, *_of_fsdp("FullyShardedDataParallel")) if ranked else _distributed()


def is_wrapped(model: nn.Module) -> bool:
    """True if a part of *model* is wrapped for several processes, or a parameter is sharded."""
    return any(isinstance(module, _distributed()) for module in model.modules()) or any(
        is_traceable_wrapper_subclass(parameter) for parameter in model.parameters()
    )


@contextmanager
def only_plain_wrappers(*, ranked: bool = False) -> Iterator[None]:
    """Refuse wrappers for several processes where they are made: their constructors read every parameter.

    The code of one rank of several, if *ranked*, may make those that are captured.
    """

    def refuse(kind: type) -> Any:
        def init(self: Any, *_: Any, **__: Any) -> None:
            raise CaptureError(f"{kind.__name__} {OLD if ranked else SEVERAL}")

        return init

    with ExitStack() as stack:
        for kind in _refused(ranked):
            if "__init__" in vars(kind):
                stack.enter_context(patch.object(kind, "__init__", refuse(kind)))
        yield


@contextmanager
def nothing_compiled(layer: Callable[[], str]) -> Iterator[None]:
    """Refuse compiled functions where they are called; *layer* says which module is running.

    While an observer stands before the dispatcher, PyTorch's compiler steps aside and nothing says so.
    """
    from torch._dynamo import eval_frame  # an observer needs it anyway

    original: Any = eval_frame._callback_from_stance

    def asked(callback: Any) -> Any:
        chosen = original(callback)
        if chosen is not None and chosen is not False:
            called = sys._getframe(1).f_locals.get("fn")
            if not str(getattr(called, "__module__", "")).startswith(_FUSED_BY_ITSELF):
                name = getattr(called, "__qualname__", type(called).__name__)
                raise CaptureError(f"{name} {_COMPILED}", layer(), python_line())
        return chosen

    with patch.object(eval_frame, "_callback_from_stance", asked):
        yield
