// The way of one packet as a picture: a row for each place, bars to scale for waiting and for the NF's time.

import { el, svg } from "./dom.js";
import { nanos } from "./format.js";
import { fillTable, makeTable, matchText } from "./tables.js";

const ROW = 26;
const BAR = 14;
const AXIS = 26;
const RIGHT = 14;
/** Longest hexadecimal text of a change. */
const MAX_HEX = 64;

const quiet = (text) => ({ text, class: "quiet" });

const COLUMNS = [
  ["Place", "", (step) => [
    { text: step.place, class: "main" }, ...(step.from ? [quiet(`from ${step.from}`)] : []),
  ]],
  ["After", "number", (step) => [{ text: nanos(step.at_ns), class: "" }]],
  ["Waited", "number", (step) => [{ text: step.wait_ns > 0 ? nanos(step.wait_ns) : "–", class: "" }]],
  ["Took", "number", (step) => [{ text: step.took_ns > 0 ? nanos(step.took_ns) : "–", class: "" }]],
  ["Then", "", (step) => [{ text: step.action ?? "–", class: "" }, quiet(`${step.len_bytes}\u00a0B`)]],
  ["Bytes changed", "", (step) => changes(step)],
];

function changes({ changed, moved_bytes: moved }) {
  const lines = changed.map((change) => ({ text: changeText(change), class: "code" }));
  if (moved > 0) lines.unshift(quiet(`${moved} bytes added in front`));
  if (moved < 0) lines.unshift(quiet(`${-moved} bytes taken away in front`));
  return lines.length > 0 ? lines : [quiet("none")];
}

const short = (hex) => (hex.length > MAX_HEX ? `${hex.slice(0, MAX_HEX)}…` : hex);

function changeText({ at_bytes: at, before, after, field }) {
  const where = field ? `${field} (byte ${at})` : `byte ${at}`;
  if (!before && !after) return `${where}: not shown`;
  return before ? `${where}: ${short(before)} → ${short(after)}` : `${where}: + ${short(after)}`;
}

/** When a packet came, to the microsecond. */
export function instant(unixNs) {
  const date = new Date(Math.floor(unixNs / 1e6));
  const micros = Math.floor((unixNs / 1e3) % 1e6);
  return `${date.toLocaleTimeString("en-GB")}.${String(micros).padStart(6, "0")}`;
}

/** A packet's card; `drawPacket` fills it. */
export function makePacket() {
  return el("li", { class: "packet" }, el("h3"), el("p", { class: "quiet" }), el("div"),
    makeTable("The packet's way, place by place"));
}

/** Draws one packet. */
export function drawPacket(node, packet) {
  const [title, about, picture, table] = node.children;
  title.textContent = `${instant(packet.time_unix_ns)} · ${packet.end} after ${nanos(packet.total_ns)}`;
  about.textContent = [
    matchText(packet.key), `${packet.len_bytes}\u00a0B`,
    packet.chain === null ? "no chain" : `chain ${packet.chain}`,
  ].join(" · ");
  const width = Math.max(260, node.clientWidth - 2);
  picture.replaceChildren(timeline(packet, width));
  const items = packet.steps.map((step, i) => ({ ...step, i }));
  fillTable(table.querySelector("tbody"), COLUMNS, items, (step) => step.i);
}

function timeline({ steps, total_ns: totalNs }, width) {
  const isNarrow = width < 560;
  const left = isNarrow ? 4 : 170;
  const row = isNarrow ? ROW + 14 : ROW;
  const endNs = Math.max(1, totalNs, ...steps.map((step) => step.at_ns + step.took_ns));
  const x = (ns) => left + (width - left - RIGHT) * (ns / endNs);
  const height = steps.length * row + AXIS;
  const picture = svg("svg", { class: "way", role: "img", width, height, viewBox: `0 0 ${width} ${height}` });
  picture.setAttribute("aria-label", spoken(steps));
  picture.append(...axis(endNs, x, height, isNarrow ? 3 : 5));
  steps.forEach((step, i) => {
    const top = i * row + (isNarrow ? 16 : (ROW - BAR) / 2);
    picture.append(label(step.place, isNarrow ? left : left - 8, isNarrow ? top - 4 : top + 11, !isNarrow));
    if (step.wait_ns > 0) picture.append(bar("wait", x(step.at_ns - step.wait_ns), x(step.at_ns), top));
    if (step.took_ns > 0) picture.append(bar("took", x(step.at_ns), x(step.at_ns + step.took_ns), top));
    else picture.append(svg("path", { class: "moment", d: `M${x(step.at_ns)} ${top - 1}v${BAR + 2}` }));
  });
  return picture;
}

function bar(kind, from, to, top) {
  // What is there but short is seen, too.
  return svg("rect", {
    class: kind, x: from, y: top, width: Math.max(2, to - from), height: BAR, rx: 2,
  });
}

function label(text, x, y, isRight) {
  const node = svg("text", { class: "tick place", x, y, "text-anchor": isRight ? "end" : "start" });
  node.textContent = text.length > 24 ? `${text.slice(0, 23)}…` : text;
  return node;
}

function axis(endNs, x, height, parts) {
  const power = 10 ** Math.floor(Math.log10(endNs / parts));
  const step = [1, 2, 5, 10].find((factor) => factor * power * parts >= endNs) * power;
  const out = [];
  for (let ns = 0; ns <= endNs; ns += step) {
    const anchor = ns === 0 ? "start" : x(ns) > x(endNs) - 20 ? "end" : "middle";
    const text = svg("text", { class: "tick", x: x(ns), y: height - 6, "text-anchor": anchor });
    text.textContent = ns === 0 ? "0" : nanos(ns);
    out.push(svg("line", { class: "rule", x1: x(ns), x2: x(ns), y1: 0, y2: height - AXIS + 4 }), text);
  }
  return out;
}

function spoken(steps) {
  const parts = steps.map((step) => {
    const wait = step.wait_ns > 0 ? `waited ${nanos(step.wait_ns)}` : "";
    const took = step.took_ns > 0 ? `took ${nanos(step.took_ns)}` : "";
    return [step.place, wait, took].filter(Boolean).join(" ");
  });
  return `Timeline: ${parts.join("; ")}`;
}
