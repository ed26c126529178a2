"""The page in a real browser: it draws, answers mouse and keyboard, and asks nobody for anything."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from pages import browser_path, full_page, hostile_graph, rematerialized, step, stretch

import graphsim as gs
from graphsim.answers.plan import Refusal, plans_of
from graphsim.core.simulation import op_costs
from graphsim.show.reporters.html import allocation_data, html_page, peak_label
from graphsim.units import format_bytes

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = browser_path()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

READY = "document.documentElement.dataset.ready !== undefined"
VIEW = "[view.min, view.max]"


@pytest.fixture(scope="module")
def browser():
    # Root has no sandbox of its own to give; the page is ours.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open pages; at the end, none of them may have complained or asked for anything but its own file."""
    complaints, requests, contexts = [], [], []

    def visit(html: str, **options):
        file = tmp_path / f"page{len(contexts)}.html"
        file.write_text(html, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)  # other tests run beside
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_function(READY)
        requests.remove(file.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests == []


@pytest.fixture(scope="module")
def run():
    return gs.simulate(step("gpt2", batch=2, seq=128))


@pytest.fixture(scope="module")
def html(run):
    return full_page(run)


def settle(page):
    """Two frames: what was asked for in the first is drawn in the second."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def until(page, condition):
    """Wait until *condition* holds; Playwright's own way evaluates text in the page, which its policy forbids."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        settle(page)
    raise AssertionError(condition)


def card(page):
    settle(page)
    at = int(page.get_attribute("#moment", "data-execution"))
    return at, page.inner_text("#moment")


def test_the_peak_is_the_simulators_number_everywhere(visit, html, run):
    page = visit(html)
    assert page.inner_text("#peak-label") == peak_label(run)
    assert page.inner_text("#chart .mark.peak span") == f"peak {format_bytes(run.peak)}"
    at, text = card(page)
    assert at == run.peak_execution
    assert f"({run.peak:,} bytes)" in text
    assert run.op_at(at).name in text
    mark = page.locator("#chart .mark.peak").bounding_box()
    over = page.locator("#chart .u-over").bounding_box()
    expected = over["x"] + over["width"] * (run.peak_execution + 0.5) / len(run.schedule)
    assert mark["x"] + mark["width"] / 2 == pytest.approx(expected, abs=3)
    share = 1 - (mark["y"] + mark["height"] / 2 - over["y"]) / over["height"]
    assert share == pytest.approx(1 / 1.24, abs=0.02), "a dot at the height of the peak"
    for prefix in ("Live tensors", "Memory by module"):
        assert page.get_by_role("heading", name=f"{prefix} at the peak").count() == 1


def test_the_script_counts_as_the_simulator_does(visit, html, run):
    page = visit(html)
    assert page.evaluate("Array.from(live)") == run.timeline.tolist()
    parts = page.evaluate("Object.fromEntries(ROLES.map((role, i) => [role.name, Array.from(byRole[i])]))")
    assert parts == {role: line.tolist() for role, line in run.timeline_by_role().items()}
    for at in range(0, len(run.schedule), 97):
        rows = page.evaluate("(at) => liveAt(at).map((r) => [r.name, r.bytes, ROLES[r.role].name, r.op, r.layer])", at)
        assert sorted(map(tuple, rows)) == sorted(map(tuple, run.live_at(at)))
    sizes = [0, 1, 1023, 1024, 2**20 - 1, 2**20, 123456789, 99.999 * 2**30, 100 * 2**30, 5 * 2**40]
    assert page.evaluate("(sizes) => sizes.map(formatBytes)", sizes) == [format_bytes(int(size)) for size in sizes]


def test_the_chart_is_painted_in_the_colours_of_its_roles(visit, html):
    page = visit(html)
    settle(page)
    colours = page.evaluate("""() => {
        const canvas = document.querySelector("#chart canvas");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const count = {};
        for (let i = 0; i < data.length; i += 4) {
            const key = "#" + [...data.slice(i, i + 3)].map((v) => v.toString(16).padStart(2, "0")).join("");
            count[key] = (count[key] || 0) + 1;
        }
        return ROLES.filter((role, i) => present[i]).map((role) => [role.name, count[role.color] || 0]);
    }""")
    painted = dict(colours)
    for role in ("parameters", "optimizer_state", "saved_activations"):
        assert painted[role] > 2000, painted


def test_pointing_shows_the_op_and_its_live_tensors(visit, html, run):
    page = visit(html)
    for share in (0.2, 0.8):
        box = page.locator("#chart .u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + 100)
        at, text = card(page)
        assert at == pytest.approx(len(run.schedule) * share, abs=3)
        assert text.startswith("At the pointer")
        assert run.op_at(at).name in text
        assert run.op_at(at).layer in text
        assert f"({int(run.timeline[at]):,} bytes)" in text
        assert run.live_at(at)[0].name in text
    page.mouse.move(5, 5)
    assert card(page)[0] == run.peak_execution, "the pinned moment is back"


def test_a_click_pins_a_moment_for_the_tables(visit, html, run):
    page = visit(html)
    box = page.locator("#chart .u-over").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.3, box["y"] + 100)
    page.mouse.move(5, 5)
    at, text = card(page)
    assert text.startswith("Pinned")
    assert at == pytest.approx(len(run.schedule) * 0.3, abs=3)
    assert run.op_at(at).name in page.inner_text("#tensors-title")
    assert f"{len(run.live_at(at)):,} of" in page.inner_text("#tensor-table .note")
    first = page.locator("#tensor-table tbody tr").first.inner_text()
    assert format_bytes(run.live_at(at)[0].nbytes) in first
    assert page.locator("#chart .mark.pin").is_visible()
    page.click("#to-peak")
    assert card(page)[0] == run.peak_execution


def test_search_and_sort_of_the_live_tensors(visit, html, run):
    page = visit(html)
    live = run.live_at(run.peak_execution)
    rows = page.locator("#tensor-table tbody tr")
    page.fill("#tensor-table input", "h.3. OPTIMIZER")
    wanted = [t for t in live if t.role == "optimizer_state" and "h.3." in f"{t.name}\n{t.layer}\n{t.op}"]
    assert rows.count() == len(wanted) > 0
    found = page.inner_text("#tensor-table .note")
    assert found == f"{len(wanted)} of {len(live)}, {format_bytes(sum(t.nbytes for t in wanted))}"
    page.fill("#tensor-table input", "nothing is called so")
    assert rows.count() == 0
    page.fill("#tensor-table input", "")
    header = page.locator("#tensor-table thead th")
    assert header.nth(0).get_attribute("aria-sort") == "descending"
    page.click("#tensor-table thead button >> nth=0")
    assert header.nth(0).get_attribute("aria-sort") == "ascending"
    assert format_bytes(live[-1].nbytes) in rows.first.inner_text()
    page.click("#tensor-table thead button >> nth=1")
    page.click("#tensor-table .controls button")
    assert rows.count() == len(live)
    names = page.locator("#tensor-table tbody td:nth-child(2)").all_inner_texts()
    assert sorted(names) == sorted(tensor.name for tensor in live)
    assert page.evaluate("(n) => n.every((x, i) => !i || n[i-1].localeCompare(x, 'en', {numeric: true}) <= 0)", names)


def test_zoom_by_wheel_drag_buttons_and_back(visit, html, run):
    page = visit(html)
    whole = [0, len(run.schedule)]
    box = page.locator("#chart .u-over").bounding_box()
    middle, y = box["x"] + box["width"] / 2, box["y"] + 150
    page.mouse.move(middle, y)
    page.mouse.wheel(0, 120)
    until(page, "scrollY > 0")
    assert page.evaluate(VIEW) == whole, "the wheel alone scrolls"
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    until(page, "view.max - view.min < STEPS * 0.9")
    low, high = page.evaluate(VIEW)
    assert (low + high) / 2 == pytest.approx(whole[1] / 2, rel=0.02)
    page.dblclick("#chart .u-over", position={"x": 50, "y": 50})
    settle(page)
    assert page.evaluate(VIEW) == whole
    page.mouse.move(box["x"] + box["width"] * 0.25, y)
    page.mouse.down()
    page.mouse.move(middle, y, steps=4)
    page.mouse.up()
    settle(page)
    assert page.evaluate(VIEW) == pytest.approx([whole[1] * 0.25, whole[1] * 0.5], abs=4)
    assert page.evaluate("[view.charts[0].scales.x.min, view.charts[1].scales.x.max]") == page.evaluate(VIEW)
    page.keyboard.down("Shift")
    page.mouse.move(middle, y)
    page.mouse.down()
    page.mouse.move(middle - box["width"] / 2, y, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    settle(page)
    assert page.evaluate(VIEW) == pytest.approx([whole[1] * 0.375, whole[1] * 0.625], abs=5), "panned by half a view"
    page.click("#zoom-reset")
    page.click("#zoom-in")
    settle(page)
    low, high = page.evaluate(VIEW)
    assert high - low == pytest.approx(whole[1] / 2)
    assert low <= page.evaluate("moment.pinned") <= high


def test_by_time_an_op_is_as_wide_as_it_costs(visit, html, run):
    page = visit(html)
    width = page.locator("#chart .u-over").bounding_box()["width"]
    costs = op_costs(run.graph)[run.schedule.ops]
    begins = np.concatenate([[0.0], np.cumsum(costs)]) / costs.sum() * width
    at = int(costs.argmax())
    place = f"[{at}, {at + 1}].map((step) => view.charts[0].valToPos(step, 'x'))"
    assert page.evaluate(place) == pytest.approx([x / len(costs) * width for x in (at, at + 1)], abs=1)
    ticks = "view.charts[0].axes[0]._values"
    assert page.evaluate(ticks)[:3] == ["0", "100", "200"]
    page.click("#by-time")
    settle(page)
    assert page.evaluate(ticks)[:3] == ["0 s", "2 ms", "4 ms"]
    assert page.evaluate(place) == pytest.approx(begins[at : at + 2].tolist(), abs=1)
    assert page.evaluate(f"executionAt(view.charts[0], {{ clientX: {place.replace('[', '[0.4 + ', 1)}[0] + "
                         "view.charts[0].over.getBoundingClientRect().left })") == at  # fmt: skip
    page.click("#zoom-in")
    settle(page)
    low, high = page.evaluate(VIEW)
    assert page.evaluate("toX(view.max) - toX(view.min)") == pytest.approx(costs.sum() / 2, rel=1e-3)
    assert page.evaluate(LABELS) == []
    page.click("#by-time")
    settle(page)
    assert page.evaluate(VIEW) == [low, high], "the same ops are in view"


def test_the_keyboard_reaches_everything(visit, html, run):
    page = visit(html)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.closest('[id]')?.id")
        reached.add(name)
        if name == "plan-table":
            break
    assert reached >= {"legend", "zoom-in", "chart", "tensor-table", "module-tree", "block-map", "plan-table"}
    page.focus("#chart")
    for key, expected in (
        ("ArrowRight", run.peak_execution + 1),
        ("Shift+ArrowLeft", run.peak_execution - 9),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("End", len(run.schedule) - 1),
        ("p", run.peak_execution),
    ):
        page.keyboard.press(key)
        assert card(page)[0] == expected, key
    page.keyboard.press("+")
    page.keyboard.press("+")
    low, high = page.evaluate(VIEW)
    assert high - low == len(run.schedule) / 4
    assert low <= run.peak_execution < high
    page.keyboard.press("[")
    assert page.evaluate(VIEW)[0] == low - (high - low) / 4
    page.keyboard.press("]")
    assert page.evaluate(VIEW) == [low, high]
    page.keyboard.press("0")
    assert page.evaluate(VIEW) == [0, len(run.schedule)]


def test_modules_open_and_add_up(visit, html, run):
    page = visit(html)
    row = page.locator("#module-tree tr[data-module='h']")
    total = sum(t.nbytes for t in run.live_at(run.peak_execution) if t.layer.split(".")[0] == "h")
    assert row.locator("td").first.inner_text() == format_bytes(total)
    assert page.locator("#module-tree tr[data-module='h.3']").count() == 0
    row.locator("button").focus()
    page.keyboard.press("ArrowRight")
    inner = page.locator("#module-tree tr[data-module='h.3']")
    total = sum(t.nbytes for t in run.live_at(run.peak_execution) if f"{t.layer}.".startswith("h.3."))
    assert inner.locator("td").first.inner_text() == format_bytes(total)
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.keyboard.press("ArrowLeft")
    assert inner.count() == 0


def test_blocks_of_the_allocator_are_named(visit, html, run):
    page = visit(html)
    allocation = allocation_data(stretch(run), "torch")
    assert f"{allocation['reserved_peak']:,} bytes" in page.inner_text("#allocator-facts")
    page.focus("#block-map")
    page.keyboard.press("ArrowRight")
    text = page.inner_text("#block-text")
    assert text.partition(":")[0] in {tensor.name for tensor in run.live_at(run.peak_execution)}
    page.hover("#block-map", position={"x": 4, "y": 4})
    assert page.inner_text("#block-text") == text, "the first block stands at the top left"
    page.click("#allocator summary")
    assert page.locator("#segment-table tbody tr").count() == min(200, len(allocation["segments"]))


def test_roles_can_be_hidden(visit, html):
    page = visit(html)
    top = "view.charts[0].data[1].reduce((a, b) => a + b)"
    before = page.evaluate(top)
    page.click("#legend button:has-text('saved activations')")
    assert page.evaluate(top) < before
    assert page.get_attribute("#legend button:has-text('saved activations')", "aria-pressed") == "false"
    page.click("#legend button:has-text('saved activations')")
    assert page.evaluate(top) == before


def luminance(page, selector, what):
    numbers = re.findall(r"[\d.]+", page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}"))
    linear = [
        (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4) for v in (int(n) / 255 for n in numbers[:3])
    ]
    return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(visit, html, scheme):
    page = visit(html, color_scheme=scheme)
    surface = luminance(page, "body", "backgroundColor")
    assert (surface > 0.5) is (scheme == "light")
    for selector in ("body", ".hint", ".mark.peak span", "#moment dd"):
        ink = luminance(page, selector, "color")
        contrast = (max(ink, surface) + 0.05) / (min(ink, surface) + 0.05)
        assert contrast >= 4.5, f"{selector}: {contrast:.1f}, WCAG AA wants 4.5"
    assert page.evaluate("palette.ink") == page.evaluate(
        "getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()"
    )
    other = "dark" if scheme == "light" else "light"
    before = page.evaluate("palette.ink")
    page.emulate_media(color_scheme=other)
    page.wait_for_function("(before) => palette.ink !== before", arg=before)


def test_paper_is_light(visit, html):
    page = visit(html, color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert luminance(page, "body", "backgroundColor") > 0.5
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert luminance(page, "body", "backgroundColor") < 0.1
    assert page.pdf().startswith(b"%PDF")


def test_recompute_is_a_phase_and_plans_are_compared(visit):
    run = rematerialized(step("lenet5", batch=8))
    page = visit(full_page(run))
    assert page.evaluate("stretches.map(([phase, begin, end]) => [PHASES[phase].name, begin, end])")[1:3] != []
    assert "recompute" in page.evaluate("stretches.map(([phase]) => PHASES[phase].name)")
    rows = page.locator("#plan-table tbody tr").all_inner_texts()
    assert any(row.startswith("sqrt") and format_bytes(run.peak) in row for row in rows)


@pytest.fixture(scope="module")
def compared():
    """A page of plans, some of which are refusals, within budgets and without."""
    run = gs.simulate(step("lenet5", batch=64))
    budgets = [None, run.peak * 99 // 100, 2**40]
    plans = list(plans_of(run.graph, budgets, ["none", "sqrt", "greedy", "blocks"]))
    plans = [Refusal("rotor", budget, "no chain") for budget in budgets] + plans
    page = html_page(run, facts={"batch": "64"}, plans=plans, verdict="It fits.", command="graphsim report lenet5")
    return page, plans


def test_a_strategy_is_one_row_and_those_without_an_answer_stand_last(visit, compared):
    html, plans = compared
    page = visit(html)
    names = page.locator("#plan-table tbody th").all_inner_texts()
    assert sorted(names) == sorted({plan.strategy for plan in plans})
    assert names[-1] == "rotor"
    assert "no chain" in page.locator("#plan-table tbody tr").last.inner_text()
    made = [plan for plan in plans if plan.strategy != "rotor"]
    assert page.locator("#plan-table .dot").count() == len(made)
    assert page.locator("#plan-table .dot.hollow").count() == sum(not plan.feasible for plan in made) > 0
    track = page.locator("#plan-table .track").first.bounding_box()
    scale = 1.02 * 2**40
    for mark, size in ((".bound", made[0].memory_bound), (".budget >> nth=1", 2**40)):
        box = page.locator(f"#plan-table .track >> nth=0 >> {mark}").bounding_box()
        edge = box["x"] + box["width"] if mark == ".bound" else box["x"]
        assert (edge - track["x"]) / track["width"] == pytest.approx(size / scale, abs=0.02)


LABELS = """() => {
    const boxes = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const node = walk.currentNode, host = node.parentElement;
        if (!node.data.trim() || !host.checkVisibility() || host.closest("script, style, .skip")) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        const all = { left: -1e9, top: -1e9, right: 1e9, bottom: 1e9 };
        const seen = host.closest(".scroll")?.getBoundingClientRect() ?? all; // the rest of a list is scrolled away
        for (const { left, top, right, bottom } of range.getClientRects()) {
            const box = [Math.max(left, seen.left), Math.max(top, seen.top)];
            box.push(Math.min(right, seen.right), Math.min(bottom, seen.bottom));
            if (box[2] - box[0] > 1 && box[3] - box[1] > 1) boxes.push([node.data.trim().slice(0, 40), ...box]);
        }
    }
    const common = (a, b, low) => Math.min(a[low + 2], b[low + 2]) - Math.max(a[low], b[low]);
    const inner = (a, b) => common(a, b, 1) > 2 && common(a, b, 2) > 4;
    const clash = [];
    boxes.forEach((a, i) => boxes.slice(i + 1, i + 400).forEach((b) => inner(a, b) && clash.push([a[0], b[0]])));
    return clash;
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_no_two_texts_overlap_and_nothing_is_wider_than_the_screen(visit, compared, html, width):
    for content in (compared[0], html):
        page = visit(content)
        page.set_viewport_size({"width": width, "height": 900})
        until(page, "document.querySelector('#chart canvas').clientWidth <= innerWidth")
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(LABELS) == []


def test_what_is_thinner_than_a_pixel_is_seen_if_it_is_the_peak(visit):
    ops = [gs.Op(f"op{i}", "relu", ("x",), (f"y{i}",), workspace=2**30 if i == 3000 else 0) for i in range(6000)]
    tensors = [gs.Tensor("x", (64,)), *(gs.Tensor(f"y{i}", (64,)) for i in range(6000))]
    page = visit(html_page(gs.simulate(gs.Graph(ops, tensors, name="spike"))))
    settle(page)
    column = page.evaluate("""() => {
        const chart = view.charts[0], x = Math.round(chart.valToPos(DATA.peak.execution + 0.5, "x", true));
        const data = chart.ctx.getImageData(x, chart.bbox.top, 1, chart.bbox.height).data;
        const key = (i) => "#" + [...data.slice(i, i + 3)].map((v) => v.toString(16).padStart(2, "0")).join("");
        const column = Array.from({ length: data.length / 4 }, (_, i) => key(4 * i));
        return column.filter((color) => color === ROLES[WORKSPACE].color).length / column.length;
    }""")
    assert column > 0.6


def test_hostile_names_run_nothing(visit):
    run = gs.simulate(hostile_graph())
    page = visit(html_page(run, facts={"<b>": "<i>"}, allocation=allocation_data(stretch(run), "torch")))
    box = page.locator("#chart .u-over").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 50)
    page.mouse.click(box["x"] + 20, box["y"] + 50)
    page.click("text=Open all")
    page.focus("#block-map")
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.inner_text("h1") == run.graph.name
    assert run.op_at(0).name in page.inner_text("#moment")


@pytest.mark.exhaustive
def test_20_000_events_are_drawn_and_zoomed(visit):
    """How fast: bench/bench_page.py."""
    run = gs.simulate(step("gpt2", batch=1, seq=128, layers=120))
    assert run.trace.events_count >= 20_000
    page = visit(full_page(run, compare=False))
    shown = page.evaluate(VIEW)
    page.evaluate("zoom(0.5, STEPS / 2)")
    settle(page)
    nearer = page.evaluate(VIEW)
    assert nearer[1] - nearer[0] < shown[1] - shown[0]
