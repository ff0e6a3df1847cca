// The view of latencies: numbers, then a heat map of the whole way and of each hop, by chain.

import { get } from "./api.js";
import { el, keep, setText } from "./dom.js";
import { count, nanos } from "./format.js";
import { drawHeat, drawLegend, makeHeat, rowsUsed } from "./heat.js";
import * as memory from "./memory.js";
import { drawTable } from "./tables.js";

const $ = (id) => document.getElementById(id);
const MAX_POINTS = { fine: 600, coarse: 720 };

let tier = null; // Of what follows.
let at = [];
let subjects = new Map(); // Key → {chain, hop, span, service, points}.
let rowEnds = [];
let stepMs = 1000;
let intervalUs = null;
let askedAt = 0;
let problem = null;

const COLUMNS = [
  ["Where", "", ({ subject }) => [
    { text: name(subject), class: "main" },
    { text: subject.chain === null ? "no chain" : `chain ${subject.chain}`, class: "quiet" },
  ]],
  ["Sampled", "number", ({ all }) => [{ text: `${count(all.count)}\u00a0packets`, class: "" }]],
  ["p50", "number", ({ all }) => [{ text: nanos(all.p50), class: "main" }]],
  ["p99", "number", ({ all }) => [{ text: nanos(all.p99), class: "main" }]],
  ["Slowest", "number", ({ all }) => [{ text: nanos(all.most), class: "" }]],
];

function name({ hop, span, service }) {
  if (hop === null) return "Port to port";
  return `${hop + 1}. ${service}: ${span === "wait" ? "waiting in its ring" : "with the NF"}`;
}

const keyOf = ({ chain, hop, span, service }) => JSON.stringify([chain, hop, span, service]);

/** Fetches what is new, at most once a step. */
async function refresh() {
  const wanted = memory.shownTier();
  const isOther = wanted !== tier;
  if (!isOther && Date.now() - askedAt < 0.9 * stepMs) return;
  askedAt = Date.now();
  try {
    const after = isOther ? 0 : at.at(-1) ?? 0;
    const answer = await get(`/api/v1/latency/history?tier=${wanted}&after=${after}`);
    if (isOther) [tier, at, subjects] = [wanted, [], new Map()];
    take(answer);
    problem = null;
  } catch (error) {
    problem = error.message;
  }
}

function take(answer) {
  [rowEnds, stepMs, intervalUs] = [answer.row_ends_ns, 1000 * answer.step_s, answer.interval_us];
  const before = at.length;
  at.push(...answer.at_unix_ms);
  for (const { points, ...subject } of answer.subjects) {
    const key = keyOf(subject);
    if (!subjects.has(key)) subjects.set(key, { ...subject, points: new Array(before).fill(null) });
    subjects.get(key).points.push(...points);
  }
  const surplus = Math.max(0, at.length - MAX_POINTS[tier]);
  at.splice(0, surplus);
  for (const [key, { points }] of subjects) {
    while (points.length < at.length + surplus) points.push(null);
    points.splice(0, surplus);
    // What no packet has met for as long as is remembered is forgotten.
    if (!points.some(Boolean)) subjects.delete(key);
  }
}

/** The view; `status` is the manager's. */
export async function draw({ status }) {
  await refresh();
  const shown = [...subjects.values()].sort((a, b) => order(a, status) - order(b, status));
  drawLegend($("heat-legend"));
  $("heat-legend").hidden = shown.length === 0;
  drawNumbers(shown);
  setText($("latency-note"), note());
  const chains = [...new Set(shown.map(({ chain }) => chain))];
  const make = () => el("section", {}, el("h2"), el("div", { class: "whole" }), el("div", { class: "hops" }));
  keep($("latency-charts"), chains, (chain) => JSON.stringify(chain), make, (node, chain) => {
    setText(node.querySelector("h2"), chain === null ? "From port to port, without a chain" : `Chain ${chain}`);
    const here = shown.filter((subject) => subject.chain === chain);
    // One axis for all, so that hops can be compared.
    const rows = rowsUsed(here.map(({ points }) => ({ at, points })), (at.at(-1) ?? 0) - memory.spanMs());
    maps(node.querySelector(".whole"), here.filter(({ hop }) => hop === null), rows);
    maps(node.querySelector(".hops"), here.filter(({ hop }) => hop !== null), rows);
  });
}

/** Chains in the manager's order, in each the whole way first, then hop by hop. */
function order({ chain, hop, span }, status) {
  const place = status.chains.findIndex((other) => other.name === chain);
  const inside = hop === null ? 0 : 1 + 2 * hop + (span === "took" ? 1 : 0);
  return 1000 * (place < 0 ? status.chains.length : place) + inside;
}

function maps(parent, here, rows) {
  const items = rows === null ? [] : here;
  keep(parent, items, keyOf, (subject) => makeHeat(name(subject)), (figure, subject) => {
    const series = { at, points: subject.points };
    drawHeat(figure, { title: name(subject), series, rows, rowEnds, stepMs, spanMs: memory.spanMs() });
  });
}

function drawNumbers(shown) {
  const from = (at.at(-1) ?? 0) - memory.spanMs();
  const items = shown.map((subject) => ({ subject, all: together(subject.points, from) }));
  const met = items.filter(({ all }) => all.count > 0);
  drawTable("latencies", COLUMNS, met, ({ subject }) => keyOf(subject), "No latency is known yet.");
}

/** All points since `from` as one. */
function together(points, from) {
  const rows = new Array(rowEnds.length).fill(0);
  points.forEach((point, i) => {
    if (at[i] < from) return;
    for (const [row, packets] of point?.rows ?? []) rows[row] += packets;
  });
  const total = rows.reduce((sum, packets) => sum + packets, 0);
  const quantile = (share) => {
    let left = Math.ceil(share * total);
    return rowEnds[rows.findIndex((packets) => (left -= packets) <= 0)];
  };
  const most = rowEnds[rows.findLastIndex((packets) => packets > 0)];
  return { count: total, p50: quantile(0.5), p99: quantile(0.99), most };
}

function note() {
  if (problem !== null) return `Latencies are not known: ${problem}`;
  if (intervalUs === null) return "The manager has not told latencies yet.";
  if (intervalUs === 0) {
    return "Sampling is switched off: manager.latency_interval_us is 0 in the configuration.";
  }
  return `Each worker samples one packet in ${nanos(1000 * intervalUs)}. Figures are upper ends of half a `
    + "power of two; all maps of a chain have the same axis.";
}
