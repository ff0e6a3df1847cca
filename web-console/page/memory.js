// Figures over time: what the server remembers, and what has come since.

import { get } from "./api.js";

const FINE_POINTS = 600;
const REFRESH_MS = 10_000;

/** Spans that charts can show: which steps, how far back. */
const SPANS = {
  short: { tier: "fine", ms: 120_000 },
  fine: { tier: "fine", ms: 600_000 },
  coarse: { tier: "coarse", ms: 7_200_000 },
};

let tier = "fine";
let span = SPANS.fine;
let at = []; // Times, ms since 1970.
let subjects = new Map(); // Subject → Map(figure → values).
const seenAt = new Map(); // Subject → when it last had a value, ms since 1970.
let stepMs = 1000;
let loadedAt = 0;
let loading = false;

/** Which span charts show, by its name. */
export function setSpan(name) {
  span = SPANS[name];
  tier = span.tier;
  return load();
}

/** Fetches everything anew. */
export async function load() {
  if (loading) return;
  loading = true;
  try {
    const wanted = tier;
    const answer = await get(`/api/v1/history?tier=${wanted}`);
    if (wanted !== tier) return;
    at = answer.at_unix_ms;
    stepMs = answer.step_s * 1000;
    subjects = new Map(Object.entries(answer.subjects).map(([name, figures]) =>
      [name, new Map(Object.entries(figures))]));
    for (const subject of subjects.keys()) seenAt.set(subject, at.at(-1));
    loadedAt = Date.now();
  } catch {
    // The stream says that the server is away; charts stay as they are.
  } finally {
    loading = false;
  }
}

/** Takes note of a status event. */
export function observe({ status, rates, at_unix_ms: now }) {
  if (tier === "coarse") {
    if (Date.now() - loadedAt > REFRESH_MS) load();
    return;
  }
  if (!rates || (at.length > 0 && now - at[at.length - 1] < 0.9 * stepMs)) return;
  const before = at.length;
  at.push(now);
  for (const [subject, figure, value] of samples(status, rates)) {
    if (!subjects.has(subject)) subjects.set(subject, new Map());
    const figures = subjects.get(subject);
    if (!figures.has(figure)) figures.set(figure, new Array(before).fill(null));
    figures.get(figure)[before] = value;
    seenAt.set(subject, now);
  }
  const surplus = at.length - FINE_POINTS;
  if (surplus > 0) at.splice(0, surplus);
  for (const [subject, figures] of subjects) {
    // Who was last seen before the oldest point is forgotten.
    if ((seenAt.get(subject) ?? 0) < at[0]) {
      subjects.delete(subject);
      seenAt.delete(subject);
    }
    for (const values of figures.values()) {
      while (values.length < before + 1) values.push(null);
      if (surplus > 0) values.splice(0, surplus);
    }
  }
}

/** The same figures as the server keeps. */
function* samples(status, rates) {
  const sum = (list, field) => list.reduce((total, item) => total + item[field], 0);
  yield ["manager", "rx_pps", sum(rates.ports, "rx_pps")];
  yield ["manager", "tx_pps", sum(rates.ports, "tx_pps")];
  yield ["manager", "drop_pps", sum(rates.drops, "pps")];
  for (const port of rates.ports) {
    for (const figure of ["rx_pps", "tx_pps", "rx_bps", "tx_bps", "drop_pps"]) {
      yield [`port:${port.name}`, figure, port[figure]];
    }
  }
  for (const nf of rates.nfs) {
    for (const figure of ["rx_pps", "tx_pps", "drop_pps", "ring_full_pps", "held_pkts"]) {
      yield [`nf:${nf.instance}`, figure, nf[figure]];
    }
    const now = status.nfs.find((other) => other.instance === nf.instance);
    yield [`nf:${nf.instance}`, "cost_ns", now?.cost_ns ?? 0];
  }
  for (const service of status.services) {
    const here = rates.drops.filter((drop) => drop.place === `service:${service.name}`);
    yield [`service:${service.name}`, "drop_pps", sum(here, "pps")];
  }
  for (const chain of rates.chains) yield [`chain:${chain.name}`, "pps", chain.pps];
  for (const worker of rates.workers) {
    yield [`worker:${worker.worker}`, "busy_share", worker.busy_share];
  }
}

/** Times and values of one figure, for a chart. */
export function series(subject, figure) {
  return { at, values: subjects.get(subject)?.get(figure) ?? [], stepMs };
}

/** Which steps charts show: `fine` or `coarse`. */
export function shownTier() {
  return tier;
}

/** How far back charts go, ms. */
export function spanMs() {
  return span.ms;
}
