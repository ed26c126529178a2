"""A small perceptron as a graph and as a torch module, and one training loop for both."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from torch_memory import Measured, measure

import graphsim as gs
from graphsim.core.graph import Graph, Phase

SPEC = """
[params]
batch = 96
[inputs]
x = { shape = ["batch", 40] }
label = { shape = ["batch"], dtype = "int64" }
[model]
layers = [
  { op = "linear", out = 200 },
  "relu",
  { op = "linear", out = 300 },
  "gelu",
  { op = "dropout", p = 0.1 },
  { op = "linear", out = 10 },
  { op = "cross_entropy", with = "label" },
]
"""
SCALARS = 24
"""Bytes of number-sized tensors that torch holds for itself: the loss of the step before, wrapped numbers."""


@cache
def graph_of(spec: str = SPEC) -> Graph:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mlp.toml"
        path.write_text(spec)
        return gs.load(str(path))


def simulated(**options: object) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """Return (peak, end) of each phase of step 1 and of step 2, on the CPU."""
    return tuple(phases(first=first, **options) for first in (True, False))  # type: ignore[return-value]


def phases(*, first: bool, spec: str = SPEC, **options: object) -> dict[str, Measured]:
    step = gs.training_step(graph_of(spec), first=first, target="cpu", **options)
    sim = gs.simulate(step)
    return {name: Measured(peak, sim.phase_end_bytes(Phase(name))) for name, peak in sim.phase_peaks().items()}


def model():
    from torch import nn

    wide = nn.Linear(200, 300), nn.GELU(), nn.Dropout(0.1)
    return nn.Sequential(nn.Linear(40, 200), nn.ReLU(), *wide, nn.Linear(300, 10))


def example(dtype=None):
    """Return (module, input, labels)."""
    import torch

    return model().to(dtype), torch.randn(96, 40, dtype=dtype), torch.randint(0, 10, (96,))


def trained(
    optimizer,
    *,
    example=example,
    accumulation=1,
    zero_grad="before-forward",
    set_to_none=True,
    forward=None,
    dtype=None,
    scaler=None,
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """Return (peak, end) of each phase of the first two steps of a real training loop."""
    import torch
    from torch.profiler import record_function

    def run():
        net, x, label = example(dtype)
        opt = optimizer(net.parameters())
        scale = scaler() if scaler else None
        loss_of = forward or (lambda net, x, label: torch.nn.functional.cross_entropy(net(x), label))
        for step in range(2):
            for micro in range(accumulation):
                with record_function(f"##forward {step} {micro}"):
                    if zero_grad == "before-forward" and not micro:
                        opt.zero_grad(set_to_none)
                    loss = loss_of(net, x, label)
                with record_function(f"##backward {step} {micro}"):
                    if zero_grad == "before-backward" and not micro:
                        opt.zero_grad(set_to_none)
                    (scale.scale(loss) if scale else loss).backward()
            with record_function(f"##optimizer {step} 0"):
                if scale:
                    scale.step(opt)
                    scale.update()
                else:
                    opt.step()
                if zero_grad == "after-step":
                    opt.zero_grad(set_to_none)

    measured = measure(run)
    return tuple(_by_phase(measured, step) for step in "01")  # type: ignore[return-value]


def _by_phase(measured: dict[str, Measured], step: str) -> dict[str, Measured]:
    result = {}
    for name in ("forward", "backward", "optimizer"):
        parts = [m for key, m in measured.items() if key.split()[:2] == [name, step]]
        if parts:
            result[name] = Measured(max(part.peak for part in parts), parts[-1].end)
    return result


def difference(ours: dict[str, Measured], theirs: dict[str, Measured]) -> int:
    """Return the largest difference of any peak or end."""
    assert ours.keys() == theirs.keys()
    return max(abs(a - b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True))
