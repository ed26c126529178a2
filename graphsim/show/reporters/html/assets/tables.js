// Tables that sort by any column and, where there are many rows, search.

const FIRST_ROWS = 200;

/**
 * Columns: {label, value(row) to sort and search by, cell(row) to show, number}. Returns a function that
 * shows other rows. *sort* is the column sorted by at first; numbers start with the largest.
 */
function sortedTable(host, { columns, sort, search, caption }) {
  const state = { rows: [], column: sort, down: columns[sort].number, query: "", all: false };
  const body = el("tbody", {});
  const count = el("span", { className: "note", role: "status" });
  const more = el("button", { type: "button", onclick: () => { state.all = true; fill(); } });
  const heads = columns.map((column, i) => el("th", { scope: "col", className: column.number ? "number" : "" },
    el("button", { type: "button", onclick: () => sortBy(i) }, column.label)));
  const input = search && el("input", {
    type: "search", placeholder: search, "aria-label": search,
    oninput: () => { state.query = input.value.trim().toLowerCase(); fill(); },
  });
  host.replaceChildren(
    el("div", { className: "controls" }, input, count, more),
    el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
      el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body)),
  );

  function sortBy(column) {
    state.down = state.column === column ? !state.down : Boolean(columns[column].number);
    state.column = column;
    fill();
  }
  function found() {
    const words = state.query.split(/\s+/).filter(Boolean);
    const text = (row) => columns.map((column) => (column.number ? "" : column.value(row))).join("\n").toLowerCase();
    return words.length ? state.rows.filter((row) => { const t = text(row); return words.every((word) => t.includes(word)); }) : state.rows;
  }
  function fill() {
    const { value, number } = columns[state.column];
    const compare = number ? (a, b) => value(a) - value(b) : (a, b) => String(value(a)).localeCompare(String(value(b)), "en", { numeric: true });
    const rows = found().slice().sort((a, b) => (state.down ? compare(b, a) : compare(a, b)));
    const visible = state.all ? rows : rows.slice(0, FIRST_ROWS);
    body.replaceChildren(...visible.map((row) => el("tr", {}, ...columns.map((column) =>
      el("td", { className: column.number ? "number" : "name" }, column.cell ? column.cell(row) : String(column.value(row)))))));
    heads.forEach((head, i) => {
      if (i === state.column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      head.firstChild.textContent = columns[i].label + (i === state.column ? (state.down ? " ▾" : " ▴") : "");
    });
    const total = rows[0]?.bytes === undefined ? "" : `, ${formatBytes(rows.reduce((sum, row) => sum + row.bytes, 0))}`;
    count.textContent = `${formatInteger(rows.length)} of ${formatInteger(state.rows.length)}${total}`;
    more.hidden = visible.length === rows.length;
    more.textContent = `Show all ${formatInteger(rows.length)}`;
  }
  return (rows) => { state.rows = rows; fill(); };
}

function drawTensors() {
  const show = sortedTable($("tensor-table"), {
    caption: "Live tensors", search: "Search name, role, layer or op", sort: 0,
    columns: [
      { label: "bytes", number: true, value: (row) => row.bytes, cell: (row) => el("span", { title: `${formatInteger(row.bytes)} bytes` }, formatBytes(row.bytes)) },
      { label: "tensor", value: (row) => row.name },
      { label: "role", value: (row) => ROLES[row.role].label, cell: (row) => roleCell(row.role) },
      { label: "layer", value: (row) => row.layer },
      { label: "made by", value: (row) => row.op || "before the step" },
      { label: "from op", number: true, value: (row) => row.begin + 1, cell: (row) => (row.op ? formatInteger(row.begin + 1) : "–") },
      { label: "to op", number: true, value: (row) => row.end, cell: (row) => formatInteger(row.end) },
    ],
  });
  const follow = (at) => {
    $("tensors-title").textContent = `Live tensors ${momentText(at)}`;
    show(liveAt(at));
  };
  moment.followers.push(follow);
  follow(moment.pinned);
}
