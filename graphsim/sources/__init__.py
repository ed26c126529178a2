"""Sources: whatever a person has becomes a `Source`. One file or folder for each kind, one line in its table."""

from graphsim.sources.source import FRONTENDS, Frontend, Source, Steps, load, source_of

__all__ = ["FRONTENDS", "Frontend", "Source", "Steps", "load", "source_of"]
