// Plans: peak against overhead, the front that no plan beats, and the same as a table. Then start everything.

const PLAN_COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

function drawPlans() {
  if (!DATA.plans.length) return;
  $("plans").hidden = false;
  const points = DATA.plans.filter((plan) => plan.peak !== null);
  if (points.length) drawFront(points);
  const show = sortedTable($("plan-table"), {
    caption: "Plans", sort: 2,
    columns: [
      { label: "strategy", value: (row) => row.strategy },
      { label: "budget", number: true, value: (row) => row.budget ?? Infinity, cell: (row) => (row.budget === null ? "none" : formatBytes(row.budget)) },
      { label: "peak", number: true, value: (row) => row.peak ?? Infinity, cell: (row) => (row.peak === null ? "–" : formatBytes(row.peak)) },
      { label: "extra cost", number: true, value: (row) => row.overhead ?? Infinity, cell: (row) => (row.overhead === null ? "–" : `${(100 * row.overhead).toFixed(1)}%`) },
      { label: "search", number: true, value: (row) => row.seconds, cell: (row) => `${row.seconds.toFixed(2)} s` },
      { label: "", value: (row) => row.problem || (row.feasible ? "" : "above the budget") },
    ],
  });
  show(DATA.plans);
}

/** Plans that no other beats in both, by peak. */
function front(points) {
  const best = [];
  for (const point of [...points].sort((a, b) => a.peak - b.peak || a.overhead - b.overhead)) {
    if (!best.length || point.overhead < best[best.length - 1].overhead) best.push(point);
  }
  return best;
}

function drawFront(points) {
  const sorted = [...points].sort((a, b) => a.peak - b.peak || b.overhead - a.overhead);
  const names = [...new Set(points.map((point) => point.strategy))];
  const best = new Set(front(points));
  const column = (keep) => sorted.map((point) => (keep(point) ? 100 * point.overhead : null));
  const host = $("plan-chart");
  const marks = (name, i) => ({
    label: name, paths: () => null,
    points: { show: true, size: 11, width: 2, fill: () => PLAN_COLORS[i % PLAN_COLORS.length], stroke: () => palette.ink },
  });
  const room = (low, high) => Math.max((high - low) * 0.12, high * 0.02, 1);
  const chart = new uPlot({
    width: host.clientWidth || 900, height: 320, legend: { show: false }, cursor: { show: false },
    scales: {
      x: { time: false, range: (_, low, high) => [Math.max(0, low - room(low, high)), high + room(low, high)] },
      y: { range: (_, low, high) => [Math.min(0, low), Math.max(1, high) * 1.2] },
    },
    axes: [
      axis({ incrs: BYTE_STEPS, space: 90, values: (_, ticks) => ticks.map(formatTick), label: "peak", labelSize: 22 }),
      axis({ size: 60, values: (_, ticks) => ticks.map((tick) => `${tick}%`), label: "extra cost", labelSize: 22 }),
    ],
    series: [
      {},
      { label: "front", stroke: () => palette.muted, dash: [4, 4], spanGaps: true, points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }) },
      ...names.map(marks),
    ],
    hooks: { draw: [(u) => namePlans(u, sorted)] },
  }, [sorted.map((point) => point.peak), column((point) => best.has(point)), ...names.map((name) => column((point) => point.strategy === name))], host);
  onRepaint(() => chart.redraw(false, true));
  new ResizeObserver(() => chart.setSize({ width: host.clientWidth, height: 320 })).observe(host);
}

function namePlans(chart, points) {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.fillStyle = palette.ink;
  for (const point of points) {
    const x = chart.valToPos(point.peak, "x", true);
    const right = x > bbox.left + bbox.width * 0.75;
    ctx.textAlign = right ? "right" : "left";
    ctx.fillText(point.strategy, x + (right ? -10 : 10) * devicePixelRatio, chart.valToPos(100 * point.overhead, "y", true) - 8 * devicePixelRatio);
  }
  ctx.restore();
}

function start() {
  markComposition();
  $("provenance").textContent = `graphsim ${DATA.graphsim} · ${DATA.policy} release · ${formatInteger(STEPS)} ops · ${formatInteger(DATA.storages.name.length)} tensors`;
  if (STEPS) {
    drawTimeline();
    bindKeys();
    watchMoment();
    drawTensors();
    drawModules();
    drawAllocator();
  }
  drawPlans();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  // Paper is light: what canvases show must be so before the page is printed.
  addEventListener("beforeprint", () => { document.documentElement.dataset.print = ""; repaint(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.print; repaint(); });
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}
start();
