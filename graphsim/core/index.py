"""The numpy view of a graph: integer columns and operands in CSR form.

Row i of an op column is op i of program order. Operand lists of all ops are concatenated; those
of op i are ``operand[start[i]:start[i + 1]]``. A CSR row is called a *slice* below.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from graphsim.core.op import KEEPS, RELEASE, RESIDENT

if TYPE_CHECKING:
    from graphsim.core.graph import Graph

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NOTHING = -1
"""Stands for 'no op' (the initial content of a source) and 'no operand'."""


@dataclass(frozen=True, eq=False)
class Index:
    """Columns of a graph. int64 unless noted; lengths in ops (N), tensors (M), operands (E, F, K).

    Attributes:
        input_start, input_tensor: CSR (N + 1, E), tensors that each op reads.
        output_start, output_tensor: CSR (N + 1, F), tensors that each op writes.
        output_parent: (F) for a view or in-place result, which input of the op (0-based) it is
            over (of several over that storage, the first that the op overwrites, else the first);
            `NOTHING` where the output owns its storage.
        write_start, write_tensor: CSR (N + 1, K), input tensors whose bytes each op overwrites.
        input_writer: (E) op that last wrote the bytes of that input in program order.
        workspace: (N) scratch bytes while the op runs.
        hold: (N, bool) ops of kind `hold` or `release` that write nothing: they only keep their inputs alive.
        release: (N, bool) those of kind `release`: a schedule may leave them out.
        storage: (M) tensor that owns the bytes of each tensor.
        nbytes: (M) bytes of each tensor.
        source: (M, bool) tensors that no op writes.
        resident: (M, bool) sources that live for the whole step.
        kept: tensors whose bytes survive the end of the step.
    """

    input_start: Ints
    input_tensor: Ints
    output_start: Ints
    output_tensor: Ints
    output_parent: Ints
    write_start: Ints
    write_tensor: Ints
    input_writer: Ints
    workspace: Ints
    hold: Bools
    release: Bools
    storage: Ints
    nbytes: Ints
    source: Bools
    resident: Bools
    kept: Ints

    @cached_property
    def input_op(self) -> Ints:
        """(E) op that reads each input."""
        return np.repeat(np.arange(self.ops), np.diff(self.input_start))

    @cached_property
    def input_storage(self) -> Ints:
        """(E) tensor that owns the bytes of each input."""
        return self.storage[self.input_tensor]

    @cached_property
    def output_op(self) -> Ints:
        """(F) op that writes each output."""
        return np.repeat(np.arange(self.ops), np.diff(self.output_start))

    @cached_property
    def write_op(self) -> Ints:
        """(K) op that overwrites each of these."""
        return np.repeat(np.arange(self.ops), np.diff(self.write_start))

    @cached_property
    def maker(self) -> Ints:
        """(M) op whose output each tensor is; `NOTHING` for sources."""
        maker = np.full(self.tensors, NOTHING, dtype=np.int64)
        maker[self.output_tensor] = self.output_op
        return maker

    @cached_property
    def last_writer(self) -> Ints:
        """(M) op that wrote the bytes of each storage last in program order; `NOTHING` for none."""
        writer = self.maker.copy()
        writer[self.storage[self.write_tensor]] = self.write_op
        return writer

    @cached_property
    def storages(self) -> Ints:
        """Tensors that own their bytes."""
        return np.flatnonzero(self.storage == np.arange(self.tensors))

    @property
    def ops(self) -> int:
        """Number of ops."""
        return len(self.workspace)

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return len(self.nbytes)


def compile_index(graph: Graph) -> Index:
    """Return the columns of *graph* in one pass over its ops."""

    number = {name: i for i, name in enumerate(graph.tensors)}
    tensors = list(graph.tensors.values())
    storage = [number[t.base] for t in tensors]
    source = np.ones(len(tensors), bool)
    last_writer = [NOTHING] * len(tensors)
    inputs, outputs, writes = _Rows(), _Rows(), _Rows()
    parents: list[int] = []
    writers: list[int] = []
    for position, op in enumerate(graph.ops):
        reads = [number[name] for name in op.inputs]
        read_storages = [storage[tensor] for tensor in reads]
        inputs.add(reads)
        writers.extend([last_writer[s] for s in read_storages])
        overwritten = [number[name] for name in op.mutates]
        writes.add(overwritten)
        for tensor in overwritten:
            last_writer[storage[tensor]] = position
        produced = [number[name] for name in op.outputs]
        outputs.add(produced)
        for tensor in produced:
            if storage[tensor] == tensor:
                parents.append(NOTHING)
                last_writer[tensor] = position
            else:
                over = [i for i, base in enumerate(read_storages) if base == storage[tensor]]
                parents.append(next((i for i in over if reads[i] in overwritten), over[0]))
    source[outputs.values] = False
    hold = np.array([op.kind in KEEPS and not op.outputs and not op.mutates for op in graph.ops], bool)
    return Index(
        input_start=inputs.start(),
        input_tensor=_ints(inputs.values),
        output_start=outputs.start(),
        output_tensor=_ints(outputs.values),
        output_parent=_ints(parents),
        write_start=writes.start(),
        write_tensor=_ints(writes.values),
        input_writer=_ints(writers),
        workspace=_ints([op.workspace for op in graph.ops]),
        hold=hold,
        release=hold & np.array([op.kind == RELEASE for op in graph.ops], bool),
        storage=_ints(storage),
        nbytes=_ints([t.nbytes for t in tensors]),
        source=source,
        resident=source & np.array([t.role in RESIDENT for t in tensors], bool),
        kept=_ints([number[name] for name in graph.outputs]),
    )


def rows(start: Ints, values: Ints) -> list[list[int]]:
    """Return the rows of a CSR column as plain lists."""
    flat = values.tolist()
    return [flat[low:high] for low, high in pairwise(start.tolist())]


def expand(start: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Return (operand numbers, row number of each) of the CSR *rows*, concatenated.

    Operand numbers index the flat operand column; row numbers count within *rows*.
    """
    lengths = start[rows + 1] - start[rows]
    total = int(lengths.sum())
    row = np.repeat(np.arange(len(rows)), lengths)
    before = np.cumsum(lengths) - lengths
    return np.arange(total) + np.repeat(start[rows] - before, lengths), row


class _Rows:
    """Builder of one CSR column."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self._ends = [0]

    def add(self, row: list[int]) -> None:
        self.values.extend(row)
        self._ends.append(len(self.values))

    def start(self) -> Ints:
        return _ints(self._ends)


def _ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)
