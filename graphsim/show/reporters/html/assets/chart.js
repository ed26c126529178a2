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
function zoom(factor, center = (view.min + view.max) / 2) {
  setView(center - (center - view.min) * factor, center + (view.max - center) * factor);
}
const pan = (share) => setView(view.min + share * (view.max - view.min), view.max + share * (view.max - view.min));
const wholeStep = () => setView(0, STEPS);
function showMoment(at) {
  const span = view.max - view.min;
  if (at < view.min || at + 1 > view.max) setView(at + 0.5 - span / 2, at + 0.5 + span / 2);
}

const BYTE_STEPS = Array.from({ length: 53 }, (_, power) => 2 ** power);
const COUNT_STEPS = Array.from({ length: 8 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
const axis = (more) => ({
  stroke: () => palette.muted, font: "12px system-ui, sans-serif",
  grid: { stroke: () => palette.line, width: 1 }, ticks: { stroke: () => palette.line, width: 1 }, ...more,
});
const countAxis = () => axis({ incrs: COUNT_STEPS, values: (_, ticks) => ticks.map(formatInteger), label: "op, in order of execution", labelSize: 22, labelFont: "12px system-ui, sans-serif" });
const byteAxis = (more) => axis({ incrs: BYTE_STEPS, size: 84, values: (_, ticks) => ticks.map(formatTick), ...more });

/** A chart over executions: *lines* have STEPS + 1 points, each value holds until the next execution. */
function stepChart(host, { lines, series, axes, scales, hooks, height }) {
  const xs = Float64Array.from({ length: STEPS + 1 }, (_, i) => i);
  const chart = new uPlot({
    width: host.clientWidth || 900, height, legend: { show: false }, pxAlign: false,
    scales: { x: { time: false, range: () => [view.min, view.max] }, ...scales },
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
    const shift = ((from.x - event.clientX) / width) * (from.max - from.min);
    setView(from.min + shift, from.max + shift);
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
