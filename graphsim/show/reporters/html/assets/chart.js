// Charts over the executions of the step share one view (what is zoomed in on) and one look.

const view = { min: 0, max: Math.max(1, STEPS), charts: [], frame: 0 };
const palette = {};
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["surface", "ink", "muted", "line", "accent", "mark", "phase"]) {
    palette[name] = style.getPropertyValue(`--${name}`).trim();
  }
}
readPalette();

const repaints = [];
/** Call *paint* whenever colours or the width have changed. */
function onRepaint(paint) { repaints.push(paint); }
function repaint() { readPalette(); repaints.forEach((paint) => paint()); }

function setView(min, max) {
  const span = Math.min(Math.max(max - min, Math.min(4, STEPS)), Math.max(1, STEPS));
  const start = Math.min(Math.max(min, 0), Math.max(1, STEPS) - span);
  view.min = start;
  view.max = start + span;
  if (!view.frame) view.frame = requestAnimationFrame(applyView);
}
function applyView() {
  view.frame = 0;
  for (const chart of view.charts) chart.setScale("x", { min: view.min, max: view.max });
}
/** Zoom about an execution, by what is seen: ops, or time. */
function zoom(factor, center = toStep((toX(view.min) + toX(view.max)) / 2)) {
  const [low, high, at] = [view.min, view.max, center].map(toX);
  setView(toStep(at - (at - low) * factor), toStep(at + (high - at) * factor));
}
function shift(min, max, by) { setView(toStep(toX(min) + by), toStep(toX(max) + by)); }
const pan = (share) => shift(view.min, view.max, share * (toX(view.max) - toX(view.min)));
const wholeStep = () => setView(0, STEPS);
function showMoment(at) {
  const span = view.max - view.min;
  if (at < view.min || at + 1 > view.max) setView(at + 0.5 - span / 2, at + 0.5 + span / 2);
}

// The x axis: executions one as wide as the other, or each as wide as the time it takes.
const clock = new Float64Array(STEPS + 1); // time at which each execution begins
if (DATA.costs) for (let at = 0; at < STEPS; at++) clock[at + 1] = clock[at] + DATA.costs.of[opNumber(at)];
const TOTAL_TIME = clock[STEPS];
const timed = { on: false };
const toX = (step) => {
  if (!timed.on || step <= 0 || step >= STEPS) return timed.on ? (step / STEPS) * TOTAL_TIME : step;
  const at = Math.floor(step);
  return clock[at] + (step - at) * (clock[at + 1] - clock[at]);
};
const toStep = (x) => {
  if (!timed.on || x <= 0 || x >= TOTAL_TIME) return timed.on ? (x / TOTAL_TIME) * STEPS : x;
  let [low, high] = [0, STEPS]; // clock[low] <= x < clock[high]
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (clock[middle] <= x) low = middle;
    else high = middle;
  }
  return low + (x - clock[low]) / (clock[high] - clock[low]);
};
/** Let the charts be by time, or by op again. */
function setTimed(on) {
  timed.on = on;
  for (const chart of view.charts) {
    chart.axes[0].label = stepLabel();
    chart.scales.x.min = NaN; // uPlot works a scale out anew only where its ends have changed
    chart.setScale("x", { min: view.min, max: view.max });
  }
}
const stepLabel = () => {
  if (!timed.on) return "op, in order of execution";
  return DATA.costs.unit === "seconds" ? "time, as ops cost it" : `cost${DATA.costs.unit && `, ${DATA.costs.unit}`}`;
};
/** Ticks at round numbers of ops, or of time. */
function stepTicks(chart, _, min, max, increment, space) {
  const [low, high] = [min, max].map(toX);
  const least = timed.on ? ((high - low) * space) / Math.max(1, chart.over.clientWidth) : increment;
  const power = 10 ** Math.floor(Math.log10(least || 1));
  const step = timed.on ? [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= least) : increment;
  const count = Math.floor(high / step) - Math.ceil(low / step) + 1;
  return Array.from({ length: Math.max(0, count) }, (_, i) => toStep((Math.ceil(low / step) + i) * step));
}
const formatStep = (step) => (timed.on ? formatCost(toX(step)) : formatInteger(Math.round(step)));
/** A time in s, ms or µs; other costs with a prefix. */
function formatCost(cost) {
  const seconds = DATA.costs.unit === "seconds";
  const [size, unit] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"]]
    .find(([size]) => cost >= size * 0.9995 && (!seconds || size <= 1)) || [1, ""];
  return `${Number((cost / size).toPrecision(3))}${seconds ? ` ${unit}s` : unit && ` ${unit}`}`;
}

const BYTE_STEPS = Array.from({ length: 53 }, (_, power) => 2 ** power);
const COUNT_STEPS = Array.from({ length: 8 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
const axis = (more) => ({
  stroke: () => palette.muted, font: "12px system-ui, sans-serif",
  grid: { stroke: () => palette.line, width: 1 }, ticks: { stroke: () => palette.line, width: 1 }, ...more,
});
const countAxis = () => axis({ incrs: COUNT_STEPS, splits: stepTicks, filter: (_, ticks) => ticks, values: (_, ticks) => ticks.map(formatStep), label: stepLabel(), labelSize: 22, labelFont: "12px system-ui, sans-serif" });
const byteAxis = (more) => axis({ incrs: BYTE_STEPS, size: 84, values: (_, ticks) => ticks.map(formatTick), ...more });

/** A chart over executions: *lines* have STEPS + 1 points, each value holds until the next execution. */
function stepChart(host, { lines, series, axes, scales, hooks, height }) {
  const xs = Float64Array.from({ length: STEPS + 1 }, (_, i) => i);
  const chart = new uPlot({
    width: host.clientWidth || 900, height, legend: { show: false }, pxAlign: false,
    scales: { x: { time: false, distr: 100, fwd: toX, bwd: toStep, range: () => [view.min, view.max] }, ...scales },
    axes: [countAxis(), ...axes],
    series: [{}, ...series.map((line) => ({ paths: uPlot.paths.stepped({ align: 1 }), points: { show: false }, width: 0, ...line }))],
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false }, bind: { dblclick: () => () => wholeStep() } },
    hooks: { ...hooks, setSelect: [zoomToSelection] },
  }, [xs, ...lines], host);
  view.charts.push(chart);
  pointing(chart);
  onRepaint(() => chart.redraw(false, true));
  new ResizeObserver(() => chart.setSize({ width: host.clientWidth, height })).observe(host);
  return chart;
}

function zoomToSelection(chart) {
  const { left, width } = chart.select;
  if (width > 3) setView(chart.posToVal(left, "x"), chart.posToVal(left + width, "x"));
  chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
}

const executionAt = (chart, event) => {
  const left = event.clientX - chart.over.getBoundingClientRect().left;
  return Math.max(0, Math.min(STEPS - 1, Math.floor(chart.posToVal(left, "x"))));
};

/** Mouse: the wheel scrolls the page, with Ctrl it zooms at the pointer; shift or the middle button drags, a click pins. */
function pointing(chart) {
  const over = chart.over;
  let down = null;
  over.addEventListener("wheel", (event) => {
    const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
    const pans = event.shiftKey || Math.abs(sideways) > Math.abs(event.deltaY);
    if (!pans && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    if (pans) pan(Math.sign(sideways) * 0.1);
    else zoom(event.deltaY > 0 ? 1.25 : 0.8, chart.posToVal(event.clientX - over.getBoundingClientRect().left, "x"));
  }, { passive: false });
  over.parentElement.addEventListener("mousedown", (event) => {
    down = { x: event.clientX, min: view.min, max: view.max };
    if (event.shiftKey || event.button === 1) { event.stopPropagation(); event.preventDefault(); drag(down, over.clientWidth); }
  }, true);
  over.addEventListener("mousemove", (event) => hover(executionAt(chart, event)));
  over.addEventListener("mouseleave", () => hover(null));
  over.addEventListener("click", (event) => {
    if (down && Math.abs(event.clientX - down.x) < 4 && !event.shiftKey) pin(executionAt(chart, event));
  });
}
function drag(from, width) {
  const move = (event) => {
    shift(from.min, from.max, ((from.x - event.clientX) / width) * (toX(from.max) - toX(from.min)));
  };
  document.addEventListener("mousemove", move);
  document.addEventListener("mouseup", () => document.removeEventListener("mousemove", move), { once: true });
}

/** A mark with a label over the chart: moved to an execution, and to the height of *bytes* if they are given. */
function marker(chart, className) {
  const text = el("span", {});
  const mark = el("div", { className: `mark ${className}` }, text);
  chart.over.append(mark);
  return (at, label, bytes) => {
    const left = chart.valToPos(at + 0.5, "x");
    const width = chart.over.clientWidth;
    mark.hidden = !(left >= 0 && left <= width);
    mark.style.left = `${left}px`;
    if (bytes !== undefined) mark.style.top = `${chart.valToPos(bytes, "y")}px`;
    mark.classList.toggle("flip", left > width * 0.6);
    text.textContent = label;
  };
}

const stretches = phaseStretches();
/** Shade the phases behind the lines. */
function shadePhases(chart) {
  const { ctx, bbox } = chart;
  ctx.save();
  for (const [phase, begin, end] of visibleStretches(chart)) {
    ctx.globalAlpha = Number(palette.phase);
    ctx.fillStyle = PHASES[phase].color;
    ctx.fillRect(begin, bbox.top, end - begin, bbox.height);
  }
  ctx.restore();
}
/** Name the phases where there is room, on a strip at the top. */
function namePhases(chart) {
  const { ctx, bbox } = chart;
  const scale = devicePixelRatio;
  ctx.save();
  ctx.font = `600 ${12 * scale}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  for (const [phase, begin, end] of visibleStretches(chart)) {
    ctx.fillStyle = PHASES[phase].color;
    ctx.fillRect(begin, bbox.top, end - begin, 4 * scale);
    if (ctx.measureText(PHASES[phase].name).width + 8 * scale > end - begin) continue;
    ctx.fillStyle = palette.ink;
    ctx.fillText(PHASES[phase].name, (begin + end) / 2, bbox.top + 14 * scale);
  }
  ctx.restore();
}
function* visibleStretches(chart) {
  const { left, width } = chart.bbox;
  for (const [phase, first, last] of stretches) {
    const begin = Math.max(left, chart.valToPos(first, "x", true));
    const end = Math.min(left + width, chart.valToPos(last, "x", true));
    if (end > begin) yield [phase, begin, end];
  }
}
