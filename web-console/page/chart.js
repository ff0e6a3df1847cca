// Lines over time, with axes and units. Lines differ by colour and by dashes, and are named.

import { el, setAttribute, setText, svg } from "./dom.js";

const HEIGHT = 170;
const LEFT = 74;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 24;

/** A figure with room for a chart; `draw` fills it. */
export function makeChart(title) {
  const caption = el("figcaption", {}, el("b", {}, title), el("span", { class: "legend-line" }));
  const picture = svg("svg", { class: "chart", role: "img", height: HEIGHT });
  const reading = el("p", { class: "reading quiet" });
  const figure = el("figure", { class: "chart-box" }, caption, picture, reading);
  picture.addEventListener("pointermove", (event) => point(figure, event.offsetX));
  picture.addEventListener("pointerleave", () => point(figure, null));
  return figure;
}

/**
 * Draws `lines`, each {name, at, values, stepMs}; `format` writes a value with its unit; `max` is
 * the least that the upper end of the axis may be.
 */
export function drawChart(figure, { title, lines, format, spanMs, max = 1 }) {
  const picture = figure.querySelector("svg.chart");
  const width = Math.max(260, figure.clientWidth || 600);
  const now = Math.max(...lines.map(({ at }) => at[at.length - 1] ?? 0), 0) || Date.now();
  const known = lines.flatMap(({ values }) => values.filter((value) => value !== null));
  const top = nice(known.reduce((most, value) => Math.max(most, value), max));
  const x = (time) => LEFT + (width - LEFT - RIGHT) * (1 - (now - time) / spanMs);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  setAttribute(picture, "viewBox", `0 0 ${width} ${HEIGHT}`);
  picture.replaceChildren(
    ...rules(top, format, width, y),
    ...times(spanMs, now, x, width),
    ...lines.map((line, at) =>
      svg("path", { class: `line line-${at}`, d: path(line, x, y, now - spanMs) })),
    svg("line", { class: "pointer", x1: -9, x2: -9, y1: TOP, y2: HEIGHT - BOTTOM }),
  );
  legend(figure.querySelector(".legend-line"), lines, format);
  setAttribute(picture, "aria-label", `${title}. ${summary(lines, format)}`);
  figure.shown = { lines, format, now, spanMs, width };
}

function rules(top, format, width, y) {
  return [0, 0.5, 1].flatMap((share) => {
    const at = y(top * share);
    const label = svg("text", { class: "tick", x: LEFT - 6, y: at + 4, "text-anchor": "end" });
    label.textContent = format(top * share);
    return [svg("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }), label];
  });
}

/** The labels of a time axis that ends now. */
export function times(spanMs, now, x, width, bottom = HEIGHT) {
  const shares = width < 420 ? [1, 0.5, 0] : [1, 0.75, 0.5, 0.25, 0];
  return shares.map((share) => {
    const minutes = (spanMs * share) / 60_000;
    const anchor = share === 0 ? "end" : share === 1 ? "start" : "middle";
    const label = svg("text", {
      class: "tick", x: x(now - spanMs * share), y: bottom - 6, "text-anchor": anchor,
    });
    label.textContent = share === 0 ? "now" : `−${minutes}\u00a0min`;
    return label;
  });
}

/** A line that breaks where a value is not known, or where time passed without one. */
function path({ at, values, stepMs }, x, y, from) {
  let d = "";
  let last = null;
  for (let i = 0; i < at.length; i += 1) {
    const value = values[i] ?? null;
    if (value === null || at[i] < from) {
      last = null;
      continue;
    }
    const draws = last !== null && at[i] - last < 3.5 * stepMs;
    d += `${draws ? "L" : "M"}${x(at[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    last = at[i];
  }
  return d;
}

function legend(parent, lines, format) {
  while (parent.childElementCount > lines.length) parent.lastElementChild.remove();
  while (parent.childElementCount < lines.length) {
    const at = parent.childElementCount;
    const sample = svg("svg", { width: 26, height: 10, "aria-hidden": "true" },
      svg("path", { class: `line line-${at}`, d: "M1 5h24" }));
    parent.append(el("span", { class: "key" }, sample, el("span")));
  }
  lines.forEach(({ name, values }, at) => {
    const last = values[values.length - 1];
    const text = `${name} ${last === undefined || last === null ? "–" : format(last)}`;
    setText(parent.children[at].lastElementChild, text);
  });
}

function summary(lines, format) {
  return lines.map(({ name, values }) => {
    const known = values.filter((value) => value !== null);
    if (known.length === 0) return `${name}: not known yet`;
    const least = known.reduce((a, b) => Math.min(a, b));
    const most = known.reduce((a, b) => Math.max(a, b));
    return `${name}: now ${format(known[known.length - 1])}, from ${format(least)} to ${format(most)}`;
  }).join("; ");
}

/** What the lines say at a place of the picture. */
function point(figure, offset) {
  const reading = figure.querySelector(".reading");
  const pointer = figure.querySelector(".pointer");
  if (!figure.shown || !pointer) return;
  const { lines, format, now, spanMs, width } = figure.shown;
  const share = offset === null ? -1 : (offset - LEFT) / (width - LEFT - RIGHT);
  if (share < 0 || share > 1) {
    setText(reading, "");
    setAttribute(pointer, "x1", -9);
    setAttribute(pointer, "x2", -9);
    return;
  }
  const time = now - spanMs * (1 - share);
  const parts = lines.map(({ name, at, values, stepMs }) => {
    const i = nearest(at, time);
    const near = i >= 0 && Math.abs(at[i] - time) < 2 * stepMs;
    const value = near ? values[i] : null;
    return `${name} ${value === null || value === undefined ? "–" : format(value)}`;
  });
  setAttribute(pointer, "x1", offset);
  setAttribute(pointer, "x2", offset);
  setText(reading, `${new Date(time).toLocaleTimeString("en-GB")}: ${parts.join(", ")}`);
}

function nearest(at, time) {
  let [low, high] = [0, at.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (at[middle] < time) low = middle + 1;
    else high = middle;
  }
  return low > 0 && time - at[low - 1] < at[low] - time ? low - 1 : at.length > 0 ? low : -1;
}

/** The next round number above. */
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value) * power;
}
