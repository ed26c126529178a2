"""``graphsim replay``: execute the predicted mallocs and frees for real."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphsim.cli.options import AsJson, First, Format, Policy, Source, takes_setting
from graphsim.cli.screen import end, show, working

EXAMPLES = (
    "Examples:\n\n"
    "graphsim replay resnet50 --batch 8 --backend numpy\n\n"
    "graphsim replay gpt2 --seq 512 --backend cupy --lockstep\n\n"
    "graphsim replay vgg16 --batch 8 --backend cupy --backend-options limit=4GiB --json"
)


@takes_setting
def replay(
    source: Source,
    backend: Annotated[str, typer.Option(help="numpy (host), cupy or torch (GPU).")] = "numpy",
    backend_options: Annotated[
        str, typer.Option(metavar="NAME=VALUE,...", help="Its options: touch=True (numpy), limit=8GiB (cupy).")
    ] = "",
    lockstep: Annotated[
        bool, typer.Option("--lockstep", help="Tell the model which of equal free chunks CuPy's pool took.")
    ] = False,
    compute: Annotated[bool, typer.Option("--compute", help="Execute and time the arithmetic too.")] = False,
    policy: Policy = "eager",
    first: First = False,
    reporter: Format = "",
    as_json: AsJson = False,
    *,
    setting: Any,
) -> None:
    """Execute the predicted mallocs and frees of a step for real, and compare event by event.

    Exit code 1 if memory runs out or the bytes in use differ anywhere.
    """
    from graphsim.answers.replayed import replay as run_replay
    from graphsim.core.liveness import parse_policy

    with working("replaying"):
        result = run_replay(
            source,
            backend=backend,
            backend_options=backend_options,
            lockstep=lockstep,
            compute=compute,
            policy=parse_policy(policy),
            first=first,
            **setting,
        )
    show(result, as_json, reporter)
    end(result.matches)
