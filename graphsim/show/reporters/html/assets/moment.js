// The card of a moment: the op that runs, its layer, and what is live, for the moment pointed at or pinned.

const SHORT_LIST = 10;

function drawMoment() {
  const at = moment.hovered ?? moment.pinned;
  const op = opAt(at);
  const rows = liveAt(at);
  const heading = at === DATA.peak.execution ? "At the peak" : moment.hovered === null ? "Pinned" : "At the pointer";
  const facts = [
    ["op", `${op.name} (${op.kind})`], ["layer", op.layer || "none"],
    ["phase", `${op.phase}, op ${formatInteger(at + 1)} of ${formatInteger(STEPS)}`],
    ["live", `${formatBytes(live[at])} (${formatInteger(live[at])} bytes) in ${formatInteger(rows.length)} tensors`],
  ];
  const card = $("moment");
  card.dataset.execution = at;
  card.replaceChildren(
    el("h3", {}, heading),
    el("dl", {}, ...facts.flatMap(([label, text]) => [el("dt", {}, label), el("dd", {}, text)])),
    roleBar(ROLES.map((_, role) => byRole[role][at]), live[at]),
    el("table", {}, el("tbody", {}, ...rows.slice(0, SHORT_LIST).map((row) => el("tr", {},
      el("td", { className: "number" }, formatBytes(row.bytes)),
      el("td", { className: "name" }, row.name === "workspace" ? `workspace of ${row.op}` : row.name),
      el("td", {}, roleCell(row.role)))))),
  );
}

/** A bar whose parts are roles; its length is the share of *whole*. */
function roleBar(sizes, whole) {
  const parts = sizes.map((bytes, role) => [bytes, role]).filter(([bytes]) => bytes > 0);
  const text = parts.map(([bytes, role]) => `${ROLES[role].label} ${formatBytes(bytes)}`).join(", ");
  return el("div", { className: "share", role: "img", "aria-label": text, title: text }, ...parts.map(([bytes, role]) =>
    el("i", { style: { width: `${(100 * bytes) / Math.max(1, whole)}%`, background: ROLES[role].color } })));
}

function watchMoment() {
  let frame = 0;
  moment.watchers.push(() => {
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; drawMoment(); });
  });
  drawMoment();
}

function markComposition() {
  for (const row of document.querySelectorAll("#composition [data-role]")) {
    row.firstElementChild.prepend(swatch(ROLES.findIndex((role) => role.name === row.dataset.role)));
  }
}
