"""DTR operator logs: JSON lines as the simulator of Kirisame et al. (ICLR 2021) reads them.

One instruction per line, under the key ``INSTRUCTION``:

    CONSTANT  NAME                     a tensor from outside; its MEMORY follows
    CALL      RESULT, NAME, ARGS, TIME an operator; for each result a MEMORY and an ALIAS follow
    MEMORY    NAME, MEMORY             bytes
    ALIAS     NAME, ALIAS              the position of the argument that a result is a view of, or -1
    MUTATE    NAME, ARGS, MUTATE, TIME an operator that overwrites the arguments at the positions MUTATE
    COPY      DST, SRC                 a new name for a tensor: one more reference
    COPY_FROM DST, SRC                 the name DST lets go of its tensor and takes that of SRC
    RELEASE   NAME                     a name lets go of its tensor
    ANNOTATE  ANNOTATION               START: what stands before is no part of it; BACKWARD: backward begins

A tensor that keeps a name beyond its last use is kept up to where its last name lets go, by an op of kind `release`,
which plans do without: DTR evicts under names too. What has a name at the end survives the step. Times become op times,
in the log's unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from graphsim.core.files import check_file, parse_json
from graphsim.core.graph import KEEPS, MAX_BYTES, RELEASE, Graph, Op, Phase, Role, Tensor
from graphsim.errors import GraphError, SpecError, UnknownNameError, UsageError

MAX_FILE = 2**31
MAX_LINES = 5_000_000
MAX_LINE = 2**20
"""Characters of one line."""

Mutations = Literal["in-place", "copy"]
"""What MUTATE does: overwrite, as frameworks do; or make a new tensor, as DTR and its simulator do."""


def load_dtr(source: str | Path, *, mutations: Mutations = "in-place", **others: object) -> Graph:
    """Return the graph of the log file *source*.

    Raises:
        SpecError: the file cannot be read, or a line is wrong; the message names file and line.
        UnknownNameError: *mutations* is neither 'in-place' nor 'copy'.
        UsageError: *others* are given: a log has none.
    """
    if others:
        raise UsageError(f"{source} is a log: beside 'mutations' it has no params to set, such as {min(others)!r:.60}")
    if mutations not in ("in-place", "copy"):
        raise UnknownNameError("mutations", str(mutations), ["in-place", "copy"])
    builder = _Builder(mutations)
    last = 0
    for number, entry in _entries(source):
        with _located(f"{source}:{number}"):
            builder.read(entry)
        last = number
    with _located(f"{source}:{last}"):
        builder.finish()
    if not builder.ops:
        raise SpecError("the log has no operators", str(source))
    with _located(str(source)):
        return Graph(builder.ops, builder.tensors.values(), outputs=builder.survivors(), name=Path(source).stem)


def takes(source: str | Path, name: str) -> bool:
    """Whether *name* can be set: how mutations are read."""
    return name == "mutations"


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Say where in the log an error is."""
    try:
        yield
    except KeyError as error:
        raise SpecError(f"no '{error.args[0]}'", where) from None
    except (GraphError, TypeError, ValueError) as error:
        raise SpecError(str(error), where) from None


def _entries(source: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield line number and instruction of every line, from START on if there is one."""
    begin = 0
    for number, line in _lines(source):
        if '"START"' in line and _parsed(line, source, number).get("ANNOTATION") == "START":
            begin = number
            break
    for number, line in _lines(source):
        if number > begin and line.strip():
            yield number, _parsed(line, source, number)


def _parsed(line: str, source: str | Path, number: int) -> Mapping[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise SpecError(f"not a line of JSON: {error}", f"{source}:{number}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("INSTRUCTION"), str):
        raise SpecError("an object with an INSTRUCTION is needed", f"{source}:{number}")
    return entry


def _lines(source: str | Path) -> Iterator[tuple[int, str]]:
    check_file(source, MAX_FILE)
    try:
        with Path(source).open(encoding="utf-8-sig") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise SpecError(f"the line has more than {MAX_LINE} characters", f"{source}:{number}")
                if number > MAX_LINES:
                    raise SpecError(f"the log has more than {MAX_LINES} lines", str(source))
                yield number, line
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text (byte {error.start})", str(source)) from None
    except (OSError, ValueError) as error:
        raise SpecError(getattr(error, "strerror", None) or str(error), str(source)) from None


class _Builder:
    """Turns instructions into ops: names are references to tensors, and tensors live as long as one is left."""

    def __init__(self, mutations: Mutations) -> None:
        self.mutations = mutations
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[str, str] = {}  # let go or not, in the order in which the names came up
        self._gone: set[str] = set()
        self._references: dict[str, int] = {}
        self._phase = Phase.FORWARD
        self._pending: Mapping[str, Any] | None = None
        self._details: dict[str, dict[str, int]] = {}
        self._released: list[str] = []

    def read(self, entry: Mapping[str, Any]) -> None:
        """Take one instruction.

        Raises:
            KeyError, TypeError, ValueError: it is malformed, or names what does not exist.
        """
        kind = entry["INSTRUCTION"].replace("_", "")
        if kind in ("MEMORY", "ALIAS"):
            self._details.setdefault(_text(entry["NAME"]), {})[kind] = _integer(entry[kind], kind)
            return
        self._complete()
        match kind:
            case "CALL" | "CONSTANT":
                self._pending = entry
            case "MUTATE":
                self._mutate(entry)
            case "COPY":
                self._bind(_text(entry["DST"]), self._tensor(entry["SRC"]))
            case "COPYFROM":
                tensor, name = self._tensor(entry["SRC"]), _text(entry["DST"])
                self._references[tensor] += 1
                self._let_go(self._tensor(name))
                self._names[name] = tensor
            case "RELEASE":
                if self._is_bound(_text(entry["NAME"])):
                    self._gone.add(entry["NAME"])
                    self._let_go(self._names[entry["NAME"]])
            case "ANNOTATE":
                if entry["ANNOTATION"] == "BACKWARD":
                    self._phase = Phase.BACKWARD
            case _:
                raise ValueError(f"unknown instruction '{entry['INSTRUCTION'][:40]}'")

    def finish(self) -> None:
        """The log is over."""
        self._complete()
        self._keep_to_here()

    def survivors(self) -> list[str]:
        """Return the tensors that still have a name, in the order of all names that they have or had last.

        In this order the simulator brings them back at the end.
        """
        return [tensor for tensor in dict.fromkeys(self._names.values()) if self._references[tensor]]

    def _complete(self) -> None:
        """Make the op of the last CALL or CONSTANT, now that its MEMORY and ALIAS lines have been read."""
        entry, self._pending = self._pending, None
        details, self._details = self._details, {}
        if entry is None:
            if details:
                raise ValueError(f"MEMORY or ALIAS of '{next(iter(details))[:40]}' follows no CALL or CONSTANT")
        elif entry["INSTRUCTION"] == "CONSTANT":
            self._constant(_text(entry["NAME"]), details)
        else:
            self._call(entry, details)

    def _constant(self, name: str, details: dict[str, dict[str, int]]) -> None:
        # It comes from outside and cannot be made again: its op overwrites a source, of no bytes.
        origin = Tensor(f"{name}:origin", (0,), "uint8", Role.BUFFER)
        self.tensors[origin.name] = origin
        self._make(name, _memory(name, details))
        self._emit("constant", (origin.name,), (name,), 0.0, mutates=(origin.name,))

    def _call(self, entry: Mapping[str, Any], details: dict[str, dict[str, int]]) -> None:
        kind, inputs = _text(entry["NAME"]), tuple(self._tensor(name) for name in _list(entry["ARGS"]))
        if "backward" in kind:
            self._phase = Phase.BACKWARD
        results = tuple(_text(name) for name in _list(entry["RESULT"]))
        for name in results:
            position = details.get(name, {}).get("ALIAS", -1)
            if position >= len(inputs):
                raise ValueError(f"'{name[:40]}' is an alias of argument {position}, but there are {len(inputs)}")
            if position >= 0:
                self._make(name, 0, self.tensors[inputs[position]].base)
            else:
                self._make(name, _memory(name, details))
        self._emit(kind, inputs, results, _time(entry["TIME"]))

    def _mutate(self, entry: Mapping[str, Any]) -> None:
        kind, names = _text(entry["NAME"]), [_text(name) for name in _list(entry["ARGS"])]
        inputs = tuple(self._tensor(name) for name in names)
        positions = [_integer(position, "MUTATE") for position in _list(entry["MUTATE"])]
        if any(not 0 <= position < len(names) for position in positions):
            raise ValueError(f"'{kind[:40]}' mutates an argument that it does not have")
        if self.mutations == "in-place":
            mutated = tuple(dict.fromkeys(inputs[position] for position in positions))
            self._emit(kind, inputs, (), _time(entry["TIME"]), mutates=mutated)
            return
        results = []
        for position in dict.fromkeys(positions):
            results.append(f"{names[position]}${len(self.ops)}")
            base = self.tensors[self.tensors[inputs[position]].base]
            self._make(results[-1], base.nbytes)
        self._emit(kind, inputs, tuple(results), _time(entry["TIME"]))
        for position, result in zip(dict.fromkeys(positions), results, strict=True):
            self._let_go(self._names[names[position]])
            self._gone.add(result)
            self._names[names[position]] = result

    def _emit(
        self, kind: str, inputs: tuple[str, ...], outputs: tuple[str, ...], time: float, mutates: tuple[str, ...] = ()
    ) -> None:
        self._keep_to_here()
        name, kind = f"{kind}.{len(self.ops)}", f"call_{kind}" if kind in KEEPS else kind
        self.ops.append(Op(name, kind, inputs, outputs, phase=self._phase, time=time, mutates=mutates))

    def _keep_to_here(self) -> None:
        """Keep what was released since the last op up to here, unless that op was its last use."""
        if self.ops:
            last = {self.tensors[name].base for name in (*self.ops[-1].inputs, *self.ops[-1].outputs)}
            held = tuple(name for name in self._released if self.tensors[name].base not in last)
            if held:
                self.ops.append(Op(f"release.{len(self.ops)}", RELEASE, held, phase=self._phase))
        self._released.clear()

    def _make(self, name: str, nbytes: int, storage: str = "") -> None:
        if name in self.tensors:
            raise ValueError(f"'{name[:40]}' exists already")
        self.tensors[name] = Tensor(name, (nbytes,), "uint8", storage=storage)
        self._references[name] = 0
        self._bind(name, name)

    def _bind(self, name: str, tensor: str) -> None:
        if self._is_bound(name):
            raise ValueError(f"'{name[:40]}' is a name already")
        self._gone.discard(name)
        self._names[name] = tensor
        self._references[tensor] += 1

    def _is_bound(self, name: str) -> bool:
        return name in self._names and name not in self._gone

    def _tensor(self, name: Any) -> str:
        if not self._is_bound(_text(name)):
            raise ValueError(f"'{name[:40]}' names no tensor")
        return self._names[name]

    def _let_go(self, tensor: str) -> None:
        self._references[tensor] -= 1
        if not self._references[tensor]:
            self._released.append(tensor)


def _memory(name: str, details: dict[str, dict[str, int]]) -> int:
    nbytes = details.get(name, {}).get("MEMORY")
    if nbytes is None or not 0 <= nbytes <= MAX_BYTES:
        raise ValueError(f"'{name[:40]}' needs a MEMORY of 0 ... 2**62 bytes")
    return nbytes


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name must be a string, not {value!r:.40}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is needed, not {value!r:.40}")
    return value


def _integer(value: Any, what: str) -> int:
    """Logs write numbers as numbers or as text."""
    if isinstance(value, str) and len(value) <= 20 and value.lstrip("-").isdecimal():
        value = int(value)
    if type(value) is not int:
        raise TypeError(f"{what} must be an integer, not {value!r:.40}")
    return value


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"TIME must be a number, not {value!r:.40}")
    time = float(value) if len(str(value)) <= 40 else math.inf
    if not 0 <= time < math.inf:
        raise ValueError(f"TIME must be a number >= 0, not {value!r:.40}")
    return time
