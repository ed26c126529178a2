"""DTR's heuristics: which storage to evict, the lowest score first.

Source: Kirisame et al., "Dynamic Tensor Rematerialization", ICLR 2021, section 2 and appendix A. The
score of a storage is the cost to compute it again, with that of the evicted ones around it, per byte
and time since its last access; each heuristic leaves some of that out.
"""

from __future__ import annotations

from graphsim.recompute.dtr.loop import ALONE, BOTH, CLASSES, MAKERS, Rule

HEURISTICS = {
    "dtr": Rule(costly=True, around=BOTH, sized=True, stale=True),
    "eqclass": Rule(costly=True, around=CLASSES, sized=True, stale=True),
    "local": Rule(costly=True, around=ALONE, sized=True, stale=True),
    "lru": Rule(costly=False, around=ALONE, sized=False, stale=True),
    "size": Rule(costly=False, around=ALONE, sized=True, stale=False),
    "msps": Rule(costly=True, around=MAKERS, sized=True, stale=False),
}
"""Heuristics by name: h_DTR, and by equivalence classes that merge but never split, h_local, h_LRU, h_size, and h_MSPS
(Peng et al., Capuchin, ASPLOS 2020)."""
