// What is left of NFs that crashed: why, last words, files, and the command that runs it again.

import { get, segment } from "./api.js";
import { tell } from "./change.js";
import { el, keep, setText } from "./dom.js";
import { bytes, packets } from "./format.js";

const $ = (id) => document.getElementById(id);
const REFRESH_MS = 900;
/** How long after a death its bundle may come. */
const LATE_MS = 10_000;

let crashes = [];
let isAllowed = false;
let isKnown = false;
let askedAt = 0;
let deaths = null; // How many there were.
let diedAt = 0;
let changed = () => {};

/** Asks for the list after deaths, so that the timeline can lead to what is left. */
export function observe(status) {
  if (deaths !== status.deaths.count) [deaths, diedAt] = [status.deaths.count, Date.now()];
  if (Date.now() - diedAt < LATE_MS) refresh();
}

/** The crash of an instance nearest to a time, ms since 1970. */
export function crashOf(instance, atMs) {
  const near = (crash) => Math.abs(crash.time_unix_ns / 1e6 - atMs);
  const own = crashes.filter((crash) => crash.instance === instance && near(crash) < 60_000);
  return own.sort((a, b) => near(a) - near(b))[0] ?? null;
}

async function refresh() {
  if (Date.now() - askedAt < REFRESH_MS) return;
  askedAt = Date.now();
  try {
    const told = await get("/api/v1/crashes");
    const isNew = JSON.stringify(told) !== JSON.stringify(crashes);
    [crashes, isKnown] = [told, true];
    if (isNew) changed();
    render();
  } catch (error) {
    setText($("no-crashes"), `Crashes are not known: ${error.message}`);
  }
}

/** The view. */
export function draw() {
  refresh();
  render();
}

function render() {
  $("no-crashes").hidden = crashes.length > 0;
  if (isKnown) setText($("no-crashes"), "✓ Nothing is left of any crash.");
  keep($("crashes"), crashes, (crash) => crash.name, make, () => {});
}

function make(crash) {
  const at = new Date(crash.time_unix_ns / 1e6);
  const title = el("h3", { id: `crash-${crash.name}`, tabindex: -1 },
    `${crash.service} #${crash.instance}: ${crash.why}`);
  const command = `millrace replay ${crash.path}`;
  const copy = el("button", { type: "button" }, "Copy");
  copy.addEventListener("click", () => copied(command));
  return el("li", { class: "crash" },
    title,
    el("p", { class: "quiet" }, el("time", { datetime: at.toISOString() },
      `${at.toLocaleDateString("en-GB")} ${at.toLocaleTimeString("en-GB")}`),
    ` · ${crash.name} · ${packets(crash.recorded_pkts)} recorded before, ${packets(crash.in_hand_pkts)} in hand`),
    words(crash.last_words),
    el("ul", { class: "files" }, ...crash.files.map((entry) => file(crash.name, entry))),
    el("p", { class: "command" }, el("code", {}, command), copy));
}

function words(text) {
  if (!text) return el("p", { class: "quiet" }, "It left no last words.");
  return el("pre", { class: "words", tabindex: 0, role: "region", "aria-label": "Last words" }, text);
}

function file(crash, { name, len_bytes: lenBytes }) {
  const size = el("span", { class: "quiet" }, ` ${bytes(lenBytes)}`);
  if (!isAllowed) return el("li", {}, name, size);
  const href = `/api/v1/crashes/${segment(crash)}/files/${segment(name)}`;
  return el("li", {}, el("a", { href, download: `${crash}-${name}` }, name), size);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell("Copied.");
  } catch {
    // Only a page that came over TLS or from this machine may.
    tell(`Copy it by hand: ${text}`);
  }
}

/** Scrolls to one, from a link in the timeline. */
export function prefill(query) {
  const name = query.get("name");
  const title = name === null ? null : document.getElementById(`crash-${name}`);
  title?.scrollIntoView({ block: "center" });
  title?.focus();
}

/** Sets it up; `whenChanged` is called when there is another crash. */
export function start(allowed, whenChanged) {
  [isAllowed, changed] = [allowed, whenChanged];
}
