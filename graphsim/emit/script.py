"""A program in the order of a schedule, as Python text: each call with the names that end with it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from graphsim.core.graph import Graph, Phase
from graphsim.core.schedule import Schedule
from graphsim.emit.program import UNSEEN, Line, Place, Program
from graphsim.errors import UsageError

_WIDE = 112
_NESTED = re.compile(r"_view\w*\((?:[^()]|\([^()]*\))*\)")
_TIED = "\0"
"""Stands for a blank at which no line is broken."""


@dataclass(frozen=True, slots=True)
class Execution:
    """A line at its place in a schedule.

    Attributes:
        number: of the line.
        again: it ran before.
        repeated: it will run again.
        ends: the storages that nothing reads after it.
    """

    line: Line
    number: int
    again: bool
    repeated: bool
    ends: tuple[int, ...]


def executions(program: Program, graph: Graph, schedule: Schedule) -> list[Execution]:
    """Return the calls that *schedule* makes in the pass of *program*; those that only make views are none.

    Raises:
        UsageError: the schedule does with a step what a pass and an optimizer after it cannot do.
    """
    order = _order(program, graph, schedule)
    seen = set[int]()
    again = [number in seen or seen.add(number) for number in order]  # type: ignore[func-returns-value]
    lines = [program.lines[number] for number in order]
    persistent = program.persistent()
    for line, repeat in zip(lines, again, strict=True):
        if repeat and not line.written.isdisjoint(persistent):
            raise UsageError(f"the schedule runs {line.call.function} again, which overwrites what outlives the step")
    firsts = [n for n, line, repeat in zip(order, lines, again, strict=True) if line.call.random and not repeat]
    if firsts != sorted(firsts):
        raise UsageError("the schedule first runs random ops in another order: they would draw other numbers")
    last = {number: at for at, number in enumerate(order)}
    ends = _ends(program, lines)
    return [
        Execution(line, number, bool(again[at]), last[number] != at, tuple(sorted(ends[at])))
        for at, (number, line) in enumerate(zip(order, lines, strict=True))
    ]


def _order(program: Program, graph: Graph, schedule: Schedule) -> list[int]:
    order = schedule.ops.tolist()
    repeats = schedule.repeats
    for op, repeat in zip(order, repeats.tolist(), strict=True):
        if repeat and op not in program.lines and graph.ops[op].kind not in UNSEEN:
            raise UsageError(f"the schedule runs op '{graph.ops[op].name}' again, which is no part of the pass")
    rest = [at for at, op in enumerate(order) if graph.ops[op].phase is Phase.OPTIMIZER]
    places = [at for at, op in enumerate(order) if op in program.lines]
    if rest and places and rest[0] < places[-1]:
        raise UsageError("the schedule runs ops of the optimizer within the pass")
    missing = set(program.lines) - set(order)
    if missing:
        raise UsageError(f"the schedule does not run op '{graph.ops[min(missing)].name}'")
    return [op for op in order if op in program.lines and not program.lines[op].is_view]


def _ends(program: Program, lines: Sequence[Line]) -> list[set[int]]:
    """Return the storages that go after each execution: those not read again before they are made again."""
    wanted = {place.storage for place in (*program.gradients.values(), program.loss)} | program.persistent()
    ends: list[set[int]] = [set() for _ in lines]
    for at in reversed(range(len(lines))):
        line = lines[at]
        read = {place.storage for place in line.inputs}
        ends[at] = (read | {*line.made}) - wanted
        wanted = (wanted - {*line.made}) | read
    return ends


@dataclass(frozen=True)
class Script:
    """The text of executions.

    Attributes:
        names: of the storages that calls make.
        bases: by storage, the names of tensors over it, and how they lie.
    """

    names: dict[int, str]
    bases: dict[int, list[tuple[str, Any]]]

    @staticmethod
    def of(program: Program, made: Sequence[Execution]) -> Script:
        """Return that of *made*: names are numbered in its order."""
        names: dict[int, str] = {}
        bases: dict[int, list[tuple[str, Any]]] = {}
        there = [(f'p["{path}"]', place) for path, place in program.named.items()]
        for name, place in (*there, *program.inputs.items()):
            bases.setdefault(place.storage, []).append((name, place.geometry))
        for one in made:
            for place in one.line.outputs:
                if place.storage in one.line.made and place.storage not in names:
                    names[place.storage] = f"t{len(names) + 1}"
                    bases[place.storage] = [(names[place.storage], place.geometry)]
        return Script(names, bases)

    def body(self, made: Sequence[Execution]) -> Iterator[str]:
        """Yield the lines of *made*, under comments that name the layers."""
        for (what, layer), group in groupby(made, key=_heading):
            yield f"# {what}: {layer}" if layer else f"# {what}"
            for one in group:
                yield from self._execution(one)

    def _execution(self, one: Execution) -> Iterator[str]:
        state = f"state{one.number}"
        if one.line.call.random and one.repeated and not one.again:
            yield f"{state} = _states(device)"
        targets, unnamed = self._targets(one)
        head = f"{targets} = " if targets else ""
        yield from _wrapped(head, self._call(one, state))
        gone = [self.names[storage] for storage in one.ends]
        gone += ["_"] * unnamed + [state] * (one.line.call.random and one.again and not one.repeated)
        if gone:
            yield f"del {', '.join(gone)}"

    def _call(self, one: Execution, state: str) -> str:
        call = one.line.call
        operands = [self.tensor(place) for place in one.line.inputs]
        if one.again:
            operands = [f"{text}.clone()" if at in call.statistics else text for at, text in enumerate(operands)]
        text = call.text.format(*operands, device="device")
        if one.line.over:
            text = text.replace(call.function, _overwriting(call.function), 1)
        if call.random and one.again:
            function, _, arguments = text.partition("(")
            text = f"_drawn_again({state}, device, {function}, {arguments}"
        return text

    def _targets(self, one: Execution) -> tuple[str, bool]:
        """Return what the results are assigned to, and whether something among it has no name."""
        line, named = one.line, set[int]()

        def target(pattern: Any) -> str:
            if isinstance(pattern, tuple):
                return f"({', '.join(map(target, pattern))}{',' * (len(pattern) == 1)})"
            storage = None if pattern is None else line.outputs[pattern].storage
            if storage not in line.made or storage in named:
                return "_"
            named.add(storage)
            return self.names[storage]

        text = target(line.call.results)
        if not named:
            return "", False
        return text.removeprefix("(").removesuffix(")") if text.count("(") == 1 else text, "_" in text

    def tensor(self, place: Place) -> str:
        """Return the text of a tensor."""
        text, geometry = self._base(place)
        if geometry == place.geometry:
            return text
        size, stride, offset, dtype = place.geometry
        shape = f"{tuple(size)}, {tuple(stride)}"
        if dtype != geometry[3]:
            begin = geometry[2] * geometry[3].itemsize // dtype.itemsize
            return f"_view_as({text}, {shape}, {offset - begin}, {dtype})"
        shift = offset - geometry[2]
        return f"_view({text}, {shape}, {shift})" if shift else f"_view({text}, {shape})"

    def _base(self, place: Place) -> tuple[str, Any]:
        """Return a name over the storage and how the tensor lies that has it: as *place*, if there is one."""
        over = self.bases[place.storage]
        return next((one for one in over if one[1] == place.geometry), over[0])


def _heading(one: Execution) -> tuple[str, str]:
    return ("again" if one.again else one.line.phase.value), one.line.layer


def _overwriting(function: str) -> str:
    """Return the name of the overload that writes the result over the first operand."""
    space, name, overload = function.rsplit(".", 2)
    return f"{space}.{name}_.{overload}"


def _wrapped(head: str, call: str) -> Iterator[str]:
    if len(head) + len(call) <= _WIDE:
        yield head + call
        return
    function, _, arguments = call.partition("(")
    arguments = _NESTED.sub(lambda found: found[0].replace(" ", _TIED), arguments)
    yield f"{head}{function}("
    indent = "    "
    rows = textwrap.wrap(
        arguments,
        _WIDE,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from (row.replace(_TIED, " ") for row in rows)
