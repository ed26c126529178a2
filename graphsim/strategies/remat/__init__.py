"""Search for recomputes on any graph: the problem in arrays, its evaluation, greedy repair, local search, bounds."""
