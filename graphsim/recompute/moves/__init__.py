"""Moves of the search over recomputes of any op: greedy repair, local search, ruin and recreate."""
