"""Sources whose step is captured from a PyTorch model: ``torch:`` (your own) and ``hf:`` (one of transformers)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphsim.core.graph import Graph
from graphsim.errors import UsageError
from graphsim.step.training import Training

PREFIXES = ("torch:", "hf:")


def captured_steps(source: str, training: Training, parameters: Mapping[str, Any]) -> tuple[Graph, Graph]:
    """Return step 1 and the steady step of a captured *source*, trained as *training* says.

    Raises:
        UsageError: an option asks for something that the captured code decides.
        GraphSimError: as `load_torch` and `load_hf`.
    """
    from graphsim.sources import hf, torch

    chosen: dict[str, Any] = {n: getattr(training, n) for n in ("optimizer", "optimizer_impl", "target", "device")}
    plain = Training(**chosen)
    for name, value in training.as_dict().items():
        if value != getattr(plain, name):
            raise UsageError(f"{name} = {value!r} is for specs; of {source} the step is captured as your code runs it")
    load = hf.load_steps if source.startswith(hf.PREFIX) else torch.load_steps
    return load(
        source,
        optimizer=training.optimizer,
        implementation=training.optimizer_impl,
        target="cuda" if training.target == "cuda" else "",
        device=training.device,
        **parameters,
    )
