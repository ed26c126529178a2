"""graphsim: how much memory does training this model take, and what is alive at the peak?

>>> import graphsim as gs
>>> gs.peak("lenet5", batch=64, optimizer="adam").steady.peak_bytes
21901368

Each question takes whatever you have: the name of a shipped spec, a spec file, ``torch:module:function``,
``hf:config.json``, an .onnx file, a graph's .json file, a `Graph`, a networkx DAG, or an ``nn.Module`` with its inputs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphsim.version import __version__

if TYPE_CHECKING:
    from graphsim.answers.diff import Diff, diff
    from graphsim.answers.explain import Explanation, explain
    from graphsim.answers.fit import Fit, fit
    from graphsim.answers.peak import Report, peak
    from graphsim.answers.planned import Comparison, Planned, compare, plan
    from graphsim.answers.replayed import replay
    from graphsim.answers.swept import sweep
    from graphsim.core.graph import Graph, Op, Phase, Role, Tensor
    from graphsim.core.schedule import Schedule
    from graphsim.core.simulation import Simulation, simulate
    from graphsim.errors import GraphSimError
    from graphsim.recompute import strategies
    from graphsim.show.page import Page, report
    from graphsim.sources import Source, load, source_of
    from graphsim.sources.layered import layered
    from graphsim.sources.torch import from_torch
    from graphsim.step.training import Training, training_step

__all__ = [
    "Comparison",
    "Diff",
    "Explanation",
    "Fit",
    "Graph",
    "GraphSimError",
    "Op",
    "Page",
    "Phase",
    "Planned",
    "Report",
    "Role",
    "Schedule",
    "Simulation",
    "Source",
    "Tensor",
    "Training",
    "__version__",
    "compare",
    "diff",
    "explain",
    "fit",
    "from_torch",
    "layered",
    "load",
    "peak",
    "plan",
    "replay",
    "report",
    "simulate",
    "source_of",
    "strategies",
    "sweep",
    "training_step",
]

_HOMES = {
    "answers.diff": ("Diff", "diff"),
    "answers.explain": ("Explanation", "explain"),
    "answers.fit": ("Fit", "fit"),
    "answers.peak": ("Report", "peak"),
    "answers.planned": ("Comparison", "Planned", "compare", "plan"),
    "answers.replayed": ("replay",),
    "answers.swept": ("sweep",),
    "core.graph": ("Graph", "Op", "Phase", "Role", "Tensor"),
    "core.schedule": ("Schedule",),
    "core.simulation": ("Simulation", "simulate"),
    "errors": ("GraphSimError",),
    "recompute": ("strategies",),
    "show.page": ("Page", "report"),
    "sources": ("Source", "load", "source_of"),
    "sources.layered": ("layered",),
    "sources.torch": ("from_torch",),
    "step.training": ("Training", "training_step"),
}
"""Modules and the public names that are imported from them when they are asked for: importing graphsim is free."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            home = import_module(f"{__name__}.{module}")
            value = import_module(f"{home.__name__}.{name}") if name == "strategies" else getattr(home, name)
            globals()[name] = value
            return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
