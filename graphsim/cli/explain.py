"""``graphsim explain``: why CUDA ran out of memory, from PyTorch's message or from a memory snapshot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphsim.cli.options import SETTING, AsJson, Format, takes_setting
from graphsim.cli.output import STDOUT
from graphsim.cli.screen import show, working
from graphsim.errors import UsageError

EXAMPLES = (
    "Examples:\n\n"
    "graphsim explain error.txt\n\n"
    "python train.py 2>&1 | graphsim explain\n\n"
    "graphsim explain error.txt gpt2 --batch 8 --seq 1024 --precision amp-bf16\n\n"
    "graphsim explain snapshot.pickle --json"
)


@takes_setting
def explain(
    told: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="PyTorch's message, a log with it, or a file of torch.cuda.memory._dump_snapshot; -: standard input.",
        ),
    ] = "-",
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What was trained: then the answer names the tensor.")
    ] = "",
    reporter: Format = "",
    as_json: AsJson = False,
    *,
    setting: Any,
) -> None:
    """Say why CUDA ran out of memory: what was asked, what is held, what fragments, and the change that helps most."""
    from graphsim.answers.explain import LIMIT
    from graphsim.answers.explain import explain as run_explain

    if not source and any(setting[name] != default for name, (_, default) in _TRAINING.items()):
        raise UsageError("options of a training are for a source: graphsim explain FILE SOURCE ...")
    content = sys.stdin.buffer.read(LIMIT + 1) if told == STDOUT else Path(told)
    with working("reading"):
        answer = run_explain(content, source, **setting)
    show(answer, as_json, reporter)


_TRAINING = {name: entry for name, entry in SETTING.items() if name not in ("gpu", "settings")}
