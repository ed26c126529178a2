// Plans: a row a strategy, its peaks as dots, what they cost beside them. Then start everything.

const PLAN_COLORS = ["#8c8c8c", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

function drawPlans() {
  if (!DATA.plans.length) return;
  $("plans").hidden = false;
  const budgets = [...new Set(DATA.plans.map((plan) => plan.budget))];
  const color = (budget) => PLAN_COLORS[(budget === null ? 0 : 1 + budgets.filter((b) => b !== null).indexOf(budget)) % PLAN_COLORS.length];
  const best = new Set(budgets.flatMap((budget) => front(DATA.plans.filter((plan) => plan.budget === budget && plan.peak !== null))));
  const scale = 1.02 * Math.max(1, ...DATA.plans.flatMap((plan) => [plan.peak ?? 0, plan.budget ?? 0]));
  const at = (bytes) => `${(100 * bytes) / scale}%`;
  const bound = Math.max(0, ...DATA.plans.map((plan) => plan.bound ?? 0));

  const track = (plans) => el("div", { className: "track", style: { height: `${0.5 + 0.8 * budgets.length}em` } },
    el("i", { className: "bound", style: { width: at(bound) } }),
    ...budgets.filter((budget) => budget !== null).map((budget) => el("i", { className: "budget", style: { left: at(budget), borderColor: color(budget) } })),
    ...plans.filter((plan) => plan.peak !== null).map((plan) => el("i", {
      className: `dot${plan.feasible ? "" : " hollow"}${best.has(plan) ? " best" : ""}`, title: `${plan.strategy}: ${cost(plan)}`,
      style: { left: at(plan.peak), top: `${(100 * (budgets.indexOf(plan.budget) + 0.5)) / budgets.length}%`, borderColor: color(plan.budget), background: plan.feasible ? color(plan.budget) : "none" },
    })));
  const cell = (plan) => el("td", { className: plan && plan.peak === null ? "reason" : "number" },
    !plan ? "" : plan.peak === null ? plan.problem : cost(plan));
  const rows = [...new Set(DATA.plans.map((plan) => plan.strategy))].map((name) => ({ name, plans: DATA.plans.filter((plan) => plan.strategy === name) }));
  const least = ({ plans }) => Math.min(...plans.map((plan) => plan.peak ?? Infinity));
  rows.sort((a, b) => (least(a) === least(b) ? 0 : least(a) - least(b)));

  const title = (budget) => (budget === null ? "no budget" : `within ${formatBytes(budget)}`);
  $("plan-legend").append(...budgets.map((budget) => el("span", { className: "role" },
    el("span", { className: "swatch", style: { background: color(budget) } }), ` ${title(budget)} `)));
  $("plan-table").append(el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Plans" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "strategy"), el("th", { scope: "col" }, `peak, 0 to ${formatBytes(scale)}`),
      ...budgets.map((budget) => el("th", { scope: "col", className: "number" }, title(budget), floor(budget))))),
    el("tbody", {}, ...rows.map(({ name, plans }) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, track(plans)),
      ...budgets.map((budget) => cell(plans.find((plan) => plan.budget === budget)))))))));
}

const percent = (share) => `${share < 0 ? "-" : "+"}${Math.abs(100 * share).toFixed(1)}%`;
const cost = (plan) => `${formatBytes(plan.peak)}, ${percent(plan.overhead)}${plan.feasible ? "" : ", above the budget"}`;
/** The least that any plan within a budget is known to cost. */
function floor(budget) {
  const known = DATA.plans.filter((plan) => plan.budget === budget && budget !== null && plan.least !== null);
  return known.length ? el("div", { className: "note" }, `at least ${percent(Math.min(...known.map((plan) => plan.least)))}`) : null;
}

/** Plans that no other beats in both, by peak. */
function front(points) {
  const best = [];
  for (const point of [...points].sort((a, b) => a.peak - b.peak || a.overhead - b.overhead)) {
    if (!best.length || point.overhead < best[best.length - 1].overhead) best.push(point);
  }
  return best;
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
