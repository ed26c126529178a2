// The timeline: roles stacked, phases shaded, the peak a dot on a stem that is seen also where an op is thinner than a pixel.

const shown = ROLES.map(() => true);
const present = ROLES.map((_, role) => byRole[role].some((bytes) => bytes > 0));

/** Tops of the stack, the lowest role last: later series paint over earlier ones. */
function stacked() {
  const tops = [];
  let below = new Float64Array(STEPS + 1);
  ROLES.forEach((_, role) => {
    const top = Float64Array.from(below);
    if (shown[role]) for (let at = 0; at < STEPS; at++) top[at] += byRole[role][at];
    top[STEPS] = top[STEPS - 1];
    tops.push(top);
    below = top;
  });
  return [...tops.reverse(), below];
}

function drawTimeline() {
  const order = ROLES.map((_, role) => role).reverse();
  let placePeak = null;
  let placePin = null;
  const mark = () => {
    if (!placePeak) return;
    const top = byRole.reduce((sum, line, role) => sum + (shown[role] ? line[DATA.peak.execution] : 0), 0);
    placePeak(DATA.peak.execution, `peak ${formatBytes(DATA.peak.bytes)}`, top);
    const at = moment.pinned;
    placePin(at === DATA.peak.execution ? NaN : at, `op ${formatInteger(at + 1)}: ${formatBytes(live[at])}`);
  };
  const chart = stepChart($("chart"), {
    height: 380, lines: stacked(), axes: [byteAxis()],
    scales: { y: { range: (_, low, high) => [0, Math.max(1, high) * 1.24] } },
    series: [
      ...order.map((role) => ({ label: ROLES[role].label, fill: ROLES[role].color })),
      { label: "live", stroke: () => palette.ink, width: 1 },
    ],
    hooks: { drawClear: [shadePhases], draw: [drawStem, namePhases, mark] },
  });
  placePeak = marker(chart, "peak");
  placePin = marker(chart, "pin");
  mark();
  moment.followers.push((at) => { showMoment(at); mark(); });
  drawLegend(chart);
  return chart;
}

/** The stack of the peak, at least two pixels wide. */
function drawStem(chart) {
  const at = DATA.peak.execution;
  if (!inView(at)) return;
  const [begin, end] = [at, at + 1].map((x) => chart.valToPos(x, "x", true));
  const width = Math.max(end - begin, 2 * devicePixelRatio);
  const left = width > end - begin ? Math.round((begin + end - width) / 2) : begin; // whole pixels have the colour whole
  let below = 0;
  chart.ctx.save();
  ROLES.forEach((role, number) => {
    if (!shown[number]) return;
    const [low, high] = [below, below + byRole[number][at]].map((bytes) => chart.valToPos(bytes, "y", true));
    chart.ctx.fillStyle = role.color;
    chart.ctx.fillRect(left, high, width, low - high);
    below += byRole[number][at];
  });
  chart.ctx.restore();
}

function drawLegend(chart) {
  ROLES.forEach((role, number) => {
    if (!present[number]) return;
    $("legend").append(el("button", {
      type: "button", "aria-pressed": "true", title: `Show or hide ${role.label}`,
      onclick: (event) => {
        shown[number] = !shown[number];
        event.currentTarget.setAttribute("aria-pressed", String(shown[number]));
        chart.setData([chart.data[0], ...stacked()]);
        applyView();
      },
    }, swatch(number), role.label));
  });
}

const KEYS = {
  ArrowLeft: (shift) => pin(moment.pinned - (shift ? 10 : 1)),
  ArrowRight: (shift) => pin(moment.pinned + (shift ? 10 : 1)),
  Home: () => pin(0),
  End: () => pin(STEPS - 1),
  p: () => pin(DATA.peak.execution),
  "+": () => zoom(0.5, moment.pinned + 0.5),
  "=": () => zoom(0.5, moment.pinned + 0.5),
  "-": () => zoom(2, moment.pinned + 0.5),
  "[": () => pan(-0.25),
  "]": () => pan(0.25),
  0: wholeStep,
};

function bindKeys() {
  $("chart").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key](event.shiftKey);
  });
  $("zoom-in").onclick = () => zoom(0.5, inView(moment.pinned) ? moment.pinned + 0.5 : undefined);
  $("zoom-out").onclick = () => zoom(2);
  $("zoom-reset").onclick = wholeStep;
  $("to-peak").onclick = () => pin(DATA.peak.execution);
  $("by-time").hidden = !TOTAL_TIME;
  $("by-time").onclick = (event) => {
    setTimed(!timed.on);
    event.currentTarget.setAttribute("aria-pressed", String(timed.on));
  };
}
const inView = (at) => view.min <= at && at < view.max;
