"""Reporters: a `Report` becomes text or bytes. One file each, one line in the table."""

from __future__ import annotations

from typing import ClassVar, Protocol

from graphsim.answers.peak import Report
from graphsim.registry import Registry


class Reporter(Protocol):
    """Renders a report; options are fields of the reporter."""

    suffix: ClassVar[str]
    """File suffix of what it makes."""

    def __call__(self, report: Report, /) -> str | bytes:
        """Return *report* rendered."""


REPORTERS = Registry[Reporter](
    "reporters",
    "reporter",
    {"text": "graphsim.show.reporters.text:Text", "json": "graphsim.show.reporters.json:Json"},
)
