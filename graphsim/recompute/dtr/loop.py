"""DTR's run, step by step: plain loops, over lists when interpreted and over arrays as machine code."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from graphsim.recompute.dtr.program import (
    AFTER,
    BEFORE,
    BLOCKED,
    COMPLETE,
    CONSTANT,
    EVICTABLE,
    HOLD,
    LAST_USE,
    MADE,
    NEED,
    OPS,
    OUTPUTS,
    READS,
    RELEASED,
    REMAKER,
    SIZE,
    STORAGE,
    TENSORS,
    TOUCHED,
    Program,
)
from graphsim.recompute.dtr.state import (
    ARRIVALS,
    BARRED,
    BEGUN,
    BOTTOM,
    CLASS,
    COUNT,
    CREATED,
    DEFINED,
    DEPTH,
    EVICTED,
    EVICTIONS,
    FREE,
    FREED,
    FRESH,
    HEAD,
    JOINED,
    LAST,
    LENGTH,
    LOCKS,
    MISSED,
    MISSING,
    NEXT,
    NODE,
    OWN,
    PEAK,
    PLACE,
    POOL,
    POSITION,
    PREVIOUS,
    SEARCHES,
    SEEN,
    STACK,
    TARGET,
    THERE,
    TOLD,
    USAGE,
    VALUE,
    WAITING,
    State,
)

RUNNING, FINISHED, STUCK = range(3)
"""What became of a run: it goes on, it has come to its end, or nothing is left to evict or it costs too much."""
ALONE, CLASSES, MAKERS, BOTH = range(4)
"""Whose costs a rule adds to a storage's own: of none; of the classes around it; of the evicted that must come back
before it; of those, and those that need it."""


class Rule(NamedTuple):
    """A heuristic: which factors make the score of a storage; the lowest goes first.

    Attributes:
        costly: its cost, with that of those *around* it.
        around: `ALONE`, `CLASSES`, `MAKERS` or `BOTH`.
        sized: one by its bytes.
        stale: one by the time since its last access.
    """

    costly: bool
    around: int
    sized: bool
    stale: bool


def advance(p: Program, s: State, rule: Rule, budget: int, limit: float, longest: float, pause: int) -> int:
    """Go on until the next pause; return what became of the run.

    Args:
        p: the program.
        s: where it is; follows.
        rule: what to evict.
        budget: bytes.
        limit: the time at which it has cost too much.
        longest: the executions that are too many, from here.
        pause: executions up to then.
    """
    counts = s.counts
    counts[LENGTH] = 0
    while counts[LENGTH] < pause:
        if counts[DEPTH]:
            if not go_on(p, s, rule, budget) or s.clock[0] > limit or counts[LENGTH] > longest:
                return STUCK
        elif counts[BEGUN]:
            settle(p, s, rule)
            counts[BEGUN] = 0
            counts[POSITION] += 1
        elif counts[POSITION] < len(p.costs):
            begin_op(p, s)
        elif counts[POSITION] < len(p.costs) + len(p.kept):
            if not keep(p, s, p.kept[counts[POSITION] - len(p.costs)]):
                return STUCK
        else:
            return FINISHED
    return RUNNING


def begin_op(p: Program, s: State) -> None:
    """The next op of program order has its turn."""
    op, counts = s.counts[POSITION], s.counts
    counts[BEGUN] = 1
    if p.nodes[HOLD][op]:
        hold(p, s)
    else:
        first, last = p.starts[OUTPUTS][op], p.starts[OUTPUTS][op + 1]
        begin(p, s, op, p.items[first] if first < last else -1)  # it can: nothing else is missing


def keep(p: Program, s: State, tensor: int) -> bool:
    """All that outlives the step must be there in the end: *tensor* stays once it is; return whether it can be."""
    if not s.tensors[DEFINED][tensor]:
        return begin(p, s, p.tensors[REMAKER][tensor], tensor)
    lock(p, s, tensor)
    s.counts[POSITION] += 1
    return True


def hold(p: Program, s: State) -> None:
    """An op that holds what it touches has its turn: from now on, to evict that frees it."""
    op = s.counts[POSITION]
    s.order[s.counts[LENGTH]] = op
    s.counts[LENGTH] += 1
    for at in range(p.starts[TOUCHED][op], p.starts[TOUCHED][op + 1]):
        s.tensors[BARRED][p.items[at]] = 0
        offer(p, s, p.items[at])


def settle(p: Program, s: State, rule: Rule) -> None:
    """The op of program order is done: what nothing uses after it goes at once."""
    op = s.counts[POSITION]
    for at in range(p.starts[BLOCKED][op], p.starts[BLOCKED][op + 1]):
        s.tensors[BARRED][p.items[at]] = 1
        leave(s, p.items[at])
    for at in range(p.starts[RELEASED][op], p.starts[RELEASED][op + 1]):
        storage = p.items[at]
        if s.tensors[THERE][storage] and not p.tensors[CONSTANT][storage] and not s.tensors[LOCKS][storage]:
            drop(p, s, rule, storage)


def begin(p: Program, s: State, node: int, target: int) -> bool:
    """Put a frame on the stack: *node* is to run, for tensor *target*; return whether it can."""
    counts = s.counts
    if node < 0:  # a source, which is gone
        return False
    first, last = p.starts[READS][node], p.starts[READS][node + 1]
    if counts[MISSING] + last - first > len(s.frames[MISSED]):  # what is missing would need itself
        return False
    s.frames[NODE][counts[DEPTH]] = node
    s.frames[TARGET][counts[DEPTH]] = target
    s.frames[BOTTOM][counts[DEPTH]] = counts[MISSING]
    counts[DEPTH] += 1
    for at in range(last - 1, first - 1, -1):  # what is read first is made first
        tensor = p.items[at]
        s.reals[LAST][p.tensors[STORAGE][tensor]] = s.clock[0]
        if s.tensors[DEFINED][tensor]:
            lock(p, s, tensor)
        else:
            s.frames[MISSED][counts[MISSING]] = tensor
            counts[MISSING] += 1
    return True


def go_on(p: Program, s: State, rule: Rule, budget: int) -> bool:
    """Run the topmost frame, or begin one for what it misses first; return whether it can."""
    counts, top = s.counts, s.counts[DEPTH] - 1
    while counts[MISSING] > s.frames[BOTTOM][top]:
        tensor = s.frames[MISSED][counts[MISSING] - 1]
        if not s.tensors[DEFINED][tensor]:
            return begin(p, s, p.tensors[REMAKER][tensor], tensor)
        lock(p, s, tensor)
        counts[MISSING] -= 1
    counts[DEPTH] = top
    node = s.frames[NODE][top]
    while counts[USAGE] + p.nodes[NEED][node] > budget:
        if not counts[POOL]:
            return False
        counts[EVICTIONS] += 1
        drop(p, s, rule, lowest(p, s, rule))
    counts[PEAK] = max(counts[PEAK], counts[USAGE] + p.nodes[NEED][node])
    execute(p, s, rule, node, s.frames[TARGET][top])
    return True


def execute(p: Program, s: State, rule: Rule, node: int, target: int) -> None:
    """Run *node*: there is room, and what it reads is there."""
    counts = s.counts
    fresh = 0
    for place in range(p.starts[OPS][node], p.starts[OPS][node + 1]):
        op = p.items[place]
        s.clock[0] += p.costs[op]
        s.order[counts[LENGTH]] = op
        counts[LENGTH] += 1
        for at in range(p.starts[OUTPUTS][op], p.starts[OUTPUTS][op + 1]):
            tensor = p.items[at]
            s.tensors[DEFINED][tensor] = 1
            if p.tensors[STORAGE][tensor] == tensor and not s.tensors[THERE][tensor]:
                s.tensors[THERE][tensor] = 1
                counts[USAGE] += p.tensors[SIZE][tensor]
                s.tensors[FRESH][fresh] = tensor
                fresh += 1
    if node < len(p.costs):
        create(p, s, node)
    for wanted in range(2):  # what was asked for joins the pool last
        for place in range(fresh):
            storage = s.tensors[FRESH][place]
            if (storage == target) == (wanted == 1):
                if node >= len(p.costs):
                    come_back(p, s, rule, storage)
                offer(p, s, storage)
    for at in range(p.starts[READS][node], p.starts[READS][node + 1]):
        storage = p.tensors[STORAGE][p.items[at]]
        s.tensors[LOCKS][storage] -= 1
        offer(p, s, storage)


def create(p: Program, s: State, op: int) -> None:
    """*op* has run for the first time."""
    s.counts[CREATED] = op + 1
    for at in range(p.starts[MADE][op], p.starts[MADE][op + 1]):
        s.reals[OWN][p.items[at]] += p.costs[op]
    for at in range(p.starts[OUTPUTS][op], p.starts[OUTPUTS][op + 1]):
        s.reals[LAST][p.tensors[STORAGE][p.items[at]]] = s.clock[0]


def come_back(p: Program, s: State, rule: Rule, storage: int) -> None:
    """*storage* was made again."""
    if p.tensors[EVICTABLE][storage]:
        s.tensors[EVICTED][storage] = 0
        if rule.around == CLASSES:
            part(s, storage)
    elif p.tensors[LAST_USE][storage] <= min(s.counts[POSITION], len(p.costs) - 1):  # by the way, and of no use
        s.tensors[THERE][storage] = 0
        s.counts[USAGE] -= p.tensors[SIZE][storage]


def lock(p: Program, s: State, tensor: int) -> None:
    """Keep the storage of *tensor* from being evicted."""
    storage = p.tensors[STORAGE][tensor]
    s.tensors[LOCKS][storage] += 1
    leave(s, storage)


def offer(p: Program, s: State, storage: int) -> None:
    """Let *storage* join the pool of those that may be evicted, if it is one."""
    counts = s.counts
    if (
        p.tensors[EVICTABLE][storage]
        and s.tensors[PLACE][storage] < 0
        and not s.tensors[LOCKS][storage]
        and not s.tensors[BARRED][storage]
        and s.tensors[THERE][storage]
        and counts[POSITION] >= p.tensors[COMPLETE][storage]
    ):
        s.tensors[PLACE][storage] = counts[POOL]
        s.tensors[WAITING][counts[POOL]] = storage
        counts[POOL] += 1
        counts[ARRIVALS] += 1
        s.tensors[JOINED][storage] = counts[ARRIVALS]


def leave(s: State, storage: int) -> None:
    """Take *storage* out of the pool, if it is there: the last one takes its place."""
    place = s.tensors[PLACE][storage]
    if place >= 0:
        s.counts[POOL] -= 1
        last = s.tensors[WAITING][s.counts[POOL]]
        s.tensors[WAITING][place], s.tensors[PLACE][last] = last, place
        s.tensors[PLACE][storage] = -1


def drop(p: Program, s: State, rule: Rule, storage: int) -> None:
    """Free *storage*."""
    leave(s, storage)
    s.tensors[THERE][storage] = 0
    s.counts[USAGE] -= p.tensors[SIZE][storage]
    for at in range(p.starts[TENSORS][storage], p.starts[TENSORS][storage + 1]):
        s.tensors[DEFINED][p.items[at]] = 0
    if p.tensors[EVICTABLE][storage]:
        s.tensors[EVICTED][storage] = 1
        if rule.around == CLASSES:
            join(p, s, storage)


def lowest(p: Program, s: State, rule: Rule) -> int:
    """Return the storage of the lowest score in the pool; of equals the one that joined last, of zeros first."""
    size, joined, pool = p.tensors[SIZE], s.tensors[JOINED], s.tensors[WAITING]
    own, last, now = s.reals[OWN], s.reals[LAST], s.clock[0]
    best, least = -1, inf
    for place in range(s.counts[POOL]):
        storage = pool[place]
        weight = 1.0
        if rule.sized:
            weight = float(size[storage])
        if rule.stale:
            weight *= now - last[storage]
        score = inf
        if weight > 0:
            cost = own[storage] if rule.costly else 1.0
            if cost / weight <= least:  # else its neighbours do not matter
                if rule.around == CLASSES:
                    cost += class_costs(p, s, storage)
                elif rule.around >= MAKERS:
                    enough = least * weight * (1 + 1e-9)  # what is above it by rounding only is worked out
                    cost = reached(p, s, BEFORE, storage, cost, enough)
                    if rule.around == BOTH:
                        cost = reached(p, s, AFTER, storage, cost, enough)
            score = cost / weight
        if score < least or best < 0 or (score == least and (joined[storage] < joined[best]) == (score == 0)):
            best, least = storage, score
    return best


def reached(p: Program, s: State, kind: int, storage: int, cost: float, enough: float) -> float:
    """Return *cost* and that of the evicted storages that *storage* reaches; or less, but more than *enough*."""
    s.counts[SEARCHES] += 1
    search, created = s.counts[SEARCHES], s.counts[CREATED]
    s.tensors[STACK][0], depth = storage, 1
    while depth and cost <= enough:
        depth -= 1
        node = s.tensors[STACK][depth]
        for at in range(p.starts[kind][node], p.starts[kind][node + 1], 2):
            other = p.items[at]
            if s.tensors[EVICTED][other] and s.tensors[SEEN][other] != search and p.items[at + 1] < created:
                s.tensors[SEEN][other] = search
                cost += s.reals[OWN][other]
                s.tensors[STACK][depth] = other
                depth += 1
    return cost


def class_costs(p: Program, s: State, storage: int) -> float:
    """Return the cost of the classes around *storage*, each once."""
    cost = 0.0
    s.counts[SEARCHES] += 1
    for kind in (BEFORE, AFTER):
        for at in range(p.starts[kind][storage], p.starts[kind][storage + 1], 2):
            other = p.items[at]
            if s.tensors[EVICTED][other] and p.items[at + 1] < s.counts[CREATED]:
                label = s.tensors[CLASS][other]
                if s.tensors[TOLD][label] != s.counts[SEARCHES]:
                    s.tensors[TOLD][label] = s.counts[SEARCHES]
                    cost += s.reals[VALUE][label]
    return cost


def join(p: Program, s: State, storage: int) -> None:
    """*storage* is evicted: its class joins those of the evicted storages around it."""
    s.counts[FREE] -= 1
    label = s.tensors[FREED][s.counts[FREE]]
    s.tensors[COUNT][label], s.tensors[HEAD][label] = 1, storage
    s.reals[VALUE][label] = s.reals[OWN][storage]
    s.tensors[CLASS][storage] = label
    s.tensors[NEXT][storage] = s.tensors[PREVIOUS][storage] = storage
    for kind in (BEFORE, AFTER):
        for at in range(p.starts[kind][storage], p.starts[kind][storage + 1], 2):
            other = p.items[at]
            if s.tensors[EVICTED][other] and p.items[at + 1] < s.counts[CREATED]:
                label = merge(s, label, s.tensors[CLASS][other])


def merge(s: State, a: int, b: int) -> int:
    """Return the class that *a* and *b* are together from now on."""
    if a == b:
        return a
    if s.tensors[COUNT][a] < s.tensors[COUNT][b]:
        a, b = b, a
    first, second = s.tensors[HEAD][a], s.tensors[HEAD][b]
    member = second
    for _ in range(s.tensors[COUNT][b]):
        s.tensors[CLASS][member] = a
        member = s.tensors[NEXT][member]
    after, last = s.tensors[NEXT][first], s.tensors[PREVIOUS][second]
    s.tensors[NEXT][first], s.tensors[PREVIOUS][second] = second, first
    s.tensors[NEXT][last], s.tensors[PREVIOUS][after] = after, last
    s.tensors[COUNT][a] += s.tensors[COUNT][b]
    s.reals[VALUE][a] += s.reals[VALUE][b]
    s.tensors[FREED][s.counts[FREE]] = b
    s.counts[FREE] += 1
    return a


def part(s: State, storage: int) -> None:
    """*storage* is there again: its class keeps the others, even where nothing joins them now."""
    label, after, before = s.tensors[CLASS][storage], s.tensors[NEXT][storage], s.tensors[PREVIOUS][storage]
    s.tensors[NEXT][before], s.tensors[PREVIOUS][after] = after, before
    s.tensors[HEAD][label] = after
    s.tensors[COUNT][label] -= 1
    s.reals[VALUE][label] -= s.reals[OWN][storage]
    if not s.tensors[COUNT][label]:
        s.tensors[FREED][s.counts[FREE]] = label
        s.counts[FREE] += 1
