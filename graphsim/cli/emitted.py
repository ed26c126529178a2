"""``graphsim plan --emit``: the plan as a file of plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from graphsim.cli.output import write_output
from graphsim.cli.screen import clear, progress, say, tell
from graphsim.errors import UsageError

if TYPE_CHECKING:
    from graphsim.emit import Emission
    from graphsim.emit.capture import Recapturable
    from graphsim.emit.step import EmittedStep
    from graphsim.sources import Source

FORMS = ("torch", "checkpoints")


class Wanted(NamedTuple):
    """What is to be planned, and how; see ``graphsim plan``."""

    budget: str
    strategy: str
    options: str
    costs: str
    reorder: bool


def emit(source: str, form: str, wanted: Wanted, output: Path | None, as_json: bool, setting: Any) -> None:
    """Write the plan as a step, or as checkpoints of modules.

    Raises:
        GraphSimError: it cannot be made, or not be written.
    """
    from graphsim.answers.setting import asked
    from graphsim.emit.capture import captured_source

    if form not in FORMS:
        named = f"--emit {form[:40]!r}: write --emit torch or --emit checkpoints"
        raise UsageError(named if form else "--output is for --emit torch")
    if not source.startswith("torch:"):
        raise UsageError(
            f"{source[:80]} is no PyTorch model: --emit {form} needs torch:package.module:function, which returns "
            "(model, inputs), so that the calls can be named and the plan be verified"
        )
    if not wanted.budget and wanted.strategy == "auto":
        raise UsageError("plan needs a --budget, for example 8GiB or 0.8x; or a --strategy that has a way of its own")
    question = asked(source, None, setting)
    captured = captured_source(question.source, question.training, costs=wanted.costs)
    try:
        if form == "torch":
            _show_step(_step(captured, question.source, wanted, output), output, as_json)
        else:
            _show_checkpoints(_checkpoints(captured, wanted), output, as_json)
    finally:
        clear()


def _step(captured: Recapturable, source: Source, wanted: Wanted, output: Path | None) -> EmittedStep:
    from graphsim.answers.planned import plan
    from graphsim.emit.step import emit_step

    captured.program  # noqa: B018  what cannot be written is said before it is planned
    made = plan(
        captured.graph,
        budget=wanted.budget,
        strategy=wanted.strategy,
        options=wanted.options,
        reorder=wanted.reorder,
        emittable=True,
        progress=progress(),
    )
    clear()
    if made.witness:
        raise made.witness.error()
    module = output.stem if output and output.stem.isidentifier() else "planned"
    return emit_step(captured, made.plan, module=module)


def _checkpoints(captured: Recapturable, wanted: Wanted) -> Emission:
    from graphsim.answers.plan import read_budget
    from graphsim.emit import emit_plan, emit_within
    from graphsim.options import configure
    from graphsim.recompute.plan import make_plan
    from graphsim.recompute.strategies import STRATEGIES

    if wanted.reorder:
        raise UsageError("--reorder: a checkpoint runs a module as it is; --emit torch runs ops in any order")
    limit = read_budget(wanted.budget, captured.graph) if wanted.budget else None
    if wanted.strategy == "auto":
        return emit_within(captured, limit or 0, progress())
    return emit_plan(captured, make_plan(captured.graph, configure(STRATEGIES[wanted.strategy], wanted.options), limit))


def _show_step(made: EmittedStep, output: Path | None, as_json: bool) -> None:
    from graphsim.units import format_bytes

    plan, again = made.plan, sum(made.again.values())
    facts = {
        "stored_peak_bytes": made.stored_peak,
        "verified_peak_bytes": made.verified_peak,
        "again": dict(made.again),
    }
    lines = [
        f"{plan.strategy}: {again:,} ops run again, peak {format_bytes(plan.peak_bytes)} ({plan.peak_bytes:,} bytes), "
        f"{plan.overhead:+.2%} compute; without, {format_bytes(made.stored_peak)}",
        f"  verified: captured with this file, the step peaks at {made.verified_peak:,} bytes and runs the plan's ops",
    ]
    _write(made.text, plan, facts, lines, output, as_json)


def _show_checkpoints(made: Emission, output: Path | None, as_json: bool) -> None:
    from graphsim.units import format_bytes

    plan = made.plan
    facts = {"modules": list(made.wrapped), "stored_peak_bytes": made.stored_peak}
    facts |= {"scheduled_peak_bytes": made.scheduled_peak}
    lines = [
        f"{plan.strategy}: {len(made.wrapped)} modules recomputed, peak {format_bytes(plan.peak_bytes)} "
        f"({plan.peak_bytes:,} bytes), {plan.overhead:+.2%} compute; without, {format_bytes(made.stored_peak)}",
        "  verified: this is the peak of the model captured with the file applied",
    ]
    if made.scheduled_peak not in (None, plan.peak_bytes):
        lines.append(
            f"  the schedule it stands for peaks at {made.scheduled_peak:,} bytes: a checkpoint runs a module again "
            "from its beginning and holds all that its backward needs"
        )
    _write(made.text, plan, facts, lines, output, as_json)


def _write(text: str, plan: Any, facts: dict[str, Any], lines: list[str], output: Path | None, as_json: bool) -> None:
    """Write the file, and say what it does; beside the file itself on standard output, on standard error."""
    from graphsim.answers.plan import plan_as_dict

    if output:
        write_output(output, text.encode())
    if as_json:
        facts |= {"file": str(output) if output else text}
        say(json.dumps(plan_as_dict(plan) | {"emitted": facts}, indent=2) + "\n")
        return
    if not output:
        say(text)
    if output and str(output) != "-":
        say("\n".join([*lines, f"  written: {output}"]) + "\n")
    else:
        tell("\n".join(lines))
