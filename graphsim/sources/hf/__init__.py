"""Hugging Face configs: the architecture that a local ``config.json`` describes, with its whole training step.

The file is data: it is parsed here, never fetched, and no code that it names is imported or run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphsim.core.graph import Graph
from graphsim.errors import MissingExtraError
from graphsim.sources.spec.expression import Value
from graphsim.sources.torch.versions import need_torch
from graphsim.step.training import Training

if TYPE_CHECKING:
    from graphsim.sources.torch.capture import Capture

PREFIX = "hf:"


def load_hf(
    source: str,
    *,
    first: bool = False,
    optimizer: Any = "adamw",
    target: str = "",
    device: str = "",
    **parameters: Value,
) -> Graph:
    """Return the step graph of ``hf:config.json``, or of a folder that holds one.

    The model is the class named by ``architectures``, else the base model of the ``model_type``, in the
    dtype of the config. Its batch is made up: token ids, masks, images or audio in the config's sizes,
    and labels where the model computes its own loss (else the mean of its first floating output is
    differentiated).

    Args:
        source: ``hf:`` and a path.
        first: return step 1, in which optimizer states are created; else the steady state.
        optimizer, target, device: as `from_torch` takes them.
        parameters: ``batch``, ``seq`` (tokens, audio samples or frames), ``image_size``; any other name
            is a field of the config to change.

    Raises:
        MissingExtraError: transformers is not installed.
        SpecError: the file is not a config that transformers can build.
        UsageError: a parameter does not exist, or has a value that cannot be used.
        CaptureError: the model cannot run without data.
    """
    _need_transformers()
    return _capture(source, optimizer, target, device, parameters).graph(first=first)


def load_steps(source: str, *, training: Training, **parameters: Value) -> tuple[Graph, Graph]:
    """Return step 1 and the steady step of ``hf:config.json``, captured once; see `load_hf`."""
    _need_transformers()
    from graphsim.sources.torch.optimizers import named
    from graphsim.sources.torch.ranks import steps_of

    optimizer = named(training.optimizer, training.optimizer_impl)
    return steps_of(training, lambda one: _capture(source, optimizer, one.target, one.gpu, parameters, one))


def takes(source: str, name: str) -> bool:
    """Whether *name* can be set: a size of the batch, or a field of the config."""
    if name in ("batch", "image_size"):
        return True
    from graphsim.sources.hf.config import read_config

    fields = read_config(source.removeprefix(PREFIX))
    return name in fields or (name == "seq" and "image_size" not in fields)


def stamp(source: str) -> bytes:
    """Return the bytes of the config."""
    file = Path(source.removeprefix(PREFIX))
    return (file / "config.json" if file.is_dir() else file).read_bytes()


def _capture(
    source: str,
    optimizer: Any,
    target: str,
    device: str,
    parameters: dict[str, Value],
    training: Training | None = None,
) -> Capture:
    from graphsim.sources.hf.model import capture_config
    from graphsim.sources.torch.capture import AS_IT_IS, gpu

    on = gpu(target, device)
    return capture_config(source.removeprefix(PREFIX), optimizer, parameters, device=on, training=training or AS_IT_IS)


def _need_transformers() -> None:
    need_torch()
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise MissingExtraError("transformers", "hf") from None
