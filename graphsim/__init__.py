"""graphsim: how much memory does training this model take, and what is alive at the peak?

>>> import graphsim as gs
>>> graph = gs.load("resnet50", batch=32)
>>> report = gs.peak(graph, optimizer="adam")
>>> report.steady.peak_bytes  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphsim.version import __version__

if TYPE_CHECKING:
    from graphsim.answers.peak import Report, peak
    from graphsim.core.graph import Graph, Op, Phase, Role, Tensor
    from graphsim.core.schedule import Schedule
    from graphsim.core.simulation import Simulation, simulate
    from graphsim.errors import GraphSimError
    from graphsim.sources import load
    from graphsim.sources.layered import layered
    from graphsim.sources.torch import from_torch
    from graphsim.step.training import Training, training_step

__all__ = [
    "Graph",
    "GraphSimError",
    "Op",
    "Phase",
    "Report",
    "Role",
    "Schedule",
    "Simulation",
    "Tensor",
    "Training",
    "__version__",
    "from_torch",
    "layered",
    "load",
    "peak",
    "simulate",
    "training_step",
]

_HOMES = {
    "errors": ("GraphSimError",),
    "sources": ("load",),
    "sources.layered": ("layered",),
    "sources.torch": ("from_torch",),
    "core.graph": ("Graph", "Op", "Phase", "Role", "Tensor"),
    "answers.peak": ("Report", "peak"),
    "core.schedule": ("Schedule",),
    "core.simulation": ("Simulation", "simulate"),
    "step.training": ("Training", "training_step"),
}
"""Modules and the public names that are imported from them when they are asked for: importing graphsim is free."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
