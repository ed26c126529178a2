"""Reporters: an answer becomes text or bytes. One file each, one line in the table, which is `display.REPORTERS`."""

from graphsim.display import REPORTERS, Reporter

__all__ = ["REPORTERS", "Reporter"]
