"""Why CUDA ran out of memory: a message or a snapshot of PyTorch, explained; with a source, which tensor it was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from graphsim.answers.explain.cause import Cause, Kind, cause_of, notes_of
from graphsim.answers.explain.moment import Moment, read_message
from graphsim.answers.explain.ours import Suspect, suspects
from graphsim.answers.explain.snapshot import LIMIT, read_snapshot
from graphsim.answers.fit import Fit, fit_of
from graphsim.answers.measures import Measure
from graphsim.answers.setting import Asked, Setting, asked, spelled_out
from graphsim.core.devices import device_of
from graphsim.core.files import check_file
from graphsim.display import Answer
from graphsim.errors import SpecError, UsageError
from graphsim.units import format_bytes

__all__ = ["LIMIT", "Explanation", "explain"]

SCHEMA = "graphsim-explain/1"
_LOG = 1 << 23
"""Bytes of a log that are searched at most."""


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Answer):
    """The answer.

    Attributes:
        moment: what the message or the snapshot says, in bytes.
        cause: why it came to that, and the change that helps most.
        suspects: tensors of the source that ask for what was asked for.
        measures: changes of the training, simulated, those first that together make it fit.
        notes: what else is to be said.
    """

    moment: Moment
    cause: Cause
    suspects: tuple[Suspect, ...] = ()
    measures: tuple[Measure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The answer in one line."""
        return f"{self.cause.kind}: {self.cause.because}"

    def to_json(self) -> str:
        """Return one JSON object; its keys are the fields, and of the moment what follows from it."""
        told = {**asdict(self), "moment": asdict(self.moment)}
        told["moment"] |= {"idle": self.moment.idle, "outside": self.moment.outside, "room": self.moment.room}
        return json.dumps({"schema": SCHEMA, **told}, indent=2)


@spelled_out
def explain(told: str | bytes | Path, source: Any = "", inputs: Any = None, **setting: Unpack[Setting]) -> Explanation:
    """Return why CUDA ran out of memory.

    Examples:
        >>> explain("CUDA out of memory. Tried to allocate 9.00 GiB (GPU 0; 8.00 GiB total capacity)").cause.kind.name
        'TOO_LARGE'

    Args:
        told: PyTorch's message, or a log with it; or what torch.cuda.memory._dump_snapshot wrote, of which nothing
            is run; or the path of a file with either.
        source: as `peak` takes it; empty: none. With it the answer names the tensor, and measures what helps.
        inputs: of a module.

    Raises:
        UsageError, SpecError: *told* is neither, or larger than 8 MiB of text or 256 MiB of snapshot.
        GraphSimError: the source cannot be read or trained.
    """
    now = _moment(told)
    if now.capacity is None and setting.get("gpu"):
        now = replace(now, capacity=device_of(str(setting["gpu"]), "cuda").memory)
    answer = Explanation(now, cause_of(now), notes=notes_of(now))
    known = inputs is not None or not isinstance(source, str) or source
    return _with_source(answer, asked(source, inputs, setting)) if known else answer


def _moment(told: str | bytes | Path) -> Moment:
    if isinstance(told, Path):
        check_file(told, LIMIT)
        try:
            return _moment(told.read_bytes())
        except (OSError, UsageError) as error:
            raise SpecError(getattr(error, "strerror", None) or str(error), str(told)) from None
    if isinstance(told, bytes) and told[:1] == b"\x80":  # every pickle of protocol 2 or later, and no text
        if len(told) > LIMIT:
            raise UsageError(f"the snapshot has more than {LIMIT // 2**20} MiB")
        return read_snapshot(told)
    if len(told) > _LOG:
        raise UsageError(f"the log has more than {_LOG // 2**20} MiB: cut out the message")
    return read_message(told.decode("utf-8", "replace") if isinstance(told, bytes) else told)


def _with_source(answer: Explanation, question: Asked) -> Explanation:
    now, notes = answer.moment, list(answer.notes)
    found: tuple[Suspect, ...] = ()
    if now.requested is not None:
        found, said = suspects(question.source.steps(question.training), now)
        notes += [said] * bool(said)
    if now.capacity is None:
        notes.append("the size of the card is not said, so no change is measured: name it with --gpu")
        return replace(answer, suspects=found, notes=tuple(notes))
    outside = max(0, now.outside or 0)
    fit = fit_of(*question, memory=now.capacity, context=(outside, outside))
    notes += fit.notes
    cause = replace(answer.cause, change=_change(answer.cause, fit))
    if fit.max_batch is not None:
        notes.append(f"largest batch that fits beside what others hold: {fit.max_batch:,}")
    return replace(answer, cause=cause, suspects=found, measures=fit.measures, notes=tuple(notes))


def _change(cause: Cause, fit: Fit) -> str:
    """Return what helps most: of the training, if it is to blame, by what was simulated."""
    if cause.kind not in (Kind.FULL, Kind.TOO_LARGE, Kind.NONE):
        return cause.change
    if fit.fits and cause.kind is not Kind.NONE:
        return (
            "look for what else is held, as losses that keep their graphs, or a second model: by our count this "
            f"training needs {format_bytes(fit.need_bytes)} in all, and that was there"
        )
    if not fit.measures:
        return cause.change
    first, stacked = fit.measures[0], [one for one in fit.measures if one.stacked_need_bytes is not None]
    saves = f"{first.name}: {format_bytes(first.saved_bytes)} less, {first.time:+.0%} time"
    if fit.fits or not stacked or (stacked[-1].stacked_need_bytes or 0) > fit.memory_bytes - fit.context_bytes[1]:
        return saves
    return saves + (", with those below it fits" if len(stacked) > 1 else ", and it fits")
