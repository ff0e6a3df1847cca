// The accounting line and the bar of buffers.

import { el, setAttribute, setText } from "./dom.js";
import { count, share } from "./format.js";

/** Below this share of free buffers packets may soon be lost. */
const LOW = 0.05;

const TERMS = [
  ["", "received", "rx_pkts"],
  ["+", "lent", "lent_pkts"],
  ["=", "sent", "tx_pkts"],
  ["+", "dropped", "dropped_pkts"],
  ["+", "inside", "held_pkts"],
];

const PARTS = [
  ["nfs-part", "at NFs", "at_nfs"],
  ["ports-part", "at ports", "at_ports"],
  ["free-part", "free", "free"],
];

/** Draws `received + lent = sent + dropped + inside`, and whether that is so. */
export function drawBooks(parent, books) {
  if (!parent.querySelector(".books")) {
    parent.replaceChildren(el("p", { class: "books" }, ...TERMS.map(term)), el("p"));
  }
  const figures = parent.querySelectorAll("b");
  TERMS.forEach(([, , field], at) => setText(figures[at], count(books[field])));
  const verdict = parent.lastElementChild;
  setAttribute(verdict, "class", `verdict ${books.balanced ? "good" : "bad"}`);
  setText(verdict, books.balanced ? "✓ balanced" : `✕ NOT balanced: ${gap(books)}`);
}

function term([sign, name]) {
  const figure = el("span", {}, el("b"), el("span", { class: "quiet" }, name));
  if (!sign) return figure;
  return el("span", { class: "term" }, el("span", { class: "sign" }, sign), figure);
}

function gap({ rx_pkts, lent_pkts, tx_pkts, dropped_pkts, held_pkts }) {
  const missing = rx_pkts + lent_pkts - tx_pkts - dropped_pkts - held_pkts;
  return missing >= 0
    ? `${count(missing)} packets received or lent are nowhere`
    : `${count(-missing)} packets more than were received or lent`;
}

/** Draws where the buffers are. */
export function drawPool(parent, pool) {
  if (!parent.querySelector(".legend")) {
    const bar = el("div", { class: "bar-of-buffers", role: "img" });
    bar.append(...PARTS.map(([kind]) => el("span", { class: kind })));
    const legend = el("ul", { class: "legend" });
    legend.append(...PARTS.map(([kind]) => el("li", {}, el("i", { class: kind }), el("span"))));
    parent.replaceChildren(bar, legend, el("p", { class: "quiet" }));
  }
  const [bar, legend, note] = parent.children;
  const texts = PARTS.map(([, name, field]) =>
    `${name} ${count(pool[field])} (${share(pool[field], pool.total)})`);
  PARTS.forEach(([, , field], at) => {
    // Set by script, not by an attribute, which the content security policy would refuse.
    bar.children[at].style.flexGrow = String(pool[field]);
    setText(legend.children[at].lastElementChild, texts[at]);
  });
  setAttribute(bar, "aria-label", `Buffers: ${texts.join(", ")}`);
  const low = pool.free < LOW * pool.total;
  setAttribute(note, "class", low ? "bad" : "quiet");
  const size = `${count(pool.total)} buffers of ${count(pool.buffer_bytes)}\u00a0B`;
  setText(note, low ? `⚠ Few are free: packets may be dropped as rx_no_buffer. ${size}.` : `${size}.`);
}
