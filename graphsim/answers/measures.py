"""What would save memory: every change that can be made to a training, alone, and stacked until it fits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from graphsim.answers.meanwhile import Ask, Promise, cost_of
from graphsim.answers.need import Outcome, Trial
from graphsim.core.devices import device_of
from graphsim.errors import GraphSimError
from graphsim.sources import Source, source_of
from graphsim.step.rewrites import Rewrite, with_chunked_loss, with_inplace_activations
from graphsim.step.training import CAPTURED, Training, option

REWRITES: dict[str, Rewrite] = {
    "in-place activations (nn.ReLU(inplace=True))": with_inplace_activations,
    "cross-entropy in chunks (Liger's fused linear cross-entropy)": with_chunked_loss,
}
"""Changes of the model's code, by name."""


PLAIN = Training()
WORDS = {"grad_checkpointing": "checkpointed blocks", "lora": "low-rank adapters", "quant": "4-bit weights"}


@dataclass(frozen=True, slots=True)
class Measure:
    """A change that saves memory. Bytes; `time` is the share of the step's roofline time that it adds.

    Attributes:
        need_bytes: with this change alone.
        stacked_need_bytes: with it and all that stand before it in the list; None where it is not taken.
    """

    name: str
    need_bytes: int
    saved_bytes: int
    time: float
    stacked_need_bytes: int | None = None


@dataclass(frozen=True)
class _Change:
    """What a trial becomes; each part is left alone where it says nothing."""

    params: tuple[tuple[str, int | str], ...] = ()
    training: tuple[tuple[str, object], ...] = ()
    strategy: str = ""
    expandable: bool = False
    rewrites: tuple[Rewrite, ...] = ()

    def __or__(self, other: _Change) -> _Change:
        return _Change(
            (*self.params, *other.params),
            (*self.training, *other.training),
            other.strategy or self.strategy,
            self.expandable or other.expandable,
            (*self.rewrites, *other.rewrites),
        )

    def applied(self, trial: Trial) -> Trial:
        """Return *trial*, changed."""
        source = trial.source.with_params(**dict(self.params)) if self.params else trial.source
        for rewrite in self.rewrites:
            source = source_of(rewrite(source.forward(trial.training.mode)))
        changed: dict[str, object] = dict(self.training)
        training: Training = replace(trial.training, **changed)  # type: ignore[arg-type]
        segments = trial.allocator.expandable_segments or self.expandable
        allocator = replace(trial.allocator, expandable_segments=segments)
        return Trial(source, training, self.strategy or trial.strategy, allocator)


@dataclass(frozen=True)
class Rows:
    """All that is tabulated of a trial, asked for.

    Attributes:
        changes: each change of the trial alone.
        choices: the choices made of a captured model: none of them, then one more each.
    """

    trial: Trial
    changes: list[tuple[str, _Change, Promise]]
    choices: list[tuple[str, Promise]]


def rows_of(trial: Trial, room: int, ask: Ask) -> Rows:
    """Ask for what is tabulated of *trial*; where its steps are not others, here, as they are known."""

    def promised(changed: Trial) -> Promise:
        same = (changed.source, changed.training, changed.strategy) == (trial.source, trial.training, trial.strategy)
        return partial(cost_of, changed, room) if same else ask(changed)

    changes = []
    for name, change in _changes(trial).items():
        with suppress(GraphSimError):  # the source does not allow it
            changes.append((name, change, promised(change.applied(trial))))
    return Rows(trial, changes, [(name, promised(chosen)) for name, chosen in _chosen(trial)])


def measures_of(rows: Rows, outcome: Outcome, room: int) -> list[Measure]:
    """Return each change of a trial, of which *outcome* comes, alone, and the largest savers stacked until it fits."""
    need, base = outcome.need, outcome.seconds(rows.trial.training)
    alone = []
    for name, change, promise in rows.changes:
        try:
            cost = promise()
        except GraphSimError:  # the source does not allow it
            continue
        if cost.need < need:
            time = cost.seconds / base - 1 if base else 0.0
            alone.append((Measure(name, cost.need, need - cost.need, time), change))
    alone.sort(key=lambda item: (-item[0].saved_bytes, item[0].time))
    taken: list[Measure] = []
    rest: list[Measure] = []
    current, now = _Change(), need
    for measure, change in alone:
        stacked = None
        if now > room:
            try:
                candidate = cost_of((current | change).applied(rows.trial), room).need
            except GraphSimError:  # the two do not go together
                candidate = now
            if candidate < now:
                current, now, stacked = current | change, candidate, candidate
        (taken if stacked is not None else rest).append(replace(measure, stacked_need_bytes=stacked))
    return taken + rest


CHOICES = ("precision", "optimizer", "optimizer_impl", "lora", "quant", "grad_checkpointing")
"""Fields of a training that are chosen to save memory, in an order in which each goes without those after it."""


def choices_of(rows: Rows) -> list[Measure]:
    """Return what each choice that was made of a captured model saves, when those before it are made.

    Here `need_bytes` is what it takes with the choice and those before it, and `time` what it adds to the step then.
    """
    found = [(name, promise()) for name, promise in rows.choices]
    return [
        Measure(name, now.need, before.need - now.need, now.seconds / before.seconds - 1 if before.seconds else 0.0)
        for (_, before), (name, now) in pairwise(found)
    ]


def _chosen(trial: Trial) -> list[tuple[str, Trial]]:
    """Return *trial* without the choices that were made of a captured model, and with one more of them each."""
    training = trial.training
    made = [name for name in CHOICES if getattr(training, name) != getattr(PLAIN, name)]
    if trial.source.kind != "capture" or training.mode != "train" or not set(made) & set(CAPTURED):
        return []
    chosen = replace(training, **{name: getattr(PLAIN, name) for name in made})
    steps = [("", chosen)]
    for name in made:
        chosen = replace(chosen, **{name: getattr(training, name)})
        steps.append((option(name, getattr(training, name)), chosen))
    return [(name, replace(trial, training=chosen)) for name, chosen in steps]


def _changes(trial: Trial) -> dict[str, _Change]:
    """Return what can be changed, by name."""
    found = {"PYTORCH_ALLOC_CONF=expandable_segments:True": _Change(expandable=True)}
    if trial.source.kind == "model":
        found |= _precision(trial.training)
    if trial.source.kind != "step" and trial.training.mode == "train":
        found |= _optimizer(trial.training)
    if trial.source.kind == "capture" and trial.training.mode == "train":
        found |= _capturing(trial.training)
    if trial.training.mode == "train" and not trial.strategy and not trial.training.grad_checkpointing:
        found |= {f"recompute (plan --strategy {name})": _Change(strategy=name) for name in ("selective", "sqrt")}
    if trial.source.kind == "model":
        found |= _micro_batches(trial) | _model(trial.source, trial.training)
    return found


def _precision(training: Training) -> dict[str, _Change]:
    if training.precision != "fp32":
        return {}
    ampere = device_of(training.device, training.target).capability >= (8, 0)  # the first with units for bf16
    name, precision = ("bfloat16", "amp-bf16") if ampere else ("float16", "amp-fp16")
    return {f"{name} autocast (--precision {precision})": _Change(training=(("precision", precision),))}


def _optimizer(training: Training) -> dict[str, _Change]:
    found = {}
    if training.implementation != "fused":
        found["fused optimizer (--optimizer-impl fused)"] = _Change(training=(("optimizer_impl", "fused"),))
    if training.optimizer in ("adam", "adamw"):
        light = (("optimizer", "adam8bit"), ("optimizer_impl", ""))
        found["8-bit Adam (--optimizer adam8bit)"] = _Change(training=light)
    if not training.set_to_none:
        found["release gradients (--set-to-none)"] = _Change(training=(("set_to_none", True),))
    return found


def _capturing(training: Training) -> dict[str, _Change]:
    """Return what can be done to the modules of a captured model, as far as it is not done."""
    found = _precision(training)
    options: dict[str, object] = {"grad_checkpointing": True, "lora": 16}
    if training.lora and training.target == "cuda":
        options["quant"] = "nf4"
    for name, value in options.items():
        if not getattr(training, name):
            found[f"{WORDS[name]} ({option(name, value)})"] = _Change(training=((name, value),))
    return found


def _micro_batches(trial: Trial) -> dict[str, _Change]:
    batch = trial.source.get("batch")
    if trial.training.mode != "train" or not isinstance(batch, int) or batch < 2 or batch % 2:
        return {}
    twice = 2 * trial.training.accumulation
    name = f"micro-batches (--batch {batch // 2} --accumulation {twice})"
    return {name: _Change(params=(("batch", batch // 2),), training=(("accumulation", twice),))}


def _model(source: Source, training: Training) -> dict[str, _Change]:
    graph = source.forward(training.mode)
    useful = {name: rewrite for name, rewrite in REWRITES.items() if rewrite(graph).ops != graph.ops}
    found = {name: _Change(rewrites=(rewrite,)) for name, rewrite in useful.items()}
    if source.get("attention") in ("math", "eager"):
        found["fused attention (--set attention=sdpa)"] = _Change(params=(("attention", "sdpa"),))
    return found
