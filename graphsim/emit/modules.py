"""Which modules of a captured model can be recomputed, and which of them a schedule recomputes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from graphsim.core.graph import Graph, Phase, Role, Tensor
from graphsim.core.schedule import Schedule
from graphsim.emit.program import UNSEEN
from graphsim.errors import UsageError
from graphsim.recompute.spans import Dataflow

LISTED = 5


@dataclass(frozen=True)
class Modules:
    """The modules of a captured step.

    Attributes:
        graph: the step.
        called: paths of modules that have a forward of their own (a ModuleList has none).
    """

    graph: Graph
    called: frozenset[str]

    @cached_property
    def _flow(self) -> Dataflow:
        return Dataflow(self.graph)

    @cached_property
    def _stop(self) -> int:
        """Return where the optimizer begins."""
        passes = [at for at, op in enumerate(self.graph.ops) if op.phase is not Phase.OPTIMIZER]
        return passes[-1] + 1 if passes else 0

    @cached_property
    def ops(self) -> Mapping[str, tuple[int, ...]]:
        """Return the forward ops of every module and what it contains, by path, in order."""
        found: dict[str, list[int]] = {}
        for at, op in enumerate(self.graph.ops):
            if op.phase is Phase.FORWARD:
                names = op.layer.split(".") if op.layer else []
                for depth in range(1, len(names) + 1):
                    found.setdefault(".".join(names[:depth]), []).append(at)
        return {path: tuple(ops) for path, ops in found.items()}

    @cached_property
    def wrappable(self) -> tuple[str, ...]:
        """Return the modules that give the same when they run again, in the order in which they first run."""
        return tuple(path for path in self.ops if path in self.called and self._repeats(path))

    def _repeats(self, path: str) -> bool:
        """Whether nothing from outside that *path* reads is overwritten, by itself or later."""
        mine = set(self.ops[path])
        after = self.ops[path][-1] + 1
        for at in self.ops[path]:
            outside = {base for base in self._bases(at) if self._flow.producer[base] not in mine}
            if any(self._flow.changes(base, after, self._stop) for base in outside):
                return False
            written = set(self._flow.writes[at]) & outside
            if any(not self._is_statistic(base) for base in written):
                return False
        return True

    def _bases(self, at: int) -> set[int]:
        return {self._flow.storage[t] for t in (*self._flow.inputs[at], *self._flow.outputs[at])}

    def _is_statistic(self, base: int) -> bool:
        tensor = self._tensors[base]
        return tensor.role is Role.BUFFER and tensor.name.rpartition(".")[2].startswith(("running_", "num_batches"))

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.graph.tensors.values())

    @cached_property
    def taped(self) -> frozenset[int]:
        """Return the storages that forward makes and backward reads."""
        flow, ops = self._flow, self.graph.ops
        read = {
            flow.storage[tensor]
            for at in range(self._stop)
            if ops[at].phase is Phase.BACKWARD and ops[at].kind != "hold"
            for tensor in flow.inputs[at]
        }
        made = (base for base in read if flow.producer[base] >= 0)
        return frozenset(base for base in made if ops[flow.producer[base]].phase is Phase.FORWARD)

    def tape(self, path: str) -> frozenset[int]:
        """Return what *path* makes, backward reads, and no forward op outside *path* does: freed if it is wrapped."""
        if path not in self._tapes:
            self._tapes[path] = self._tape(path)
        return self._tapes[path]

    @cached_property
    def _tapes(self) -> dict[str, frozenset[int]]:
        return {}

    def _tape(self, path: str) -> frozenset[int]:
        mine = set(self.ops[path])
        return frozenset(
            base
            for base in self.taped
            if self._flow.producer[base] in mine and all(at in mine for at in self._readers.get(base, ()))
        )

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for at in self.ops_of_forward:
            for tensor in self._flow.inputs[at]:
                found.setdefault(self._flow.storage[tensor], []).append(at)
        return found

    @cached_property
    def ops_of_forward(self) -> tuple[int, ...]:
        """Return the forward ops, in order."""
        ops = self.graph.ops
        return tuple(at for at in range(self._stop) if ops[at].phase is Phase.FORWARD and ops[at].kind != "hold")

    def tape_bytes(self, path: str) -> int:
        """Return the bytes of `tape`."""
        return int(sum(self.graph.index.nbytes[base] for base in self.tape(path)))

    # -- from a schedule -----------------------------------------------------------------------

    def of_schedule(self, schedule: Schedule, strategy: str) -> dict[str, tuple[str, ...]]:
        """Return the modules to wrap so that what *schedule* recomputes is recomputed.

        Raises:
            UsageError: checkpoints of modules cannot express it; the message says why, and what can be.
        """
        again = self._again(schedule, strategy)
        dropped = {base for base in self.taped if self._flow.producer[base] in again}
        whole = [path for path in self.wrappable if self._is_dropped(path, dropped)]
        chosen: dict[str, tuple[str, ...]] = dict.fromkeys(_outermost(whole), ())
        covered = set().union(*(self.ops[path] for path in chosen))
        rest = {base for base in dropped if self._flow.producer[base] not in covered and self.graph.index.nbytes[base]}
        for path in _outermost(self._innermost(base, strategy) for base in rest):
            chosen = {other: saved for other, saved in chosen.items() if not other.startswith(f"{path}.")}
            chosen[path] = self._saved(path, again)
        return {path: chosen[path] for path in self.ops if path in chosen}

    def _again(self, schedule: Schedule, strategy: str) -> set[int]:
        again: dict[int, int] = {}
        for at in schedule.ops[schedule.repeats].tolist():
            again[at] = again.get(at, 1) + 1
        for at, count in again.items():
            op = self.graph.ops[at]
            if count > 2:
                raise UsageError(
                    f"{strategy}'s plan runs op '{op.name}' {count} times, and a checkpoint runs it twice; PyTorch can "
                    "apply plans without nested recompute: --strategy auto, blocks, every_k or selective"
                )
            if op.phase is not Phase.FORWARD:
                raise UsageError(f"{strategy}'s plan runs op '{op.name}' of {op.phase.value} again; checkpoints do not")
        return set(again)

    def _is_dropped(self, path: str, dropped: set[int]) -> bool:
        tape = {base for base in self.tape(path) if self.graph.index.nbytes[base]}
        return bool(tape) and tape <= dropped

    def _innermost(self, base: int, strategy: str) -> str:
        """Return the smallest module that makes *base* and holds all that keeps it for backward."""
        fitting = [path for path in self.wrappable if base in self.tape(path)]
        if fitting:
            return max(fitting, key=lambda path: path.count("."))
        op = self.graph.ops[self._flow.producer[base]]
        listed = ", ".join(self.wrappable[:LISTED]) + (", ..." if len(self.wrappable) > LISTED else "")
        raise UsageError(
            f"{strategy}'s plan recomputes op '{op.name}', but what it makes is kept by ops outside of every "
            f"module that can be checkpointed ({listed or 'there is none'}); --strategy auto chooses among these"
        )

    def _saved(self, path: str, again: set[int]) -> tuple[str, ...]:
        """Return the ops of *path* whose results must be there later, and that the plan does not run again."""
        flow = self._flow
        mine = set(self.ops[path])
        needed = set(self.tape(path))
        needed |= {
            flow.storage[t] for at in again & mine for t in flow.inputs[at] if flow.producer[flow.storage[t]] in mine
        }
        makers = {flow.producer[base] for base in needed} - again
        # A result that is overwritten in place cannot be stored, nor what else its op returns: PyTorch refuses.
        makers = {at for at in makers if not any(flow.storage[t] in flow.mutators for t in flow.outputs[at])}
        counts: dict[str, int] = {}
        names = []
        for at in self.ops[path]:
            kind = self.graph.ops[at].kind
            if kind in UNSEEN:
                continue
            counts[kind] = counts.get(kind, -1) + 1
            if at in makers:
                names.append(f"{kind}:{counts[kind]}")
        return tuple(names)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return those of *paths* that lie in no other."""
    found: list[str] = []
    for path in sorted(set(paths), key=lambda path: (path.count("."), path)):
        if not any(path.startswith(f"{other}.") for other in found):
            found.append(path)
    return found
