"""Every answer as one JSON object; the key `schema` versions its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphsim.display import Answer


@dataclass(frozen=True, slots=True)
class Json:
    """Renders answers for machines."""

    suffix: ClassVar[str] = ".json"

    def __call__(self, answer: Answer) -> str:
        """Return *answer* as JSON text."""
        return answer.to_json() + "\n"
