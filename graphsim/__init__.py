"""graphsim: how much memory does training this model take, and what is alive at the peak?

>>> import graphsim as gs
>>> graph = gs.load("resnet50", batch=32)
>>> report = gs.peak(graph, optimizer="adam")
>>> report.steady.peak_bytes  # doctest: +SKIP
"""

from graphsim.errors import GraphSimError
from graphsim.frontends import load
from graphsim.graph import Graph, Op, Phase, Role, Tensor
from graphsim.report import Report, peak
from graphsim.schedule import Schedule
from graphsim.simulation import Simulation, simulate
from graphsim.training import Training, training_step
from graphsim.version import __version__

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
    "load",
    "peak",
    "simulate",
    "training_step",
]
