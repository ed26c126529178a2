"""The report as one JSON object; `report.SCHEMA` versions its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphsim.answers.peak import Report


@dataclass(frozen=True, slots=True)
class Json:
    """Renders a `Report` for machines."""

    suffix: ClassVar[str] = ".json"

    def __call__(self, report: Report) -> str:
        """Return the report as JSON text."""
        return report.to_json() + "\n"
