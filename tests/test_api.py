"""The public names: few, typed and documented."""

from __future__ import annotations

import inspect
import subprocess
import sys

import graphsim


def test_the_public_names_are_these():
    assert sorted(n for n in graphsim.__all__ if n != "__version__") == [
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


def test_every_public_name_is_documented_and_functions_are_typed():
    for name in graphsim.__all__:
        value = getattr(graphsim, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            assert "return" in value.__annotations__, name


def test_importing_graphsim_loads_no_heavy_dependency():
    heavy = ("torch", "cupy", "networkx", "rich", "typer", "transformers", "onnx", "matplotlib")
    code = f"import sys, graphsim; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
