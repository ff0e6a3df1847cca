// Traces: what to follow, which there are, and the packets of one.

import { ask, get } from "./api.js";
import { matchOf, onSubmit, tell } from "./change.js";
import { keep, setText } from "./dom.js";
import { count, duration } from "./format.js";
import { drawTable, matchText } from "./tables.js";
import { drawPacket, makePacket } from "./way.js";

const $ = (id) => document.getElementById(id);
const MAX_SHOWN = 20;
const REFRESH_MS = 900;

let traces = [];
let chosen = null; // Number of the trace that is shown.
let trace = null; // As it was told last.
let isAllowed = false;
let askedAt = 0;
let drawnFor = "";

const COLUMNS = [
  ["Trace", "", (item) => [
    { text: `#${item.id}`, class: "main" },
    { text: item.done ? "✓ done" : "… waiting for packets", class: "quiet" },
  ]],
  ["Match", "", ({ request }) => [
    { text: matchText(request.matches), class: "code" },
    ...(request.one_in > 1 ? [{ text: `one in ${count(request.one_in)}`, class: "quiet" }] : []),
  ]],
  ["Packets", "number", (item) => [
    { text: `${count(item.marked_pkts)} of ${count(item.request.count)}`, class: "main" },
    ...(item.torn_pkts > 0 ? [{ text: `✕ ${count(item.torn_pkts)} incomplete`, class: "quiet bad" }] : []),
  ]],
  ["Age", "number", (item) => [{ text: duration(item.for_s), class: "" }]],
];

const BUTTONS = [
  ["Show", (item) => choose(item.id), () => true],
  ["Forget", forget, () => isAllowed],
];

function choose(id) {
  [chosen, trace, askedAt] = [id, null, 0];
  refresh();
}

async function forget(item) {
  try {
    await ask("DELETE", `/api/v1/traces/${item.id}`);
    if (chosen === item.id) [chosen, trace] = [null, null];
    askedAt = 0;
    await refresh();
  } catch (error) {
    tell(error.message, true);
  }
}

async function follow(form) {
  const { match, count: number, one_in: oneIn } = form.elements;
  const body = { matches: matchOf(match.value), count: Number(number.value), one_in: Number(oneIn.value) };
  const { id } = await ask("POST", "/api/v1/traces", body);
  choose(id);
}

/** Asks anew while something may change, at most once a second. */
async function refresh() {
  if (Date.now() - askedAt < REFRESH_MS) return;
  askedAt = Date.now();
  try {
    traces = await get("/api/v1/traces");
    if (chosen === null && traces.length > 0) chosen = traces.at(-1).id;
    if (chosen !== null && !isWhole(trace)) trace = await get(`/api/v1/traces/${chosen}`);
    render();
  } catch (error) {
    if (trace === null) [chosen, traces] = [null, traces.filter(({ id }) => id !== chosen)];
    setText($("no-traces"), `Traces are not known: ${error.message}`);
    render();
  }
}

/** All is told: no packet is marked any more, and none is inside. */
function isWhole(told) {
  return told !== null && told.id === chosen && told.done
    && told.packets.length + told.torn_pkts >= told.marked_pkts
    && told.packets.every((packet) => packet.end !== "still inside");
}

/** The view. */
export function draw() {
  refresh();
  render();
}

function render() {
  drawTable("traces", COLUMNS, traces, (item) => item.id,
    isAllowed ? "No packet is followed: say which above." : "No packet is followed.", BUTTONS);
  const box = $("trace-packets");
  const packets = trace?.packets ?? [];
  setText($("trace-title"), trace === null ? "Packets" : `Packets of trace #${trace.id}`);
  setText($("trace-note"), noteOf(trace));
  $("way-legend").hidden = packets.length === 0;
  // Pictures are drawn anew only when there is something new, or another width.
  const what = JSON.stringify([trace, box.clientWidth]);
  if (what === drawnFor) return;
  drawnFor = box.clientWidth > 0 ? what : "";
  const shown = packets.slice(-MAX_SHOWN).reverse();
  keep(box, shown, (packet) => packet.time_unix_ns, makePacket, drawPacket);
}

function noteOf(told) {
  if (told === null) return "Choose a trace above.";
  const torn = told.torn_pkts > 0
    ? ` Of ${count(told.torn_pkts)} packets a part of the way is missing, because events were lost.` : "";
  if (told.packets.length === 0) {
    return `${told.done ? "No packet was followed." : "No packet has matched yet; this goes on by itself."}${torn}`;
  }
  const more = told.packets.length > MAX_SHOWN
    ? ` The latest ${MAX_SHOWN} of ${count(told.packets.length)} are shown; all are at /api/v1/traces/${told.id}.` : "";
  return `${told.done ? "" : "Still going on. "}Waiting is time in a ring; an NF's time is that of the packet's whole burst.${more}${torn}`;
}

/** Sets the form up. */
export function start(allowed) {
  isAllowed = allowed;
  onSubmit("trace-form", follow);
}
