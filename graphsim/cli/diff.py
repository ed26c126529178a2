"""The command that compares two steps."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from graphsim.cli.options import (
    Accumulation,
    AsJson,
    Batch,
    DeviceName,
    Mode,
    OptimizerImpl,
    OptimizerName,
    PolicyName,
    PrecisionName,
    Seq,
    Set,
    TargetName,
    captured_steps,
    color,
    is_captured,
    is_step,
    load_source,
    overrides_of,
    training_of,
    width,
)

DIFF_EXAMPLES = (
    "Examples:\n\n"
    "graphsim diff gpt2 gpt2 --batch 8 --b precision=amp-bf16\n\n"
    "graphsim diff resnet50 resnet101 --batch 32\n\n"
    "graphsim peak my.toml --json --largest 0 > memory.json; graphsim diff memory.json my.toml --tolerance 1%"
)

Side = Annotated[
    str,
    typer.Argument(
        help="A spec, a graph's .json file, torch:module:function or hf:config.json as for peak, or a saved result: "
        "the output of graphsim peak --json --largest 0."
    ),
]


def diff(
    a: Side,
    b: Side,
    batch: Batch = None,
    seq: Seq = None,
    settings: Set = None,
    only_b: Annotated[
        list[str] | None,
        typer.Option("--b", metavar="NAME=VALUE", help="For B only: an option below (precision=bf16) or a param."),
    ] = None,
    optimizer: OptimizerName = "adamw",
    optimizer_impl: OptimizerImpl = "",
    precision: PrecisionName = "fp32",
    target: TargetName = "",
    device: DeviceName = "",
    policy: PolicyName = "eager",
    mode: Mode = "train",
    accumulation: Accumulation = 1,
    tolerance: Annotated[str, typer.Option(help="Growth that is accepted: 10MiB, or 1% of A's peak.")] = "0",
    budget: Annotated[
        str, typer.Option(help="Also exit with 1 if B's peak is above this: 16GiB, or 1.1x of A's.")
    ] = "",
    rows: Annotated[int, typer.Option(min=0, help="Tensors to show; 0: all. --json has all.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Say what changed in memory from A to B, tensor by tensor.

    Exit code 1 if a peak of B is larger than A's by more than the tolerance, or above the budget.
    """
    from graphsim.answers.diff import diff as compare
    from graphsim.show.reporters.difference import diff_text
    from graphsim.units import parse_budget

    options: dict[str, Any] = {
        "optimizer": optimizer,
        "optimizer_impl": optimizer_impl,
        "precision": precision,
        "target": target,
        "device": device,
        "mode": mode,
        "accumulation": accumulation,
        "policy": policy,
    }
    params = overrides_of(settings, batch=batch, seq=seq)
    changed = overrides_of(only_b)
    unread = {name for name in changed if name not in options}
    reports = (
        _report(a, params, options),
        _report(
            b,
            {**params, **{name: changed[name] for name in unread}},
            {**options, **{name: value for name, value in changed.items() if name in options}},
        ),
    )
    limit = (
        parse_budget(budget, max(reports[0][step]["peak_bytes"] for step in ("first", "steady"))) if budget else None
    )
    names = (a, " ".join([b, *(only_b or [])]))
    found = compare(*reports, names=names)
    grown = found.exceeds(tolerance)
    above = limit is not None and max(found.steady.b or 0, found.first.b or 0) > limit
    if as_json:
        verdict = {"exceeds_tolerance": grown, "above_budget": above}
        sys.stdout.write(json.dumps({**json.loads(found.to_json()), **verdict}, indent=2) + "\n")
    else:
        text = diff_text(found, tolerance=tolerance, budget=limit, rows=rows or None, width=width(), color=color())
        sys.stdout.write(text)
    if grown or above:
        raise typer.Exit(1)


def _report(source: str, params: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the report of one side, saved or made now, as plain data."""
    from graphsim.answers.diff import is_report, load_report
    from graphsim.answers.peak import peak, report_step

    if is_report(source):
        return load_report(source)
    policy = options["policy"]
    training = training_of(source, **{name: value for name, value in options.items() if name != "policy"})
    if is_captured(source):
        first, step = captured_steps(source, training, params)
        report = report_step(step, first=first, policy=policy, largest=None)
    elif is_step(source):
        report = report_step(load_source(source, params), policy=policy, largest=None)
    else:
        report = peak(load_source(source, params), training, policy=policy, largest=None)
    data: dict[str, Any] = json.loads(report.to_json())
    return data
