// A heat map of latencies: time to the right, latency upwards on a log axis, colour for the share of
// packets. Shares are shown in five classes, whose lightness differs, so that colour alone is not needed.

import { times } from "./chart.js";
import { el, setAttribute, setText, svg } from "./dom.js";
import { count, nanos } from "./format.js";
import { fillTable, makeTable } from "./tables.js";

const HEIGHT = 190;
const LEFT = 64;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 24;
const TABLE_ROWS = 12;
/** The first row begins here, ns. */
const LEAST_NS = 64;

/** Shares from which a class begins, and how it is called. */
const CLASSES = [
  [0, "below 1 %"], [0.01, "1 to 5 %"], [0.05, "5 to 20 %"], [0.2, "20 to 50 %"], [0.5, "over 50 %"],
];

const TABLE_COLUMNS = [
  ["Time", "", ({ at }) => [{ text: new Date(at).toLocaleTimeString("en-GB"), class: "" }]],
  ["Packets", "number", ({ point }) => [{ text: point ? count(point.count) : "0", class: "" }]],
  ["p50", "number", ({ point }) => [{ text: nanos(point?.p50_ns), class: "" }]],
  ["p99", "number", ({ point }) => [{ text: nanos(point?.p99_ns), class: "" }]],
];

/** What the colours mean. */
export function drawLegend(parent) {
  if (parent.childElementCount > 0) return;
  parent.append(el("li", {}, "Of the packets of a step:"), ...CLASSES.map(([, text], at) =>
    el("li", {}, el("i", { class: `heat-${at}` }), el("span", {}, text))));
  const line = (kind) => svg("svg", { width: 26, height: 10, "aria-hidden": "true" },
    svg("path", { class: `quantile ${kind}`, d: "M1 5h24" }));
  parent.append(el("li", {}, line("p50"), " p50"), el("li", {}, line("p99"), " p99"));
}

/** A figure with room for a heat map; `drawHeat` fills it. */
export function makeHeat(title) {
  const caption = el("figcaption", {}, el("b", {}, title), el("span", { class: "legend-line" }));
  const canvas = el("canvas", { "aria-hidden": "true" });
  const picture = svg("svg", { class: "heat-axes", role: "slider", tabindex: 0, height: HEIGHT });
  const reading = el("p", { class: "reading quiet" });
  const table = el("details", {}, el("summary", {}, "As a table"), makeTable(`${title}, the latest`));
  const figure = el("figure", { class: "chart-box" }, caption,
    el("div", { class: "heat" }, canvas, picture), reading, table);
  picture.addEventListener("pointermove", (event) => pointAt(figure, event.offsetX));
  picture.addEventListener("pointerleave", () => choose(figure, null));
  picture.addEventListener("blur", () => choose(figure, null));
  picture.addEventListener("keydown", (event) => step(figure, event));
  table.addEventListener("toggle", () => drawTable(figure));
  return figure;
}

/** The rows that have packets in the span, whole powers of two; null without any. */
export function rowsUsed(series, from) {
  let [low, high] = [Infinity, -Infinity];
  for (const { at, points } of series) {
    points.forEach((point, i) => {
      if (!point || at[i] < from) return;
      low = Math.min(low, point.rows[0][0]);
      high = Math.max(high, point.rows.at(-1)[0]);
    });
  }
  if (low > high) return null;
  [low, high] = [low - (low % 2), high + (high % 2)];
  while (high - low < 8) [low, high] = [Math.max(0, low - 2), high + 2];
  return [low, high];
}

/** Draws one: `series` is {at, points}, `rows` the lowest and the highest, `rowEnds` their upper ends, ns. */
export function drawHeat(figure, { title, series, rows, rowEnds, stepMs, spanMs }) {
  const width = Math.max(260, figure.clientWidth || 600);
  const now = series.at.at(-1) ?? Date.now();
  const lowNs = rows[0] > 0 ? rowEnds[rows[0] - 1] : LEAST_NS;
  const highNs = rowEnds[Math.min(rows[1], rowEnds.length - 1)];
  const x = (time) => LEFT + (width - LEFT - RIGHT) * (1 - (now - time) / spanMs);
  const share = (ns) => Math.log2(ns / lowNs) / Math.log2(highNs / lowNs);
  const y = (ns) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, Math.max(0, share(ns))));
  figure.shown = { title, series, now, spanMs, stepMs, width, x, chosen: figure.shown?.chosen ?? null };
  const shown = series.points.map((point, i) => (series.at[i] >= now - spanMs ? point : null));
  paint(figure.querySelector("canvas"), { ...series, points: shown }, { width, x, y, rowEnds, stepMs });
  const picture = figure.querySelector("svg.heat-axes");
  setAttribute(picture, "viewBox", `0 0 ${width} ${HEIGHT}`);
  picture.replaceChildren(
    ...levels(lowNs, highNs, width, y),
    ...times(spanMs, now, x, width, HEIGHT),
    ...["p99", "p50"].flatMap((kind) => {
      const d = quantile(series.at, shown, `${kind}_ns`, x, y, stepMs);
      return [svg("path", { class: "quantile under", d }), svg("path", { class: `quantile ${kind}`, d })];
    }),
    svg("line", { class: "pointer", x1: -9, x2: -9, y1: TOP, y2: HEIGHT - BOTTOM }),
  );
  const last = shown.at(-1);
  setText(figure.querySelector(".legend-line"),
    last ? `now p50 ${nanos(last.p50_ns)}, p99 ${nanos(last.p99_ns)}` : "no packet now");
  setAttribute(picture, "aria-label", `${title}: latency over time; arrow keys choose a time`);
  setAttribute(picture, "aria-valuemin", "0");
  setAttribute(picture, "aria-valuemax", String(Math.max(0, series.at.length - 1)));
  choose(figure, figure.shown.chosen, true);
  drawTable(figure);
}

function paint(canvas, { at, points }, { width, x, y, rowEnds, stepMs }) {
  const density = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(width * density), Math.round(HEIGHT * density)];
  const context = canvas.getContext("2d");
  context.scale(density, density);
  const style = getComputedStyle(canvas);
  const colours = CLASSES.map((_, at) => style.getPropertyValue(`--heat-${at}`));
  points.forEach((point, i) => {
    if (!point) return;
    // A little wider than a step, so that no gap shows between one beat and the next.
    const left = Math.max(LEFT, x(at[i] - 1.1 * stepMs));
    const wide = Math.max(1, x(at[i]) - left);
    for (const [row, packets] of point.rows) {
      const upper = y(rowEnds[row]);
      const lower = y(row > 0 ? rowEnds[row - 1] : LEAST_NS);
      context.fillStyle = colours[classOf(packets / point.count)];
      context.fillRect(left, upper, wide, Math.max(1, lower - upper));
    }
  });
}

function classOf(share) {
  return CLASSES.findLastIndex(([least]) => share >= least);
}

/** Rules at 1, 10, 100 of each unit; with 2 and 5 between where there is room. */
function levels(lowNs, highNs, width, y) {
  const out = [];
  const factors = highNs / lowNs > 200 ? [1] : [1, 2, 5];
  for (let decade = 10; decade <= highNs; decade *= 10) {
    for (const ns of factors.map((factor) => factor * decade)) {
      if (ns < lowNs || ns > highNs) continue;
      const label = svg("text", { class: "tick", x: LEFT - 6, y: y(ns) + 4, "text-anchor": "end" });
      label.textContent = nanos(ns);
      out.push(svg("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(ns), y2: y(ns) }), label);
    }
  }
  return out;
}

function quantile(at, points, field, x, y, stepMs) {
  let d = "";
  let last = null;
  points.forEach((point, i) => {
    if (!point) {
      last = null;
      return;
    }
    const draws = last !== null && at[i] - last < 3.5 * stepMs;
    d += `${draws ? "L" : "M"}${x(at[i] - stepMs / 2).toFixed(1)} ${y(point[field]).toFixed(1)}`;
    // A point alone would be nothing to see.
    if (!draws) d += "h1";
    last = at[i];
  });
  return d;
}

function pointAt(figure, offset) {
  if (!figure.shown) return;
  const { series: { at }, now, spanMs, stepMs, width } = figure.shown;
  const share = (offset - LEFT) / (width - LEFT - RIGHT);
  if (share < 0 || share > 1) {
    choose(figure, null);
    return;
  }
  const time = now - spanMs * (1 - share);
  const i = at.findIndex((end) => end >= time);
  choose(figure, i >= 0 && at[i] - time < 3 * stepMs ? at[i] : null);
}

function step(figure, event) {
  if (!figure.shown) return;
  const { series: { at }, chosen } = figure.shown;
  const last = at.length - 1;
  const now = chosen === null ? last : Math.max(0, at.indexOf(chosen));
  const next = {
    ArrowLeft: now - 1, ArrowRight: now + 1, ArrowDown: now - 1, ArrowUp: now + 1,
    PageDown: now - 10, PageUp: now + 10, Home: 0, End: last,
  }[event.key];
  if (next === undefined || last < 0) return;
  event.preventDefault();
  choose(figure, at[Math.min(last, Math.max(0, next))]);
}

/** Shows what was at a time; null: nothing chosen. */
function choose(figure, time, again = false) {
  if (!figure.shown || (!again && figure.shown.chosen === time)) return;
  const { series: { at, points }, x, stepMs } = figure.shown;
  const i = time === null ? -1 : at.indexOf(time);
  figure.shown.chosen = i < 0 ? null : time;
  const picture = figure.querySelector("svg.heat-axes");
  const pointer = figure.querySelector(".pointer");
  const place = i < 0 ? -9 : Math.max(LEFT, x(time - stepMs / 2));
  setAttribute(pointer, "x1", place);
  setAttribute(pointer, "x2", place);
  const point = points[i < 0 ? points.length - 1 : i];
  const said = point
    ? `${count(point.count)} packets sampled, p50 ${nanos(point.p50_ns)}, p99 ${nanos(point.p99_ns)}`
    : "no packet";
  setText(figure.querySelector(".reading"), i < 0 ? "" : `${clockOf(time)}: ${said}`);
  setAttribute(picture, "aria-valuenow", String(i < 0 ? Math.max(0, at.length - 1) : i));
  setAttribute(picture, "aria-valuetext", i < 0 ? `now: ${said}` : `${clockOf(time)}: ${said}`);
}

const clockOf = (time) => new Date(time).toLocaleTimeString("en-GB");

/** The latest as numbers, while that is open. */
function drawTable(figure) {
  const details = figure.querySelector("details");
  if (!details.open || !figure.shown) return;
  const { at, points } = figure.shown.series;
  const items = at.map((time, i) => ({ at: time, point: points[i] })).slice(-TABLE_ROWS).reverse();
  fillTable(details.querySelector("tbody"), TABLE_COLUMNS, items, (item) => item.at);
}
