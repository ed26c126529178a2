"""The page: one HTML file with everything in it, for people who look rather than query.

Nothing is fetched: the plotting library (uPlot, MIT), script, style and data stand in the file, and a
Content-Security-Policy lets only these scripts run, whatever the names in a spec say.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from graphsim.answers.plan import Refusal
from graphsim.core.simulation import Simulation
from graphsim.display import words
from graphsim.recompute.plan import Plan
from graphsim.show.reporters.html.allocation import allocation_data
from graphsim.show.reporters.html.data import page_data
from graphsim.units import format_bytes

SCRIPTS = ("core.js", "chart.js", "timeline.js", "moment.js", "tables.js", "layers.js", "allocator.js", "plans.js")
"""Parts of the page's one script, in order."""

__all__ = ["allocation_data", "html_page", "page_data"]


def html_page(
    run: Simulation,
    *,
    facts: Mapping[str, str] | None = None,
    allocation: Mapping[str, Any] | None = None,
    plans: Sequence[Plan | Refusal] = (),
    verdict: str = "",
    command: str = "",
) -> str:
    """Return the page of *run*.

    Args:
        run: the step and its schedule.
        facts: labels and texts for the head of the page: batch, optimizer and so on.
        allocation: what `allocation_data` returned for the same run.
        plans: what `answers.plan.plans_of` yields.
        verdict: what to say first, beside the peak.
        command: the command line that makes this page.
    """
    data = page_data(run, facts=facts or {}, allocation=allocation, plans=plans)
    library, style = _asset("uPlot.iife.min.js"), _asset("uPlot.min.css") + _asset("page.css")
    script = '"use strict";\n' + "".join(_asset(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return Template(_asset("page.html")).substitute(
        policy=escape(policy, quote=False),
        title=escape(data["title"]),
        facts="".join(f"<li><span>{escape(k)}</span> {escape(v)}</li>" for k, v in data["facts"]),
        peak=escape(peak_label(run)),
        where=escape(_where(data["peak"])),
        verdict=escape(verdict),
        command=escape(command),
        roles=_role_rows(data["peak"]),
        style=style,
        library=library,
        script=script,
        data=_island(data),
    )


def peak_label(run: Simulation) -> str:
    """Return the peak as the page shows it."""
    return f"{format_bytes(run.peak)} ({run.peak:,} bytes)"


def _where(peak: Mapping[str, Any]) -> str:
    return f"reached in {peak['phase']}, by {peak['op']}" if peak["op"] else "nothing is executed"


def _role_rows(peak: Mapping[str, Any]) -> str:
    """The composition of the peak as plain table rows, which need no script."""
    rows = sorted(peak["by_role"].items(), key=lambda item: -item[1])
    return "".join(
        f'<tr data-role="{escape(role)}"><th scope="row">{escape(words(role))}</th>'
        f"<td>{format_bytes(size)}</td><td>{size / max(1, peak['bytes']):.1%}</td></tr>"
        for role, size in rows
        if size
    )


def _island(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element or open a comment in it, whatever it holds."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files(__name__).joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
