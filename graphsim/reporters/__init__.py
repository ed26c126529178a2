"""Reporters: a `Report` becomes text or bytes. One file each, one line in the table."""

from __future__ import annotations

from typing import ClassVar, Protocol

from graphsim.registry import Registry
from graphsim.report import Report


class Reporter(Protocol):
    """Renders a report; options are fields of the reporter."""

    suffix: ClassVar[str]
    """File suffix of what it makes."""

    def __call__(self, report: Report, /) -> str | bytes:
        """Return *report* rendered."""


REPORTERS = Registry(
    "reporters",
    "reporter",
    {"text": "graphsim.reporters.text:Text", "json": "graphsim.reporters.json:Json"},
)
