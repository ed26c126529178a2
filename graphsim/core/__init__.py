"""The values of the chain, and the passes between them: Graph, Schedule, LiveRanges, Trace, Layout."""
