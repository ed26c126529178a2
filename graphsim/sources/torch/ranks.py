"""The ranks of a training on several GPUs: those that may differ are captured, the one that needs most is shown.

Which those are is found out by capturing. Where the first, the middle and the last rank are equal, the ones between are
taken to be so, which is said. Where they run the same ops on tensors of other sizes, as where a dimension does not
divide, the rank at which sizes change is searched between them. Else, as in a pipeline, every rank is captured, up to
`MOST`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.errors import CaptureError
from graphsim.sources.torch.capture import Capture
from graphsim.step.training import Training

MOST = 16
"""Ranks that are captured where all may differ."""


@dataclass(frozen=True)
class _Captured:
    """Both steps of one rank, with what tells it from others."""

    rank: int
    steps: tuple[Graph, Graph]
    peaks: tuple[int, int]
    kinds: bytes
    sizes: bytes

    def row(self, ranks: list[int]) -> dict[str, Any]:
        """Return what is said of *ranks*, which are equal to this one."""
        sent: Counter[str] = Counter()
        for op in self.steps[1].ops:
            if op.attributes.get("sent"):
                sent[op.kind] += int(op.attributes["sent"])
        return {
            "ranks": ranks,
            "first_peak_bytes": self.peaks[0],
            "peak_bytes": self.peaks[1],
            "sent_bytes": sum(sent.values()),
            "sent": dict(sent),
        }


def steps_of(training: Training, capture: Callable[[Training], Capture]) -> tuple[Graph, Graph]:
    """Return step 1 and the steady step: of the rank that *training* names, or of the one that needs most.

    Their attribute ``ranks`` says of each captured rank the peaks and what it sends, in bytes, worst first.
    """
    if not training.gpus:
        return capture(training).steps()

    def look(rank: int) -> _Captured:
        found = _captured(capture(replace(training, rank=rank)), rank)
        _check_sent(found, training)
        return found

    if training.rank >= 0:
        found = [look(training.rank)]
        note = ""
    else:
        found, note = _different(training.gpus, look)
    found.sort(key=lambda one: (-one.peaks[1], -one.peaks[0], one.rank))
    groups: dict[bytes, list[_Captured]] = {}
    for one in found:
        groups.setdefault(one.kinds + one.sizes, []).append(one)
    table = [group[0].row(sorted(one.rank for one in group)) for group in groups.values()]
    first, steady = (_with(graph, found[0].rank, table, note) for graph in found[0].steps)
    return first, steady


def _check_sent(found: _Captured, training: Training) -> None:
    """Check that a model that was wrapped for a training on several ranks sends something.

    Raises:
        CaptureError: it does not, as where a step calls a model of its own in place of the one that it is given.
    """
    wrapped = training.ddp or training.fsdp or training.tp
    if wrapped and training.gpus > 1 and training.mode == "train" and not found.row([])["sent_bytes"]:
        raise CaptureError("nothing is sent in a step: it must call the model that it is given, which is wrapped")


def _different(count: int, look: Callable[[int], _Captured]) -> tuple[list[_Captured], str]:
    known = {0: look(0)}
    most = known[0].steps[1].attributes.get("most_states")
    if most is not None:  # all else of them is equal
        known[most] = known.get(most) or look(most)
        less = count - len(known)
        return list(known.values()), f"{less} of {count} ranks hold no more optimizer states: --rank shows one"
    if count > 1:
        known[count - 1] = look(count - 1)
    first, last = known[0], known[count - 1]
    if first.kinds == last.kinds and count > 2:
        known[count // 2] = look(count // 2)
    if len({one.kinds for one in known.values()}) == 1:
        _search(0, count // 2, known, look)
        _search(count // 2, count - 1, known, look)
        if between := count - len(known):
            note = f"{between} of {count} ranks stand between equal ones and are taken to be equal: --rank shows one"
            return list(known.values()), note
    else:
        step = max(1, -(-count // MOST))
        for rank in range(0, count, step):
            if rank not in known:
                known[rank] = look(rank)
        if step > 1:
            note = f"ranks differ, and every {step}th of {count} was captured: --rank shows another"
            return list(known.values()), note
    return list(known.values()), ""


def _search(low: int, high: int, known: dict[int, _Captured], look: Callable[[int], _Captured]) -> None:
    """Capture between two ranks until those that differ are neighbours."""
    if high - low > 1 and not _same(known[low], known[high]):
        middle = (low + high) // 2
        known[middle] = look(middle)
        _search(low, middle, known, look)
        _search(middle, high, known, look)


def _same(one: _Captured, other: _Captured) -> bool:
    return one.kinds == other.kinds and one.sizes == other.sizes


def _captured(captured: Capture, rank: int) -> _Captured:
    steps = captured.steps()
    kinds, sizes = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for graph in steps:
        for op in graph.ops:
            kinds.update(f"{op.kind},{op.phase};".encode())
            sizes.update(f"{op.workspace},{op.inputs},{op.outputs};".encode())
        for tensor in graph.tensors.values():
            sizes.update(f"{tensor.name},{tensor.nbytes},{tensor.role};".encode())
    first, steady = (simulate(graph).peak for graph in steps)
    return _Captured(rank, steps, (first, steady), kinds.digest(), sizes.digest())


def _with(graph: Graph, rank: int, table: list[dict[str, Any]], note: str) -> Graph:
    attributes = {**graph.attributes, "rank": rank, "ranks": table}
    if note:
        attributes["warnings"] = [*graph.attributes.get("warnings", ()), note]
    return Graph(graph.ops, graph.tensors.values(), outputs=graph.outputs, name=graph.name, attributes=attributes)
