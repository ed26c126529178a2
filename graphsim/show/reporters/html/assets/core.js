// The data island as typed columns, and the questions to it: what is live at a moment, the timeline by role.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const ROLES = DATA.roles.map(([name, color]) => ({ name, color, label: name.replaceAll("_", " ") }));
const PHASES = DATA.phases.map(([name, color]) => ({ name, color }));
const WORKSPACE = ROLES.findIndex((role) => role.name === "workspace");
const STEPS = DATA.phase.length;
const store = {
  bytes: Float64Array.from(DATA.storages.bytes), // exact to 8 PiB
  begin: Int32Array.from(DATA.storages.begin),
  end: Int32Array.from(DATA.storages.end),
  role: Uint8Array.from(DATA.storages.role),
};
const workspaceAt = new Float64Array(STEPS);
DATA.workspace.execution.forEach((at, i) => { workspaceAt[at] = DATA.workspace.bytes[i]; });

const opNumber = (at) => (DATA.order ? DATA.order[at] : at);

/** Make an element; text goes in as text, never as markup: names come from strangers. */
function el(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "style") Object.assign(node.style, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The same text as graphsim.units.format_bytes. */
function formatBytes(bytes) {
  for (const [unit, power] of [["TiB", 40], ["GiB", 30], ["MiB", 20], ["KiB", 10]]) {
    const value = bytes / 2 ** power;
    if (Math.abs(value) >= 1) {
      const digits = Math.abs(value) < 100 ? 2 : 1;
      return `${value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${unit}`;
    }
  }
  return `${bytes.toLocaleString("en-US")} B`;
}
const formatInteger = (number) => number.toLocaleString("en-US");
const formatShare = (part, whole) => `${((100 * part) / Math.max(1, whole)).toFixed(1)}%`;
/** On an axis: no zeros that say nothing. */
const formatTick = (bytes) => formatBytes(bytes).replace(/\.0+ /, " ");

function timelineByRole() {
  const lines = ROLES.map(() => new Float64Array(STEPS + 1));
  for (let i = 0; i < store.bytes.length; i++) {
    const line = lines[store.role[i]];
    line[store.begin[i]] += store.bytes[i];
    line[store.end[i]] -= store.bytes[i];
  }
  for (const line of lines) for (let at = 1; at <= STEPS; at++) line[at] += line[at - 1];
  for (let at = 0; at < STEPS; at++) lines[WORKSPACE][at] += workspaceAt[at];
  return lines.map((line) => line.subarray(0, STEPS));
}
const byRole = timelineByRole();
const live = new Float64Array(STEPS);
for (const line of byRole) for (let at = 0; at < STEPS; at++) live[at] += line[at];

function opAt(at) {
  const op = opNumber(at);
  return {
    name: DATA.ops.name[op],
    kind: DATA.kinds[DATA.ops.kind[op]],
    layer: DATA.layers[DATA.ops.layer[op]],
    phase: PHASES[DATA.phase[at]].name,
  };
}

/** What is live while execution *at* runs, largest first. */
function liveAt(at) {
  const rows = [];
  for (let i = 0; i < store.bytes.length; i++) {
    if (store.begin[i] <= at && at < store.end[i]) rows.push(storage(i));
  }
  if (workspaceAt[at] > 0) {
    const op = opAt(at);
    rows.push({ name: "workspace", bytes: workspaceAt[at], role: WORKSPACE, layer: op.layer, op: op.name, begin: at, end: at + 1 });
  }
  return rows.sort((a, b) => b.bytes - a.bytes);
}

function storage(i) {
  const s = DATA.storages;
  return {
    name: s.name[i], bytes: s.bytes[i], role: s.role[i], layer: DATA.layers[s.layer[i]],
    op: s.op[i] < 0 ? "" : DATA.ops.name[s.op[i]], begin: s.begin[i], end: s.end[i],
  };
}

/** Stretches of one phase: [phase, begin, end). */
function phaseStretches() {
  const stretches = [];
  for (let at = 0; at < STEPS; at++) {
    const last = stretches[stretches.length - 1];
    if (last && last[0] === DATA.phase[at]) last[2] = at + 1;
    else stretches.push([DATA.phase[at], at, at + 1]);
  }
  return stretches;
}

// One moment is pinned, at first the peak; views of a moment follow it. Another may be pointed at.
const moment = { pinned: DATA.peak.execution, hovered: null, followers: [], watchers: [] };
function pin(at) {
  moment.pinned = Math.max(0, Math.min(STEPS - 1, at));
  moment.hovered = null;
  moment.followers.forEach((follow) => follow(moment.pinned));
  moment.watchers.forEach((watch) => watch());
}
function hover(at) {
  if (at === moment.hovered) return;
  moment.hovered = at;
  moment.watchers.forEach((watch) => watch());
}
const momentText = (at) => (at === DATA.peak.execution ? "at the peak" : `at op ${formatInteger(at + 1)}, ${opAt(at).name}`);

const swatch = (role) => el("span", { className: "swatch", style: { background: ROLES[role].color }, "aria-hidden": "true" });
const roleCell = (role) => el("span", { className: "role" }, swatch(role), ROLES[role].label);
