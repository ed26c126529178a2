"""RMS norm."""

from __future__ import annotations

from graphsim.ops.kind import Kind

KINDS: tuple[Kind, ...] = ()
