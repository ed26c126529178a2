"""``graphsim fit``: does it fit on a GPU, how large can the batch be, and what would save most."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphsim.cli.options import AsJson, Format, Source, takes_setting
from graphsim.cli.screen import end, show, working

EXAMPLES = (
    "Examples:\n\n"
    "graphsim fit gpt2 --gpu t4 --batch 8 --seq 1024\n\n"
    "graphsim fit resnet50 --batch 256 --memory 24GiB --precision amp-bf16 --json\n\n"
    "graphsim fit torch:mypackage.models:make_model --gpu 4090\n\n"
    "graphsim fit gpt2 --gpu a100-80g --batch 64 --strategy auto\n\n"
    "graphsim fit torch:mypackage.models:make_model --gpu a100-80g --gpus 8"
)


@takes_setting
def fit(
    source: Source,
    memory: Annotated[str, typer.Option(help="In place of --gpu: its memory, 24GiB.")] = "",
    strategy: Annotated[
        str, typer.Option(help="Recompute by this strategy: auto, sqrt, blocks, ...", show_default="none")
    ] = "",
    jobs: Annotated[int, typer.Option(min=0, max=1024, help="Processes.", show_default="one per core")] = 0,
    link: Annotated[
        str,
        typer.Option(help="Between the GPUs of a machine: nvlink, pcie, network.", show_default="the card's fastest"),
    ] = "",
    reporter: Format = "",
    as_json: AsJson = False,
    *,
    setting: Any,
) -> None:
    """Say whether a training step fits on a GPU, the largest batch that does, and what would save most.

    With --gpus N, of a model that is not wrapped: every plan that PyTorch has for it, those that fit first, by time.
    Exit code 1 if it does not fit.
    """
    from graphsim.answers.fit import fit as run_fit

    with working("simulating"):
        answer = run_fit(source, memory=memory, strategy=strategy, jobs=jobs, link=link, **setting)
    show(answer, as_json, reporter)
    end(answer.fits)
