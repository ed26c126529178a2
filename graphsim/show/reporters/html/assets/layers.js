// The tree of modules: what is live at the pinned moment, added up from layers to their parents.

const opened = new Set();

/** Nest the dotted names of layers. A node: {path, name, bytes, byRole, children}. */
function moduleTree(rows) {
  const node = (path, name) => ({ path, name, bytes: 0, sizes: new Float64Array(ROLES.length), children: new Map() });
  const root = node("", "");
  for (const row of rows) {
    let at = root;
    add(at, row);
    const path = [];
    for (const name of row.layer ? row.layer.split(".") : ["(no module)"]) {
      path.push(name);
      if (!at.children.has(name)) at.children.set(name, node(path.join("."), name));
      at = at.children.get(name);
      add(at, row);
    }
  }
  return root;
}
function add(node, row) {
  node.bytes += row.bytes;
  node.sizes[row.role] += row.bytes;
}

function drawModules() {
  const columns = ROLES.map((_, role) => role).filter((role) => present[role]);
  const body = el("tbody", {});
  let root = moduleTree([]);
  $("module-tree").replaceChildren(
    el("div", { className: "controls" },
      el("button", { type: "button", onclick: () => openAll(true) }, "Open all"),
      el("button", { type: "button", onclick: () => openAll(false) }, "Close all")),
    el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Memory by module" },
      el("table", { className: "tree" }, el("thead", {}, el("tr", {},
        el("th", { scope: "col" }, "module"), el("th", { scope: "col", className: "number" }, "live"),
        el("th", { scope: "col", className: "number" }, "share"), el("th", { scope: "col" }, "by role"),
        ...columns.map((role) => el("th", { scope: "col", className: "number" }, ROLES[role].label)))), body)),
  );

  function openAll(open) {
    opened.clear();
    if (open) walk(root, (node) => opened.add(node.path));
    fill();
  }
  function walk(node, visit) {
    for (const child of node.children.values()) { visit(child); walk(child, visit); }
  }
  function fill(focus) {
    const rows = [];
    const largest = Math.max(1, ...[...root.children.values()].map((node) => node.bytes));
    const visit = (node, depth) => {
      for (const child of [...node.children.values()].sort((a, b) => b.bytes - a.bytes)) {
        rows.push(moduleRow(child, depth, largest));
        if (opened.has(child.path)) visit(child, depth + 1);
      }
    };
    visit(root, 0);
    body.replaceChildren(...rows);
    if (focus !== undefined) [...body.querySelectorAll("button")].find((button) => button.dataset.path === focus)?.focus();
  }
  function toggle(path, open) {
    if (open) opened.add(path);
    else opened.delete(path);
    fill(path);
  }
  function moduleRow(node, depth, largest) {
    const open = opened.has(node.path);
    const button = node.children.size ? el("button", {
      type: "button", className: "toggle", "aria-expanded": String(open), "aria-label": `${open ? "Close" : "Open"} ${node.path}`,
      onclick: () => toggle(node.path, !open),
      onkeydown: (event) => {
        const wish = { ArrowRight: true, ArrowLeft: false }[event.key];
        if (wish !== undefined && wish !== open) { event.preventDefault(); toggle(node.path, wish); }
      },
    }, open ? "▾" : "▸") : el("span", { className: "toggle", style: { display: "inline-block" } });
    if (node.children.size) button.dataset.path = node.path;
    const row = el("tr", {},
      el("th", { scope: "row", style: { paddingLeft: `${0.3 + depth * 1.3}rem` } }, button, node.name),
      el("td", { className: "number" }, formatBytes(node.bytes)),
      el("td", { className: "number" }, formatShare(node.bytes, root.bytes)),
      el("td", {}, roleBar([...node.sizes], largest)),
      ...columns.map((role) => el("td", { className: "number" }, node.sizes[role] ? formatBytes(node.sizes[role]) : "")));
    row.dataset.module = node.path;
    return row;
  }
  const follow = (at) => {
    $("modules-title").textContent = `Memory by module ${momentText(at)}`;
    root = moduleTree(liveAt(at));
    fill();
  };
  moment.followers.push(follow);
  follow(moment.pinned);
}
