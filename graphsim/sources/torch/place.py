"""Where in the user's code something went wrong."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed
from torch import nn

from graphsim.errors import CaptureError, GraphSimError
from graphsim.sources.torch.checks import SEVERAL
from graphsim.sources.torch.unknown import FRAMEWORK

DISTRIBUTED = str(Path(torch.distributed.__file__).parent)
"""Where code is that works on tensors of several processes."""

LONG = 200
"""Characters of a message of which only the first sentence is shown."""


@contextmanager
def located(model: nn.Module | None = None) -> Iterator[None]:
    """Turn whatever the user's code raises inside into an error that names the module of *model* and the line."""
    try:
        yield
    except GraphSimError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        if len(text) > LONG:  # PyTorch's begin with a sentence that says it
            text = text.partition(". ")[0][:LONG]
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        layer, line, distributed = _place(error, model)
        if distributed and not torch.distributed.is_initialized():
            reason = f"what torch.distributed shards {SEVERAL} ({reason})"
        raise CaptureError(reason, layer, line) from error


def _place(error: BaseException, model: nn.Module | None) -> tuple[str, str, bool]:
    """Return the path of the innermost module that was being called, the last line outside of PyTorch, and
    whether that line's call led into ``torch.distributed``.
    """
    paths = {} if model is None else {id(module): path for path, module in model.named_modules()}
    layer = line = ""
    distributed = False
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        layer = paths.get(id(module)) or layer
        file = frame.f_code.co_filename
        distributed = distributed or file.startswith(DISTRIBUTED)
        if not file.startswith(FRAMEWORK):
            line, distributed = f"{file}:{number}", False
    return layer, line, distributed
