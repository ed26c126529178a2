"""The command that answers whether a model fits on a GPU."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from graphsim.cli.options import (
    Accumulation,
    AsJson,
    Batch,
    Mode,
    OptimizerImpl,
    OptimizerName,
    PrecisionName,
    Seq,
    Set,
    SetToNone,
    is_step,
    load_source,
    overrides_of,
    working,
)
from graphsim.errors import UsageError
from graphsim.units import parse_budget

FIT_EXAMPLES = (
    "Examples:\n\n"
    "graphsim fit gpt2 --gpu t4 --batch 8 --seq 1024\n\n"
    "graphsim fit resnet50 --batch 256 --memory 24GiB --precision amp-bf16 --json\n\n"
    "graphsim fit gpt2 --gpu a100-80g --batch 64 --strategy auto"
)


def fit(
    spec: Annotated[str, typer.Argument(help="A spec file, a shipped spec's name, or an .onnx file.")],
    gpu: Annotated[str, typer.Option(help="A GPU of the catalogue: t4, a100-80g, h100-80g, ...")] = "",
    memory: Annotated[str, typer.Option(help="Or its memory: 24GiB.")] = "",
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    optimizer: OptimizerName = "adamw",
    optimizer_impl: OptimizerImpl = "",
    precision: PrecisionName = "fp32",
    mode: Mode = "train",
    accumulation: Accumulation = 1,
    set_to_none: SetToNone = True,
    strategy: Annotated[
        str, typer.Option(help="Recompute by this strategy: auto, sqrt, blocks, ...", show_default="none")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say whether a training step fits on a GPU, the largest batch that does, and what would save most.

    Exit code 1 if it does not fit.
    """
    from graphsim.answers.fit import fit as run_fit
    from graphsim.core.devices import device_of
    from graphsim.show.reporters.text import fit_text
    from graphsim.step.training import Training

    if bool(gpu) == bool(memory):
        raise UsageError("say either --gpu NAME or --memory SIZE, for example --gpu a100-80g or --memory 24GiB")
    if is_step(spec):
        raise UsageError(f"{spec} is a graph: fit changes a spec's batch; see graphsim peak --allocator torch")
    size = device_of(gpu, "cuda").memory if gpu else parse_budget(memory)
    training = Training(
        optimizer=optimizer,
        optimizer_impl=optimizer_impl,
        precision=precision,
        device=gpu,
        mode=mode,  # type: ignore[arg-type]
        accumulation=accumulation,
        set_to_none=set_to_none,
    )
    params: dict[str, Any] = dict(overrides_of(settings, batch=batch, seq=seq))
    with working("simulating"):
        answer = run_fit(
            lambda changed: load_source(spec, dict(changed), mode), params, training, memory=size, strategy=strategy
        )
    sys.stdout.write(json.dumps(answer.as_dict(), indent=2) + "\n" if as_json else fit_text(answer))
    if not answer.fits:
        raise typer.Exit(1)
