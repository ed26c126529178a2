"""Where in the user's code something went wrong."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from graphsim.errors import CaptureError, GraphSimError
from graphsim.sources.torch.unknown import FRAMEWORK


@contextmanager
def located(model: nn.Module | None = None) -> Iterator[None]:
    """Turn whatever the user's code raises inside into an error that names the module of *model* and the line."""
    try:
        yield
    except GraphSimError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:500]
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise CaptureError(reason, *_place(error, model)) from error


def _place(error: BaseException, model: nn.Module | None) -> tuple[str, str]:
    """Return the path of the innermost module that was being called, and the last line outside of PyTorch."""
    paths = {} if model is None else {id(module): path for path, module in model.named_modules()}
    layer = line = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        layer = paths.get(id(module)) or layer
        if not frame.f_code.co_filename.startswith(FRAMEWORK):
            line = f"{frame.f_code.co_filename}:{number}"
    return layer, line
