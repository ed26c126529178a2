"""What mkdocs writes of graphsim itself when it builds the site: reference pages, and the figures of the theory."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import figures
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

GROUPS = {  # the public names of `graphsim`, in the order in which a reader meets them
    "Questions": ("peak", "fit", "explain", "plan", "compare", "diff", "sweep", "replay", "report"),
    "Answers": ("Report", "Fit", "Explanation", "Planned", "Comparison", "Diff", "Page"),
    "Sources": ("load", "source_of", "from_torch", "layered", "Source"),
    "Steps and schedules": ("training_step", "Training", "simulate", "Simulation", "Schedule"),
    "Graphs": ("Graph", "Op", "Tensor", "Phase", "Role"),
    "Errors": ("GraphSimError",),
}
ELSEWHERE = {"strategies": "a module, see how to write one", "__version__": "the version, a string"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, not written."""
    pages = {
        "reference/cli.md": _commands(),
        "reference/python.md": _names(),
        "reference/cuda.md": _scratch(),
        "reference/specs.md": (ROOT / "specs" / "README.md").read_text(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "reference/spec.schema.json": (ROOT / "specs" / "spec.schema.json").read_text(),
    }
    for name, draw in figures.FIGURES.items():
        drawn = io.StringIO()
        draw().savefig(drawn, format="svg")
        pages[f"images/{name}.svg"] = drawn.getvalue()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def _names() -> str:
    """A page that has every public name, from its docstring.

    Raises:
        ValueError: a public name is in no group, or a group has a name that is not public.
    """
    import graphsim

    homes = {name: f"graphsim.{module}.{name}" for module, names in graphsim._HOMES.items() for name in names}
    listed = [name for names in GROUPS.values() for name in names]
    if odd := set(listed) ^ (set(graphsim.__all__) - set(ELSEWHERE)):
        raise ValueError(f"docs/hooks.py: the groups of names and graphsim.__all__ differ in {sorted(odd)}")
    parts = [
        "# Python",
        "`import graphsim as gs`: every name below is one of `gs`. A question takes whatever you have, the name of a",
        "shipped spec, a file, `torch:module:function`, a graph, or an `nn.Module` with its inputs, and the keywords",
        "of a [setting](#graphsim.answers.setting.Setting).",
    ]
    for group, names in GROUPS.items():
        parts += ["", f"## {group}", *(f"\n::: {homes[name]}\n" for name in names)]
        if group == "Questions":
            parts.append("\n::: graphsim.answers.setting.Setting\n")
    return "\n".join(parts) + "\n"


def _scratch() -> str:
    """A page of what the kernels of a GPU take beside operands and results, from the tables and what the rules say."""
    from functools import partial

    from graphsim.sources.torch.kernels import WORKSPACE
    from graphsim.sources.torch.kernels_cuda_none import ELEMENTWISE, NONE, UNKNOWN

    rules: dict[str, list[str]] = {}
    for func, rule in WORKSPACE["cuda"].items():
        said = getattr(rule.func if isinstance(rule, partial) else rule, "__doc__", "") or ""
        rules.setdefault(" ".join(said.split()).replace("``", "`"), []).append(func._schema.name.removeprefix("aten::"))
    parts = [
        "# Kernels on a GPU",
        "What PyTorch's CUDA kernels ask of the allocator beside operands and results, by op of a capture. Places are",
        "under `aten/src/ATen/native`. What has a range instead is on [How right is it?](../accuracy.md).",
        *("", "## With scratch", "", "| ops | scratch, and its source |", "|---|---|"),
        *(f"| {_named(names)} | {said} |" for said, names in rules.items()),
        *("", "## Without", "", "| ops | source |", "|---|---|"),
        *(
            f"| {'all that are elementwise, ' * (place == ELEMENTWISE)}{_named(names)} | {place} |"
            for place, names in NONE.items()
        ),
        *("", "## Not known", "A capture that meets one of these says so.", "", "| ops | why |", "|---|---|"),
        *(f"| {_named(names)} | {why} |" for why, names in UNKNOWN.items()),
    ]
    return "\n".join(parts) + "\n"


def _named(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def _commands() -> str:
    """A page that has what every command says with --help, as typer writes it."""
    command = [sys.executable, "-m", "typer", "graphsim.cli.app", "utils", "docs", "--name", "graphsim"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    text = re.sub(r"^graphsim .*$", r"`\g<0>`", done.stdout, flags=re.MULTILINE)  # the examples
    return "# Commands\n" + text.partition("\n")[2]
