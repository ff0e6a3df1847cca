// What happened: the server's list, the latest first.

import { get } from "./api.js";
import { crashOf } from "./crashes.js";
import { el, keep, setAttribute, setText } from "./dom.js";

const MARKS = { info: "·", good: "✓", warning: "▲", bad: "✕" };
const MAX_ENTRIES = 1000;
const LATEST = 8;

let entries = []; // The latest first.
let seq = 0;
let fetching = false;

/** Fetches what is new, if the server says that there is something. */
export async function follow(latest) {
  // A number that runs back is another server's.
  if (latest < seq) [entries, seq] = [[], 0];
  if (latest === seq || fetching) return;
  fetching = true;
  try {
    const news = await get(`/api/v1/timeline?after=${seq}`);
    for (const entry of news) {
      entries.unshift(entry);
      seq = entry.seq;
    }
    entries.length = Math.min(entries.length, MAX_ENTRIES);
    draw();
  } catch {
    // The next event asks again.
  } finally {
    fetching = false;
  }
}

/** Draws both lists. */
export function draw() {
  const kinds = document.getElementById("kind").value.split(",").filter(Boolean);
  const shown = kinds.length > 0 ? entries.filter((entry) => kinds.includes(entry.kind)) : entries;
  list("timeline", shown);
  list("latest", entries.slice(0, LATEST));
}

function list(id, items) {
  document.getElementById(`no-${id}`).hidden = items.length > 0;
  const make = () => el("li", {}, el("span", { class: "mark", "aria-hidden": "true" }),
    el("time"), el("span", { class: "kind" }), el("span", { class: "text" }, el("span"), el("a", { hidden: "" })));
  keep(document.getElementById(id), items, (entry) => entry.seq, make, (node, entry) => {
    const [mark, time, kind, text] = node.children;
    const at = new Date(entry.at_unix_ms);
    setAttribute(node, "class", entry.level);
    setText(mark, MARKS[entry.level] ?? "·");
    setAttribute(time, "datetime", at.toISOString());
    setText(time, at.toLocaleTimeString("en-GB"));
    setText(kind, entry.kind);
    setText(text.firstElementChild, entry.text);
    leftOf(entry, text.lastElementChild);
  });
}

/** The link from a crash to what is left of it. */
function leftOf(entry, link) {
  const instance = entry.kind === "crash" ? Number(entry.subject.replace("nf:", "")) : NaN;
  const crash = Number.isNaN(instance) ? null : crashOf(instance, entry.at_unix_ms);
  link.hidden = crash === null;
  if (crash === null) return;
  setAttribute(link, "href", `#crashes?name=${encodeURIComponent(crash.name)}`);
  setText(link, "what is left of it");
}

document.getElementById("kind").addEventListener("change", draw);
