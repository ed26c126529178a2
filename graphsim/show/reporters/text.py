"""Every answer as a person reads it in a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphsim.answers.diff import Diff
from graphsim.answers.explain import Explanation
from graphsim.answers.fit import Fit
from graphsim.answers.peak import Report
from graphsim.answers.planned import Comparison, Planned
from graphsim.display import Answer
from graphsim.measured.replay import Replay
from graphsim.show.reporters.difference import diff_text
from graphsim.show.reporters.explain import explanation_text
from graphsim.show.reporters.fit import fit_text
from graphsim.show.reporters.peak import report_text
from graphsim.show.reporters.plans import comparison_text, plan_text
from graphsim.show.reporters.replay import replay_text


@dataclass(frozen=True, slots=True)
class Text:
    """Renders answers; *width* in characters, *color* writes terminal colours."""

    width: int = 100
    color: bool = False
    suffix: ClassVar[str] = ".txt"

    def __call__(self, answer: Answer) -> str:
        """Return *answer* as text."""
        match answer:
            case Report():
                return report_text(answer, width=self.width, color=self.color)
            case Fit():
                return fit_text(answer)
            case Explanation():
                return explanation_text(answer, self.width)
            case Replay():
                return replay_text(answer)
            case Planned():
                refused = f"{answer.headline}\n  {answer.witness.error()}\n" if answer.witness else ""
                return refused or plan_text(answer)
            case Comparison():
                return comparison_text(answer.plans, answer.unit, answer.least, self.width)
            case Diff():
                return diff_text(answer, width=self.width, color=self.color)
            case _:
                return answer.headline + "\n"
