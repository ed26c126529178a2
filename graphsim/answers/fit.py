"""Will it fit? The need of a step beside a GPU's memory, the largest batch, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from graphsim.core.devices import device_of
from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import Simulation, op_costs, simulate
from graphsim.errors import GraphSimError, ScheduleError, SpecError
from graphsim.memory.allocators.torch import ROUND_LARGE, TorchCaching
from graphsim.recompute.strategies import STRATEGIES, Strategy
from graphsim.step.rewrites import Rewrite, with_chunked_loss, with_inplace_activations
from graphsim.step.training import Training, training_step

CONTEXT = (135 * 2**20, 1536 * 2**20)
"""Bytes that the CUDA context, loaded kernels and library handles take: no rule is known. The least is a
T4 under CUDA 12.8 with lazy loading, the most what has been seen on V100 and A100 under CUDA 11."""
SECONDS = 1.0
"""Each search for a schedule may take; there are dozens."""
_BUDGETS = 8
"""Budgets of live bytes that are tried for what an allocator may hold."""
_KNOWN = 8
"""Schedules of other sizes that are tried before one is planned."""
_LARGEST = 2**24
_PLAIN = TorchCaching()

REWRITES: dict[str, Rewrite] = {
    "in-place activations (nn.ReLU(inplace=True))": with_inplace_activations,
    "cross-entropy in chunks (Liger's fused linear cross-entropy)": with_chunked_loss,
}
"""Changes of the model's code, by name."""

Known = dict[tuple[bool, int], list[Schedule]]
"""Schedules that were planned for step 1, or a later one, of so many ops, whatever the size."""

Load = Callable[[Mapping[str, Any]], Graph]
"""Returns the forward graph of a spec with these params set."""


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


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer.

    Attributes:
        fits: the need fits into the memory, with the context at its largest.
        perhaps: it fits only if the context is smaller than that.
        memory_bytes: of the GPU; or what PyTorch may use, if that was asked about.
        need_bytes: what PyTorch's allocator holds from the device at most, in step 1 and any later one.
        context_bytes: (least, most) beside it: unknown within this range; zero where the memory is PyTorch's.
        margin_bytes: what is left with the context at its largest; negative if it does not fit.
        max_batch: largest batch that fits, where the next one does not; 0 if none does.
        max_seq: the same for the sequence, if the model has one; else None.
        simulations: settings that were simulated for the largest batch.
        measures: what saves memory, first those taken until it fits, then the rest by bytes saved.
    """

    spec: str
    fits: bool
    perhaps: bool
    memory_bytes: int
    need_bytes: int
    context_bytes: tuple[int, int]
    margin_bytes: int
    max_batch: int
    max_seq: int | None
    simulations: int
    measures: tuple[Measure, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def fit(
    load: Load,
    params: Mapping[str, Any],
    training: Training,
    *,
    memory: int,
    context: tuple[int, int] = CONTEXT,
    strategy: str = "",
) -> Fit:
    """Return whether a step fits into *memory* bytes, and what would change that.

    Args:
        load: makes the forward graph for params.
        params: the params to begin with, such as ``batch``.
        training: how it is trained.
        memory: bytes of the GPU.
        context: least and most bytes that are taken outside of PyTorch's allocator.
        strategy: recompute by this strategy; one that needs a budget gets what fits. Empty: none.

    Raises:
        GraphSimError: the model cannot be loaded or trained.
    """
    room = memory - context[1]
    known: Known = {}

    def find(name: str, start: int) -> tuple[int, int]:
        def held(size: int, plan: bool = True) -> int:
            try:
                return need_of(load({**params, name: size}), training, strategy, room, known=known, plan=plan)
            except SpecError:
                if name == "seq":  # longer than the model's positions
                    return room + 1
                raise

        found, simulations = largest(held, start=start, room=room)
        if strategy and found:
            return farthest(held, lambda size: held(size, plan=False), found, simulations, room)
        return found, simulations

    graph = load(params)
    has = dict(graph.attributes.get("params", {}))
    batch, simulations = find("batch", int(has.get("batch", 1)))
    sequence = find("seq", int(has["seq"]))[0] if "seq" in has else None
    need = need_of(graph, training, strategy, room, known=known)  # last, as now most is known
    return Fit(
        spec=graph.name,
        fits=need <= room,
        perhaps=room < need <= memory - context[0],
        memory_bytes=memory,
        need_bytes=need,
        context_bytes=context,
        margin_bytes=room - need,
        max_batch=batch,
        max_seq=sequence,
        simulations=simulations,
        measures=tuple(_measures(load, _Setting(dict(params), training, strategy), need, room, known)),
    )


def need_of(
    graph: Graph,
    training: Training,
    strategy: str = "",
    room: int | None = None,
    allocator: TorchCaching = _PLAIN,
    *,
    known: Known | None = None,
    plan: bool = True,
) -> int:
    """Return the bytes that PyTorch's allocator holds at most in step 1, or in a later one that finds its cache empty.

    Short of memory it gives the cache back and tries again, so what step 1 leaves there is not needed; a step
    may get by with a little less than this, too, at the price of such retries. A *strategy* is to make it fit
    *room* bytes: by one of the *known* schedules, or by one that it plans, which is known from then on; or, unless it
    is to *plan*, only by the known, if any are for as many ops.
    """
    firsts = (True, False) if training.mode == "train" else (False,)
    known = {} if known is None else known
    return max(_simulate(graph, training, first, strategy, room, allocator, known, plan)[1] for first in firsts)


def _simulate(
    graph: Graph,
    training: Training,
    first: bool,
    strategy: str,
    room: int | None,
    allocator: TorchCaching,
    known: Known,
    plan: bool = True,
) -> tuple[Simulation, int]:
    """Return one step and what is held in it."""
    step = training_step(graph, training.shortened, first=first)

    def run(schedule: Schedule | None) -> tuple[Simulation, int]:
        simulation = simulate(step, schedule)
        return simulation, allocator(simulation.trace).reserved_peak

    if not strategy:
        return run(None)
    planner = _planner(strategy)
    if room is None:
        return run(planner(step).schedule)
    schedules, tried = known.setdefault((first, len(step.ops)), []), []
    for schedule in schedules:
        with suppress(ScheduleError):  # as many ops, but other ones
            tried.append(run(schedule))
            if tried[-1][1] <= room:
                return tried[-1]
    if plan or not tried:
        tried.append(_within(lambda budget: run(planner(step, budget=budget).schedule), run(None), room))
        schedules[:] = [tried[-1][0].schedule, *schedules][:_KNOWN]
    return min(tried, key=_held)


def _held(one: tuple[Simulation, int]) -> int:
    return one[1]


def _within(
    planned: Callable[[int], tuple[Simulation, int]], stored: tuple[Simulation, int], room: int
) -> tuple[Simulation, int]:
    """Return what is *planned* for a budget with which *room* bytes suffice, else with which least are held.

    A budget is live bytes, and more is held. As the last one tried held too much, by a share, the next is less by that
    share; or the middle between what was too much and what nothing fits.
    """
    tried: list[tuple[Simulation, int]] = []
    (run, held), low, high = stored, 0, room
    while len(tried) < _BUDGETS and (held > room or not tried):
        scaled = run.peak * room // held if held > room else room
        budget = scaled if scaled > low else (low + high) // 2
        run, held = planned(budget)
        if (run.peak, held) in ((other.peak, more) for other, more in tried):
            break
        tried.append((run, held))
        low, high = (budget, high) if run.peak > budget else (low, run.peak)
    return min(tried, key=_held)


def _planner(strategy: str) -> Strategy:
    """Return the strategy of that name, in a hurry if it is one that takes the time it gets."""
    kind = STRATEGIES[strategy]
    timed = is_dataclass(kind) and any(field.name == "seconds" for field in fields(kind))
    planner: Strategy = kind(seconds=SECONDS) if timed else kind()
    return planner


def farthest(
    held: Callable[[int], int], by_known: Callable[[int], int], found: int, simulations: int, room: int
) -> tuple[int, int]:
    """Return what `largest` did, or better: what was planned for one size may fit a larger one, for which nothing was.

    Args:
        held: bytes that are held with what is planned for a size.
        by_known: with what has been planned before.
    """
    while True:
        size, more = largest(by_known, start=found, room=room)
        simulations += more
        if size <= found:
            return found, simulations
        found = size
        simulations += 1
        if held(found + 1) <= room:
            found += 1


def largest(held: Callable[[int], int], *, start: int, room: int) -> tuple[int, int]:
    """Return (the largest size that fits, calls): what is *held* for it fits *room*, for the next larger one not.

    Bytes grow almost linearly with the size: a line through the ends of the bracket tells where they pass
    the room, and looking a little beyond it closes the bracket from the other side. Sizes beyond
    `_LARGEST` are not tried.
    """
    seen: dict[int, int] = {}
    low, high = 0, _LARGEST + 1  # nothing always fits
    guess = max(1, start)
    while high - low > 1:
        seen[guess] = held(guess)
        if seen[guess] <= room:
            low = guess
        else:
            high = guess
        guess = _next_guess(seen, low, high, room)
    return low, len(seen)


def _next_guess(seen: Mapping[int, int], low: int, high: int, room: int) -> int:
    """Return a size inside the bracket: by the line through its ends, a little to either side, or the middle."""
    if low == 0 or high > _LARGEST:
        return max(low + 1, min(high - 1, _beyond(seen, low, high, room)))
    rise = seen[high] - seen[low]
    border = low + (high - low) * (room - seen[low]) // rise
    grain = 1 + (high - low) * ROUND_LARGE // rise  # sizes that one step of the allocator's rounding covers
    if len(seen) > 8 or high - low <= 2 * grain:
        border = (low + high) // 2
    elif border - low < high - border:  # near the lower end: look above it, so that the bracket closes there
        border += grain
    else:
        border -= grain
    return max(low + 1, min(high - 1, border))


def _beyond(seen: Mapping[int, int], low: int, high: int, room: int) -> int:
    """Return where one end of the bracket may be, while only the other is known."""
    known = low or high
    if len(seen) == 1:
        return known * room // max(1, seen[known])
    near = sorted(seen, key=lambda size: abs(seen[size] - room))[:2]
    slope = (seen[near[1]] - seen[near[0]]) / (near[1] - near[0])
    border = int(near[0] + (room - seen[near[0]]) / slope) if slope > 0 else 2 * known if low else known // 2
    reach = max(1, known >> 7) << max(0, len(seen) - 3)
    return max(border, low + reach) if low else min(border, high - reach)


def _measures(load: Load, start: _Setting, need: int, room: int, known: Known) -> list[Measure]:
    """Return each change alone, and the largest savers stacked until the step fits.

    *known* are the schedules with which the step needs *need* bytes.
    """
    base = _seconds(load, start, room, known)
    alone = []
    for name, setting in _settings(load, start).items():
        try:
            changed, time = _evaluate(load, setting, base, room)
        except GraphSimError:  # the model does not allow it
            continue
        if changed < need:
            alone.append((Measure(name, changed, need - changed, time), setting))
    alone.sort(key=lambda item: (-item[0].saved_bytes, item[0].time))
    taken: list[Measure] = []
    rest: list[Measure] = []
    current, now = start, need
    for measure, setting in alone:
        stacked = None
        if now > room:
            try:
                merged = current.merge(setting, start)
                candidate, _ = _evaluate(load, merged, base, room)
            except GraphSimError:  # the two do not go together
                candidate = now
            if candidate < now:
                current, now, stacked = merged, candidate, candidate
        (taken if stacked is not None else rest).append(replace(measure, stacked_need_bytes=stacked))
    return taken + rest


@dataclass(frozen=True, slots=True)
class _Setting:
    params: dict[str, Any]
    training: Training
    strategy: str = ""
    allocator: TorchCaching = _PLAIN
    rewrites: tuple[Rewrite, ...] = ()

    def merge(self, other: _Setting, base: _Setting) -> _Setting:
        """Return this setting with what *other* changes of *base*."""
        params = {**self.params, **{k: v for k, v in other.params.items() if base.params.get(k) != v}}
        changed = {
            name: getattr(other.training, name)
            for name in other.training.as_dict()
            if getattr(other.training, name) != getattr(base.training, name)
        }
        allocator = self.allocator if other.allocator == base.allocator else other.allocator
        return _Setting(
            params,
            replace(self.training, **changed),
            other.strategy or self.strategy,
            allocator,
            (*self.rewrites, *other.rewrites),
        )

    def graph(self, load: Load) -> Graph:
        """Return the forward graph."""
        graph = load(self.params)
        for rewrite in self.rewrites:
            graph = rewrite(graph)
        return graph


def _evaluate(load: Load, setting: _Setting, base: float, room: int) -> tuple[int, float]:
    known: Known = {}
    need = need_of(setting.graph(load), setting.training, setting.strategy, room, setting.allocator, known=known)
    return need, _seconds(load, setting, room, known) / base - 1 if base else 0.0


def _seconds(load: Load, setting: _Setting, room: int, known: Known) -> float:
    run, _ = _simulate(setting.graph(load), setting.training, False, setting.strategy, room, setting.allocator, known)
    again = setting.training.accumulation / setting.training.shortened.accumulation
    return float(op_costs(run.graph)[run.schedule.ops].sum()) * again


def _settings(load: Load, base: _Setting) -> dict[str, _Setting]:
    """Return what can be changed, by name."""
    params, training = base.params, base.training
    graph = load(params)
    has = {**dict(graph.attributes.get("params", {})), **params}
    segments = replace(base.allocator, expandable_segments=True)
    found = {"PYTORCH_ALLOC_CONF=expandable_segments:True": replace(base, allocator=segments)}
    if training.precision == "fp32":
        ampere = device_of(training.device, training.target).capability >= (8, 0)  # the first with units for bf16
        name, precision = ("bfloat16", "amp-bf16") if ampere else ("float16", "amp-fp16")
        low = replace(training, precision=precision)
        found[f"{name} autocast (--precision {precision})"] = replace(base, training=low)
    if training.mode == "train":
        if training.implementation != "fused":
            fused = replace(training, optimizer_impl="fused")
            found["fused optimizer (--optimizer-impl fused)"] = replace(base, training=fused)
        if training.optimizer in ("adam", "adamw"):
            light = replace(training, optimizer="adam8bit", optimizer_impl="")
            found["8-bit Adam (--optimizer adam8bit)"] = replace(base, training=light)
        if not training.set_to_none:
            found["release gradients (--set-to-none)"] = replace(base, training=replace(training, set_to_none=True))
        for strategy in () if base.strategy else ("selective", "sqrt"):
            found[f"recompute (plan --strategy {strategy})"] = replace(base, strategy=strategy)
        batch = has.get("batch")
        if isinstance(batch, int) and batch > 1 and batch % 2 == 0:
            half = replace(training, accumulation=2 * training.accumulation)
            name = f"micro-batches (--batch {batch // 2} --accumulation {half.accumulation})"
            found[name] = replace(base, params={**params, "batch": batch // 2}, training=half)
    found |= {
        name: replace(base, rewrites=(rewrite,))
        for name, rewrite in REWRITES.items()
        if rewrite(graph).ops != graph.ops
    }
    if has.get("attention") in ("math", "eager"):
        found["fused attention (--set attention=sdpa)"] = replace(base, params={**params, "attention": "sdpa"})
    return found
