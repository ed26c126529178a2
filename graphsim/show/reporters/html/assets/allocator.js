// The allocator: reserved and used while each op runs, and the segments and blocks at the peak.

const ROW_HEIGHT = 18;
const ROWS = 22;
const USED = "#0072b2";
const RESERVED = "#8c8c8c";
const IDLE = "#d55e00";

function drawAllocator() {
  const allocation = DATA.allocation;
  if (!allocation) return;
  $("allocator").hidden = false;
  $("allocator-title").textContent = `Allocator: ${allocation.name}${allocation.options ? ` (${allocation.options})` : ""}`;
  if (allocation.out_of_memory) {
    $("allocator-facts").textContent = `Runs out of memory ${allocation.out_of_memory}.`;
    $("allocator-view").hidden = true;
    return;
  }
  const idle = 1 - allocation.used_peak / Math.max(1, allocation.reserved_peak);
  $("allocator-facts").textContent = `Reserves ${formatBytes(allocation.reserved_peak)} (${formatInteger(allocation.reserved_peak)} bytes) at most; ` +
    `${formatBytes(allocation.used_peak)} are in use at most; ${(100 * idle).toFixed(1)}% of the reservation is never needed.`;
  drawReservation(allocation);
  drawMap(allocation);
  drawSegments(allocation);
}

const held = (column) => Float64Array.from({ length: STEPS + 1 }, (_, at) => column[Math.min(at, STEPS - 1)]);

function drawReservation({ used, reserved }) {
  const idle = used.map((bytes, at) => (reserved[at] ? 100 * (1 - bytes / reserved[at]) : 0));
  stepChart($("allocator-chart"), {
    height: 240, lines: [held(reserved), held(used), held(idle)],
    axes: [byteAxis(), axis({ side: 1, scale: "%", size: 56, grid: { show: false }, values: (_, ticks) => ticks.map((tick) => `${tick}%`) })],
    scales: { y: { range: (_, low, high) => [0, Math.max(1, high) * 1.14] }, "%": { range: [0, 100] } },
    series: [
      { label: "reserved", fill: `${RESERVED}66`, stroke: RESERVED, width: 1.5 },
      { label: "in use", fill: `${USED}99`, stroke: USED, width: 1 },
      { label: "not in use, %", scale: "%", stroke: IDLE, width: 1.5, dash: [5, 3] },
    ],
    hooks: { drawClear: [shadePhases], draw: [namePhases] },
  });
  const entry = (color, text) => el("span", { className: "role" }, el("span", { className: "swatch", style: { background: color } }), `${text} `);
  $("allocator-chart").before(el("div", { className: "legend" }, entry(RESERVED, "reserved"), entry(USED, "in use"),
    entry(IDLE, "share of the reservation not in use (dashed, right axis)")));
}

/** Segments, the largest first, each with its blocks; *start* counts bytes over all segments. */
function placedSegments({ segments, blocks }) {
  const placed = segments.map((bytes, number) => ({ number, bytes, blocks: [], start: 0 }));
  blocks.segment.forEach((segment, i) => placed[segment].blocks.push({ offset: blocks.offset[i], bytes: blocks.bytes[i], storage: blocks.storage[i] }));
  placed.sort((a, b) => b.bytes - a.bytes || a.number - b.number);
  let start = 0;
  for (const segment of placed) { segment.start = start; start += segment.bytes; }
  return placed;
}

const blockRole = (block) => (block.storage < 0 ? WORKSPACE : store.role[block.storage]);
const blockName = (block) => (block.storage < 0 ? `workspace of ${DATA.peak.op}` : DATA.storages.name[block.storage]);

function drawMap(allocation) {
  const canvas = $("block-map");
  const placed = placedSegments(allocation);
  const total = placed.reduce((sum, segment) => sum + segment.bytes, 0);
  const perRow = Math.max(1, Math.ceil(total / ROWS));
  const blocks = placed.flatMap((segment) => segment.blocks.map((block) => ({ ...block, segment, start: segment.start + block.offset })));
  let chosen = -1;

  /** The rectangles, one per row, that bytes [start, start + bytes) cover. */
  function* boxes(start, bytes, width) {
    for (let at = start; at < start + bytes;) {
      const row = Math.floor(at / perRow);
      const end = Math.min(start + bytes, (row + 1) * perRow);
      yield [((at - row * perRow) / perRow) * width, row * ROW_HEIGHT, ((end - at) / perRow) * width, ROW_HEIGHT - 2];
      at = end;
    }
  }
  function paint() {
    const width = canvas.clientWidth;
    const scale = devicePixelRatio;
    canvas.width = width * scale;
    canvas.height = ROWS * ROW_HEIGHT * scale;
    canvas.style.height = `${ROWS * ROW_HEIGHT}px`;
    const ctx = canvas.getContext("2d");
    ctx.scale(scale, scale);
    const free = hatch(ctx);
    for (const segment of placed) for (const box of boxes(segment.start, segment.bytes, width)) { ctx.fillStyle = free; ctx.fillRect(...box); }
    for (const block of blocks) {
      ctx.fillStyle = ROLES[blockRole(block)].color;
      for (const [x, y, w, h] of boxes(block.start, block.bytes, width)) ctx.fillRect(x, y, w > 1.5 ? w - 0.5 : w, h);
    }
    ctx.fillStyle = palette.ink;
    for (const segment of placed) {
      const row = Math.floor(segment.start / perRow);
      ctx.fillRect(((segment.start - row * perRow) / perRow) * width, row * ROW_HEIGHT, 1, ROW_HEIGHT - 2);
    }
    if (chosen >= 0) outline(ctx, blocks[chosen], width);
  }
  function outline(ctx, block, width) {
    ctx.strokeStyle = palette.ink;
    ctx.lineWidth = 3;
    for (const [x, y, w, h] of boxes(block.start, block.bytes, width)) ctx.strokeRect(x, y + 1, Math.max(2, w), h - 2);
  }
  function choose(number) {
    if (number === chosen) return;
    chosen = number;
    paint();
    const block = blocks[chosen];
    $("block-text").textContent = !block ? "\u00a0" : `${blockName(block)}: ${formatBytes(block.bytes)}, ${ROLES[blockRole(block)].label}; ` +
      `at ${formatInteger(block.offset)} in a segment of ${formatBytes(block.segment.bytes)}`;
  }
  canvas.addEventListener("mousemove", (event) => {
    const row = Math.floor(event.offsetY / ROW_HEIGHT);
    const at = (row + event.offsetX / canvas.clientWidth) * perRow;
    choose(blocks.findIndex((block) => block.start <= at && at < block.start + block.bytes));
  });
  canvas.addEventListener("mouseleave", () => choose(-1));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !blocks.length) return;
    event.preventDefault();
    choose((chosen + step + blocks.length) % blocks.length);
  });
  onRepaint(paint);
  new ResizeObserver(paint).observe(canvas.parentElement);
  paint();
}

/** The look of free memory: lines, not a colour. */
function hatch(ctx) {
  const tile = el("canvas", { width: 6, height: 6 });
  const pen = tile.getContext("2d");
  pen.fillStyle = palette.surface;
  pen.fillRect(0, 0, 6, 6);
  pen.strokeStyle = palette.muted;
  pen.beginPath();
  pen.moveTo(-1, 7); pen.lineTo(7, -1); pen.moveTo(-1, 1); pen.lineTo(1, -1); pen.moveTo(5, 7); pen.lineTo(7, 5);
  pen.stroke();
  return ctx.createPattern(tile, "repeat");
}

function drawSegments(allocation) {
  const show = sortedTable($("segment-table"), {
    caption: "Segments", sort: 0,
    columns: [
      { label: "bytes", number: true, value: (row) => row.bytes, cell: (row) => formatBytes(row.bytes) },
      { label: "in use", number: true, value: (row) => row.used, cell: (row) => formatBytes(row.used) },
      { label: "not in use", number: true, value: (row) => 1 - row.used / row.bytes, cell: (row) => formatShare(row.bytes - row.used, row.bytes) },
      { label: "blocks", number: true, value: (row) => row.blocks.length },
      { label: "largest tensor", value: (row) => row.largest },
    ],
  });
  show(placedSegments(allocation).map((segment) => ({
    ...segment,
    used: segment.blocks.reduce((sum, block) => sum + block.bytes, 0),
    largest: segment.blocks.length ? blockName(segment.blocks.reduce((a, b) => (b.bytes > a.bytes ? b : a))) : "",
  })));
  if (allocation.approximate) {
    $("segment-table").before(el("p", { className: "note" }, "Sizes of segments are approximate: under a limit, some may have been given back."));
  }
}
