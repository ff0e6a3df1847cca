// Captures: where, which packets, how many; then a file. It comes piece by piece, and is kept also when it
// is stopped.

import { get } from "./api.js";
import { onSubmit, tell } from "./change.js";
import { el, setText } from "./dom.js";
import { bytes, count, duration } from "./format.js";
import { drawTable } from "./tables.js";

const $ = (id) => document.getElementById(id);
const REFRESH_MS = 900;
const RETRY_MS = 3000;

let points = new Map(); // Place → what it is.
let generation = null; // The plan that the points are of.
let loadedAt = 0;
let isAllowed = false;
let askedAt = 0;
let running = null; // {controller, startedAt, bytes} of this page's own capture.

const COLUMNS = [
  ["Where", "", (capture) => capture.at.map((at) => ({ text: at, class: "code" }))],
  ["Filter", "", (capture) => [{ text: capture.filter || "every packet", class: capture.filter ? "code" : "quiet" }]],
  ["By", "", (capture) => [{ text: capture.name, class: "" }, { text: `#${capture.id}`, class: "quiet" }]],
  ["Packets", "number", (capture) => [
    { text: count(capture.pkts), class: "main" },
    ...(capture.lost_pkts > 0 ? [{ text: `✕ ${count(capture.lost_pkts)} lost`, class: "quiet bad" }] : []),
  ]],
  ["For", "number", (capture) => [{ text: duration(capture.for_s), class: "" }]],
];

/** What makes a line of the graph a link to a capture at a place; nothing where none is allowed. */
export function linkTo(at) {
  if (!isAllowed || points.size === 0) return {};
  return { href: `#captures?at=${encodeURIComponent(at)}`, hint: `capture at ${at}` };
}

/** Fetches the places anew when the plan is another. */
export async function observe(status) {
  const isNew = generation !== status.plan.generation || points.size === 0;
  if (!isAllowed || !isNew || Date.now() - loadedAt < RETRY_MS) return;
  loadedAt = Date.now();
  const wanted = status.plan.generation;
  try {
    const told = await get("/api/v1/captures/points");
    points = new Map(told.map(({ at, description }) => [at, description]));
    generation = wanted;
    $("points").replaceChildren(...told.map(({ at, description }) => el("option", { value: at }, description)));
    describe();
  } catch {
    // Asked again a little later.
  }
}

/** Fills the form, from a link in the graph. */
export function prefill(query) {
  const at = query.get("at");
  if (at === null) return;
  $("capture-form").elements.at.value = at;
  describe();
}

function describe() {
  const { at } = $("capture-form").elements;
  setText($("capture-place"), points.get(at.value) ?? "");
  setText($("capture-command"), command());
}

/** The same in a terminal. */
function command() {
  const { at, filter, seconds, count: packets, snap } = $("capture-form").elements;
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const words = ["millrace capture"];
  for (const place of at.value.split(",").filter(Boolean)) words.push(`--at ${quoted(place.trim())}`);
  if (filter.value) words.push(`--filter ${quoted(filter.value)}`);
  if (packets.value) words.push(`--count ${packets.value}`);
  if (seconds.value) words.push(`--seconds ${seconds.value}`);
  if (snap.value) words.push(`--snap ${snap.value}`);
  return `${words.join(" ")} -w out.pcapng`;
}

async function capture(form) {
  if (running) throw new Error("a capture of this page is under way: stop it first");
  const { at, filter, seconds, count: packets, snap } = form.elements;
  const query = new URLSearchParams({ at: at.value, seconds: seconds.value });
  if (filter.value.trim()) query.set("filter", filter.value.trim());
  if (packets.value) query.set("count", packets.value);
  if (snap.value) query.set("snap", snap.value);
  running = { controller: new AbortController(), startedAt: Date.now(), bytes: 0 };
  progress();
  try {
    await download(`/api/v1/captures/download?${query}`);
  } finally {
    running = null;
    progress();
  }
}

async function download(path) {
  const response = await fetch(path, { signal: running.controller.signal });
  if (!response.ok) {
    const { error } = await response.json();
    throw new Error(error.message);
  }
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1];
  const parts = [];
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      running.bytes += value.length;
      progress();
    }
  } catch (error) {
    // Stopped by hand: what has come is kept. Anything else is told, and what has come is kept, too.
    if (!running.controller.signal.aborted) tell(`the capture broke off: ${error.message}`, true);
  }
  save(new Blob(parts, { type: "application/x-pcapng" }), name ?? "millrace.pcapng");
}

function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  tell(`Saved ${name}, ${bytes(blob.size)}.`);
}

function progress() {
  $("capture-stop").hidden = running === null;
  $("capture-start").disabled = running !== null;
  setText($("capture-progress"), running === null ? ""
    : `Capturing for ${duration((Date.now() - running.startedAt) / 1000)}: ${bytes(running.bytes)} so far.`);
}

async function refresh() {
  if (Date.now() - askedAt < REFRESH_MS) return;
  askedAt = Date.now();
  try {
    const captures = await get("/api/v1/captures");
    drawTable("captures", COLUMNS, captures, (capture) => capture.id, "No capture is under way.");
  } catch (error) {
    setText($("no-captures"), `Captures are not known: ${error.message}`);
  }
}

/** The view. */
export function draw() {
  if (running) progress();
  refresh();
}

/** Sets the form up. */
export function start(allowed) {
  isAllowed = allowed;
  onSubmit("capture-form", capture);
  $("capture-form").addEventListener("input", describe);
  $("capture-stop").addEventListener("click", () => running?.controller.abort());
  describe();
}
