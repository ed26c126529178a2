"""The report page in a browser: from opening it until everything is drawn, and a frame while it is zoomed.

GPT-2 of 120 layers, of which a step makes 20,000 events, beside the shipped 12 layers.
"""

from __future__ import annotations

import os
import shutil

import pytest

import graphsim as gs

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

READY = "document.documentElement.dataset.ready !== undefined"
FRAME = """async () => {
    zoom(0.85, STEPS / 2);
    hover(STEPS / 3);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
}"""


@pytest.fixture(scope="module", params=[12, 120], ids=["12 layers", "120 layers"])
def page(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_bytes(gs.report("gpt2", batch=1, seq=128, params={"layers": request.param}).content)
    with sync_api.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = chromium.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(file.as_uri())
        yield page
        chromium.close()


@pytest.mark.benchmark(group="page: drawn")
def test_everything_is_drawn(page, benchmark):
    def load():
        page.reload()
        page.wait_for_function(READY)

    benchmark.pedantic(load, rounds=5)


@pytest.mark.benchmark(group="page: frame while zooming")
def test_a_frame(page, benchmark):
    page.wait_for_function(READY)
    benchmark.pedantic(lambda: page.evaluate(FRAME), rounds=30)
