"""How results look: colours, the same in every picture, and what a notebook shows, static and self-contained.

The colours are those of Okabe and Ito, told apart with any colour vision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, ClassVar, Protocol

from graphsim.core.graph import Phase
from graphsim.core.simulation import Part
from graphsim.errors import preformatted
from graphsim.registry import Registry
from graphsim.units import format_bytes


class Reporter(Protocol):
    """Renders answers; options are fields of the reporter."""

    suffix: ClassVar[str]
    """File suffix of what it makes."""

    def __call__(self, answer: Any, /) -> str | bytes:
        """Return *answer* rendered."""


REPORTERS: Registry[Callable[..., Reporter]] = Registry(
    "reporters",
    "reporter",
    {"text": "graphsim.show.reporters.text:Text", "json": "graphsim.show.reporters.json:Json"},
)
"""How answers are rendered: a line each. Other packages add theirs by an entry point of graphsim.reporters."""


class Answer:
    """What the calls of graphsim return: printed, it reads as the command shows it; its repr is one line."""

    __slots__ = ()

    @property
    def headline(self) -> str:
        """The answer in one line."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return it as one JSON object."""
        raise NotImplementedError

    def __str__(self) -> str:
        return str(REPORTERS["text"]()(self)).rstrip("\n")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.headline}>"

    def _repr_html_(self) -> str:
        return preformatted(str(self))


NARROW = 60
"""Columns of a terminal below which tables leave out or wrap what is not the answer."""

ROLE_COLORS: dict[str, str] = {
    Part.PARAMETERS: "#0072b2",
    Part.BUFFERS: "#8c8c8c",
    Part.INPUTS: "#009e73",
    Part.OPTIMIZER_STATE: "#cc79a7",
    Part.GRADIENTS: "#56b4e9",
    Part.SAVED_ACTIVATIONS: "#e69f00",
    Part.TRANSIENT_ACTIVATIONS: "#f0e442",
    Part.WORKSPACE: "#d55e00",
}
"""Bottom of the stack first: what stays, then what comes and goes."""

PHASE_COLORS: dict[str, str] = {
    Phase.FORWARD: "#009e73",
    Phase.BACKWARD: "#e69f00",
    Phase.RECOMPUTE: "#d55e00",
    Phase.OPTIMIZER: "#cc79a7",
}

WIDTH, HEIGHT = 480, 72


def words(name: str) -> str:
    """Return a role's name as people read it."""
    return name.replace("_", " ")


def summary_html(
    title: str, lines: Sequence[str], by_role: Mapping[str, int], timeline: Sequence[int], phases: Sequence[str]
) -> str:
    """Return a title, lines of text, the composition of the peak and the timeline as HTML; every text is escaped."""
    rows = "".join(_row(role, size, sum(by_role.values())) for role, size in _largest_first(by_role) if size)
    text = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return (
        f'<div class="graphsim"><strong>{escape(title)}</strong>{text}{sparkline(timeline, phases)}'
        f"<table><thead><tr><th>live at the peak</th><th>bytes</th><th>share</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def sparkline(timeline: Sequence[int], phases: Sequence[str]) -> str:
    """Return the timeline as an SVG of bars in the colours of their phases, the peak marked; '' without one."""
    if not timeline:
        return ""
    top, width = max(1, *timeline), WIDTH / len(timeline)
    peak = timeline.index(max(timeline))
    bars = "".join(
        f'<rect x="{i * width:.2f}" y="{HEIGHT * (1 - size / top):.2f}" width="{width + 0.05:.2f}" '
        f'height="{HEIGHT * size / top:.2f}" fill="{PHASE_COLORS.get(phase, "#8c8c8c")}"/>'
        for i, (size, phase) in enumerate(zip(timeline, phases, strict=True))
    )
    mark = f'<path d="M{(peak + 0.5) * width:.2f} 0V{HEIGHT}" stroke="#b00020" stroke-width="1.5"/>'
    label = f"live bytes over the step, peak {format_bytes(max(timeline))}"
    return (
        f'<svg role="img" aria-label="{label}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"<title>{label}</title>{bars}{mark}</svg>"
    )


def _largest_first(by_role: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(by_role.items(), key=lambda item: -item[1])


def _row(role: str, size: int, total: int) -> str:
    color = ROLE_COLORS.get(role, "#8c8c8c")
    return (
        f'<tr><th style="text-align:left"><span style="color:{color}">&#9632;</span> {escape(words(role))}'
        f'</th><td style="text-align:right">{format_bytes(size)}</td>'
        f'<td style="text-align:right">{size / max(1, total):.1%}</td></tr>'
    )


def defused(cell: str) -> str:
    """Return a cell of a table as spreadsheets show it and do not run it: a quote goes before what begins a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
