"""Static allocation: offsets in one arena for blocks whose live ranges are all known beforehand.

The problem is dynamic storage allocation (strip packing with fixed positions in time), NP-hard; the
peak of the live bytes bounds every solution from below.
"""

from graphsim.memory.packing.climbing import climb
from graphsim.memory.packing.greedy import best_greedy
from graphsim.memory.packing.instance import Instance, Packing
from graphsim.memory.packing.optimal import solve

__all__ = ["Instance", "Packing", "best_greedy", "climb", "solve"]
