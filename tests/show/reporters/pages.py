"""What the tests of the page share: runs, the data island of a page, and a browser if there is one."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from typing import Any

import graphsim as gs
from graphsim.answers.plan import plans_of
from graphsim.answers.reservation import Stretch, chosen_allocator, placed
from graphsim.core.graph import Graph, Op, Phase, Role, Tensor
from graphsim.core.simulation import Simulation
from graphsim.recompute.plan import make_schedule
from graphsim.show.reporters.html import allocation_data, html_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"&amp;<!--$title"


class Elements(HTMLParser):
    """The elements of a page: (tag, attributes), and the text of scripts and styles by number."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.raw[-1] += data


def island(page: str) -> dict[str, Any]:
    """The data of a page, as a browser would read it."""
    parsed = Elements(page)
    raw = [attributes for tag, attributes in parsed.elements if tag in ("script", "style")]
    (number,) = [i for i, attributes in enumerate(raw) if attributes.get("id") == "data"]
    return json.loads(parsed.raw[number])


def browser_path() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def hostile_graph() -> Graph:
    """Two ops, every name of which tries to be more than a name."""
    names = [f"{HOSTILE}{i}" for i in range(3)]
    tensors = [
        Tensor(name, (256,), role=role) for name, role in zip(names, [Role.INPUT, *[Role.ACTIVATION] * 2], strict=True)
    ]
    ops = [
        Op(f"op{HOSTILE}", HOSTILE, (names[0],), (names[1],), layer=f"a.{HOSTILE}"),
        Op(f"back{HOSTILE}", HOSTILE, (names[1],), (names[2],), Phase.BACKWARD, layer=HOSTILE, workspace=64),
    ]
    return Graph(ops, tensors, name=HOSTILE)


def step(name: str, *, first: bool = False, **params: Any) -> Graph:
    return gs.training_step(gs.load(name, **params), optimizer="adamw", first=first)


def rematerialized(graph: Graph) -> Simulation:
    return gs.simulate(graph, make_schedule(graph, "sqrt"))


def stretch(
    run: Simulation, allocator: str = "torch", options: str = "", *, first: Simulation | None = None
) -> Stretch:
    """*run* as an allocator sees it: after step 1 if one is given, else alone."""
    chosen = chosen_allocator(allocator, options)
    assert chosen is not None
    return placed(first or run, run, chosen)[1]


def full_page(run: Simulation, *, compare: bool = True) -> str:
    plans = list(plans_of(run.graph)) if compare else []
    return html_page(run, facts={"batch": "2"}, allocation=allocation_data(stretch(run), "torch"), plans=plans)
