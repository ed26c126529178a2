"""graphsim: how much memory does training this model take, and what is alive at the peak?

>>> import graphsim as gs
>>> graph = gs.load("resnet50", batch=32)
>>> report = gs.peak(graph, optimizer="adam")
>>> report.steady.peak_bytes  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from graphsim.errors import GraphSimError
from graphsim.frontends import load
from graphsim.graph import Graph, Op, Phase, Role, Tensor
from graphsim.report import Report, peak
from graphsim.schedule import Schedule
from graphsim.simulation import Simulation, simulate
from graphsim.training import Training, training_step
from graphsim.version import __version__

if TYPE_CHECKING:
    from graphsim.frontends.torch import from_torch

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
    "load",
    "peak",
    "simulate",
    "training_step",
]


def __getattr__(name: str) -> Any:
    """Import `from_torch` when it is asked for."""
    if name == "from_torch":
        from graphsim.frontends.torch import from_torch

        return from_torch
    raise AttributeError(f"module 'graphsim' has no attribute '{name}'")
