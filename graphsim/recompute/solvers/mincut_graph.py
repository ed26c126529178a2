"""The joint graph as PyTorch's partitioner sees it: what may run again in backward, and what storing a value weighs.

Source: torch/_functorch/partitioners.py of PyTorch 2.13: `solve_min_cut` (bans, weights, the cut) and
`get_default_op_list` (the lists of ops below). Its nodes are aten ops after decomposition; ours are the kernels that
run eagerly, so the differences are:

- A node is a unit (see `recompute.problem`): an op with what overwrites its result in place and its views, which
  PyTorch has apart after functionalization. It may run again if all its parts may. Views are no nodes, and do not
  count in the distance from backward. What several outputs of a kernel weigh, each weighs by itself, as with getitem.
- Kernels that Inductor decomposes into ops of the list (`DECOMPOSED`) count as on it.
- A node of kind 'node', of which nothing is known, counts as compute-intensive.
- What lives for the whole step (parameters, inputs of the batch) is free to save, as
  `config.treat_parameters_as_free_to_save` has it for parameters.
- A unit that cannot run again without reading what has changed since is always stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from heapq import heappop, heappush

import networkx as nx
import numpy as np

from graphsim.core.graph import Graph, Phase
from graphsim.core.index import NOTHING, Bools
from graphsim.core.kernels import base_kind, kernel_of
from graphsim.recompute.problem import Problem

_ALLOWED = """
abs acos acosh add addcdiv addcmul alias amax angle any arange argmax as_strided asin asinh atan atan2 atanh
bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor broadcast_tensors ceil celu
clamp clamp_max clamp_min clip clone conj_physical copysign cos cosh deg2rad digamma div elu empty empty_like eq equal
erf erfc erfinv exp exp2 expand expm1 float_power floor fmax fmin fmod frac frexp full full_like gather gcd ge gelu
gelu_backward grad_sum_to_size gt hardshrink hardsigmoid hardtanh heaviside hypot i0 igamma igammac index isfinite
isinf isnan isneginf isposinf lcm ldexp le leaky_relu lerp lgamma lift_fresh_copy log log10 log1p log2 logaddexp
logaddexp2 logical_and logical_not logical_or logical_xor logit logit_backward lt masked_fill max maximum mean min
minimum mish mul mvlgamma nan_to_num native_dropout_backward ne neg new_zeros nextafter ones permute polygamma
positive pow rad2deg reciprocal relu relu6 remainder reshape round rrelu rsqrt rsub scalar_tensor select selu sgn
sigmoid sigmoid_backward sign signbit silu silu_backward sin sinc sinh slice softplus softshrink split sqrt square
squeeze std sub sum sum_to_size t tan tanh tanh_backward threshold threshold_backward to to_copy triu true_divide
trunc type_as unsafe_view unsqueeze var var_mean view where xlogy zeros zeros_like
"""
_DECOMPOSED = """
add_scalar batch_norm causal_mask dropout_backward embedding floor_divide layer_norm log_softmax mul_scalar
mul_scalar_backward native_batch_norm native_layer_norm relative_bucket relative_position relu6_backward relu_backward
rms_norm rotate_half rotate_half_backward shift_right softmax transpose where_backward
"""
ALLOWED = frozenset(_ALLOWED.split())
"""`recomputable_ops`: cheap enough to run again by default; they fuse with each other."""

DECOMPOSED = frozenset(_DECOMPOSED.split())
"""Kernels and names of ours for what Inductor makes of ops of the list."""

RANDOM = frozenset(("bernoulli", "dropout", "native_dropout", "rand_like", "randn_like"))
"""`random_ops`: they fuse, and are not run again."""

_Node = str | int | tuple[int]
"""Of the network: source or sink, a unit, a value that several read."""

_FAR, _BIAS = 100, 1.1
"""A node weighs `_BIAS` times more for every step away from backward, up to `_FAR`."""
_LONG = 100
"""A chain of ops that fuse is broken after so many."""


@cache
def fuses(kind: str) -> bool:
    """Whether ops of *kind* fuse with their neighbours (`OpTypes.is_fusible`)."""
    name = base_kind(kind)
    return name in ALLOWED or name in DECOMPOSED or name in RANDOM


def is_intensive(kind: str) -> bool:
    """Whether ops of *kind* are of `compute_intensive_ops`, or kernels of ours that belong there."""
    return kernel_of(kind).multiplies or base_kind(kind) in ("node", "upsample", "upsample_bilinear2d")


@dataclass(frozen=True, slots=True)
class Bans:
    """Which rules forbid that an op runs again (`MinCutOptions`); reductions are never run again by default."""

    used_far_apart: bool = True
    long_fusible_chains: bool = True
    materialized_backward: bool = True
    not_in_allowlist: bool = True


@dataclass(frozen=True, slots=True)
class Cut:
    """Units that run again in backward, and values that are saved for it."""

    again: frozenset[int]
    saved: tuple[int, ...]


class JointGraph:
    """Forward units and what backward reads of them.

    Attributes:
        units: of the forward pass, in order; each has a place in it.
        place: of each unit in *units*.
        makes: values that each unit makes.
        values: that forward makes, with their unit.
        parts: ops of each unit, views apart.
        readers: forward units that read each value.
        backward: ops of backward and later that read each value, holds and views apart.
        stored: units that cannot run again, whatever the cut.
    """

    def __init__(self, graph: Graph, problem: Problem) -> None:
        self.graph, self.problem = graph, problem
        phases = [op.phase for op in graph.ops]
        works = [bool(problem.makes[op] or graph.ops[op].mutates) for op in range(problem.ops)]
        unit_of = problem.unit.tolist()
        made = [u for u in range(problem.ops) if unit_of[u] == u and problem.makes[problem.ops + u]]
        self.units = [unit for unit in made if phases[unit] is Phase.FORWARD]
        self.place = {unit: place for place, unit in enumerate(self.units)}
        self.makes = {unit: problem.makes[problem.ops + unit] for unit in self.units}
        self.values = {value: unit for unit, makes in self.makes.items() for value in makes}
        self.parts = {unit: [op for op in problem.members[unit] if works[op]] for unit in self.units}
        readers: dict[int, dict[int, None]] = {value: {} for value in self.values}
        self.backward: dict[int, list[int]] = {value: [] for value in self.values}
        for op, unit in enumerate(unit_of):
            for value in problem.reads[op] if works[op] else ():
                if self.values.get(value, unit) == unit:
                    continue
                if phases[op] is not Phase.FORWARD:
                    self.backward[value].append(op)
                elif unit in self.place:
                    readers[value][unit] = None
        self.readers = {value: list(units) for value, units in readers.items()}
        end = max((op for ops in self.backward.values() for op in ops), default=NOTHING)
        self.stored = {unit for unit in self.units if not self._may_run(unit, end, phases)}
        self._again: dict[frozenset[int], frozenset[int]] = {}

    def _may_run(self, unit: int, end: int, phases: list[Phase]) -> bool:
        forward = all(phases[op] is Phase.FORWARD for op in self.parts[unit])
        return forward and bool(self.problem.until[unit] >= end)

    @cached_property
    def users(self) -> dict[int, list[int]]:
        """Forward units that read what each unit makes."""
        return {
            unit: list(dict.fromkeys(reader for value in makes for reader in self.readers[value]))
            for unit, makes in self.makes.items()
        }

    @cached_property
    def distance(self) -> dict[int, int]:
        """Steps of each unit from backward (`dist_from_bw`); many, where it does not lead there."""
        found: dict[int, int] = {}
        for unit in reversed(self.units):
            steps = [found.get(user, 10**9) + 1 for user in self.users[unit]]
            read = any(self.backward[value] for value in self.makes[unit])
            found[unit] = min([*steps, 1 if read else 10**9])
        return found

    @cached_property
    def kinds(self) -> dict[int, list[str]]:
        """Kinds of the ops of each unit."""
        return {unit: [self.graph.ops[op].kind for op in parts] for unit, parts in self.parts.items()}

    @cached_property
    def fusible(self) -> dict[int, bool]:
        """Whether each unit fuses with its neighbours."""
        return {unit: all(map(fuses, kinds)) for unit, kinds in self.kinds.items()}

    def fuse(self, unit: int, user: int) -> bool:
        """Whether *user*, a forward unit, fuses with *unit*."""
        return self.kinds[user][0] == "cat" or (self.fusible[unit] and self.fusible[user])

    def fuses_behind(self, unit: int, op: int) -> bool:
        """Whether *op*, of backward, fuses with *unit*."""
        kind = self.graph.ops[op].kind
        return kind == "cat" or (self.fusible[unit] and fuses(kind))

    @cached_property
    def weight(self) -> dict[int, int]:
        """What saving each value costs in the cut (`get_node_weight`)."""
        found = {}
        for value, unit in self.values.items():
            weight = int(int(self.problem.size[value]) * _BIAS ** max(min(self.distance[unit], _FAR), 1))
            inside = all(self.fuse(unit, user) for user in self.readers[value])
            inside = inside and all(self.fuses_behind(unit, op) for op in self.backward[value])
            found[value] = 2 * weight if inside else weight
        return found

    def bytes_of(self, unit: int) -> int:
        """Return the bytes that *unit* makes."""
        return int(self.problem.size[self.makes[unit]].sum())

    # -- bans ----------------------------------------------------------------------------------------------

    def banned(self, bans: Bans) -> set[int]:
        """Return the units that are not run again (`should_ban_recomputation` and the rules after it)."""
        found = set(self.stored) | {unit for unit in self.units if self._is_banned(unit, bans)}
        if bans.used_far_apart:
            self._ban_far_apart(found)
        if bans.long_fusible_chains:
            self._ban_long_chains(found)
        return found

    def _is_banned(self, unit: int, bans: Bans) -> bool:
        names = [base_kind(kind) for kind in self.kinds[unit]]
        if bans.not_in_allowlist:
            if any(name not in ALLOWED and name not in DECOMPOSED for name in names):
                return True
        elif any(name in RANDOM or is_intensive(name) for name in names):
            return True
        return (bans.materialized_backward and self._is_materialized(unit)) or self._is_reduction(unit)

    def _is_materialized(self, unit: int) -> bool:
        """Whether backward reads the unit's values in memory anyway (`is_materialized_backwards`)."""
        return any(not self.fuses_behind(unit, op) for value in self.makes[unit] for op in self.backward[value])

    def _is_reduction(self, unit: int) -> bool:
        op = self.graph.ops[self.parts[unit][0]]
        tensors = self.graph.tensors
        made = sum(tensors[name].nbytes for name in op.outputs)
        return 4 * made < sum(tensors[name].nbytes for name in dict.fromkeys(op.inputs))

    def _ban_far_apart(self, banned: set[int]) -> None:
        """Of what is read near and far, behind an op that does not fuse, the far reader is not run again."""
        for unit in self.units:
            users = self.users[unit]
            places = [self.place[user] for user in users]
            if not users:
                continue
            limit = self._first_unfusible(users, max(places))
            banned |= {
                user for user, place in zip(users, places, strict=True) if place > limit and self.fuse(unit, user)
            }

    def _first_unfusible(self, starts: list[int], limit: int) -> int:
        """Return the place of the first unit behind *starts* that does not fuse, or *limit*."""
        heap = [(self.place[unit], True) for unit in starts]
        seen = set(heap)
        heap.sort()
        while heap:
            place, fused = heappop(heap)
            if not fused:
                return place
            unit = self.units[place]
            for user in self.users[unit]:
                entry = (self.place[user], self.fuse(unit, user))
                if entry[0] <= limit and entry not in seen:
                    seen.add(entry)
                    heappush(heap, entry)
        return limit

    def _ban_long_chains(self, banned: set[int]) -> None:
        visited: set[int] = set()
        for start in range(len(self.units)):
            heap = [start]
            while heap:
                place = heappop(heap)
                if place in visited:
                    continue
                visited.add(place)
                unit = self.units[place]
                if place > start + _LONG and not heap:
                    banned.add(unit)
                    break
                for user in self.users[unit]:
                    if self.fuse(unit, user) and user not in banned:
                        heappush(heap, self.place[user])

    # -- the cut -------------------------------------------------------------------------------------------

    def cut(self, banned: set[int]) -> Cut:
        """Return the cheapest set of values to save, if the units *banned* do not run again (`solve_min_cut`).

        Of several, the one nearest to backward, as networkx gives it. Cuts differ in few islands: what may run again
        in one is cut once.
        """
        able = [island - banned for island in self._islands]
        fresh = [units for units in able if units not in self._again]
        if fresh:
            again = self._cheapest(_union(fresh))
            self._again.update((units, units & again) for units in fresh)
        return self._cut(_union(self._again[units] for units in able))

    @cached_property
    def _islands(self) -> list[frozenset[int]]:
        """The units in groups whose cuts do not depend on each other.

        A value that backward reads is saved unless its maker runs again, whoever else reads it: only the other values
        tie their makers and readers.
        """
        islands = nx.utils.UnionFind(self.units)
        for value, unit in self.values.items():
            if not self.backward[value]:
                islands.union(unit, *self.readers[value])
        return [frozenset(island) for island in islands.to_sets()]

    def _cheapest(self, able: frozenset[int]) -> frozenset[int]:
        """Return which of the units *able* run again in the cheapest cut, if no others do."""
        network = nx.DiGraph()
        network.add_nodes_from(("source", "sink"))
        capacity = Counter[tuple[_Node, _Node]]()
        for value, unit in self.values.items():
            head = self._head(value, able)
            if head is None:
                continue
            capacity[unit if unit in able else "source", head] += self.weight[value]
            if isinstance(head, tuple):
                network.add_edges_from((head, user) for user in self.readers[value] if user in able)  # infinite
        network.add_weighted_edges_from(((*edge, width) for edge, width in capacity.items()), weight="capacity")
        _, (_, behind) = nx.minimum_cut(network, "source", "sink")
        return able.intersection(behind)

    def _head(self, value: int, able: frozenset[int]) -> _Node | None:
        """Return the node that *value* leads to: the sink, its only reader, one of its own, or none."""
        if self.backward[value]:
            return "sink"
        users = [user for user in self.readers[value] if user in able]
        if len(users) > 1:
            return (value,)
        return users[0] if users else None

    def _cut(self, again: frozenset[int]) -> Cut:
        """Return the cut that runs *again*: it saves what these and backward read of the others."""
        others = (value for value, unit in self.values.items() if unit not in again)
        return Cut(again, tuple(v for v in others if self.backward[v] or not again.isdisjoint(self.readers[v])))

    def everything(self) -> Cut:
        """Return the cut that runs all again that can (a budget of 0)."""
        return self._cut(frozenset(self.units) - self.stored)

    def saved_bytes(self, cut: Cut) -> int:
        """Return the bytes that *cut* saves: values, and what exists before that backward or a recompute reads."""
        reading = self._in_phase(Phase.BACKWARD)
        reading[[op for unit in cut.again for op in self.parts[unit]]] = True
        return int(self.problem.size[list(cut.saved)].sum()) + self._sources(reading)

    @cached_property
    def input_bytes(self) -> int:
        """Bytes of what exists before the step and forward or backward reads: the least that can be saved."""
        return self._sources(self._in_phase(Phase.FORWARD, Phase.BACKWARD))

    def _in_phase(self, *phases: Phase) -> Bools:
        """Return which ops are of one of *phases*."""
        return np.array([op.phase in phases for op in self.graph.ops], bool)

    def _sources(self, reading: Bools) -> int:
        """Return the bytes of what exists before the step and the ops that *reading* marks read."""
        index = self.graph.index
        read = np.zeros(index.tensors, bool)
        read[index.input_storage[reading[index.input_op]]] = True
        return int(index.nbytes[read & index.resident].sum())


def _union(groups: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset[int]().union(*groups)
