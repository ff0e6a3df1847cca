// The tables: ports, network functions, drop ledger.

import { el, keep, setAttribute, setLines } from "./dom.js";
import { count, duration, packets, rate } from "./format.js";

const LINK = { up: "● up", down: "○ down", gone: "✕ gone" };
const main = (text, kind = "") => ({ text, class: `main ${kind}`.trim() });
const quiet = (text, kind = "") => ({ text, class: `quiet ${kind}`.trim() });

/** Columns of a table: name shown at phone width, class, and lines of the cell for an item. */
const PORT_COLUMNS = [
  ["Port", "", ({ port }) => [
    main(port.name),
    quiet([port.backend, port.device, port.driver].filter(distinct).join(" · ")),
    quiet(port.egress ? `→ ${port.egress}` : "no egress port"),
  ]],
  ["Link", "", ({ port }) => [
    main(LINK[port.link] ?? port.link, port.link === "up" ? "good" : "bad"),
    ...(port.speed_mbps ? [quiet(rate(port.speed_mbps * 1e6, "bit/s"))] : []),
    quiet(`MTU ${count(port.mtu_bytes)}\u00a0B`),
    ...(port.exhausted ? [quiet("source exhausted")] : []),
  ]],
  ["In", "number", ({ port, now }) => [
    main(rate(now?.rx_pps, "pps")), quiet(rate(now?.rx_bps, "bit/s")), quiet(packets(port.rx_pkts)),
  ]],
  ["Out", "number", ({ port, now }) => [
    main(rate(now?.tx_pps, "pps")), quiet(rate(now?.tx_bps, "bit/s")), quiet(packets(port.tx_pkts)),
  ]],
  ["Dropped here", "number", ({ port, now }) => {
    const total = Object.values(port.drops).reduce((sum, pkts) => sum + pkts, 0);
    const kind = now?.drop_pps > 0 ? "bad" : "";
    return [main(rate(now?.drop_pps, "pps"), kind), quiet(packets(total))];
  }],
];

const NF_COLUMNS = [
  ["NF", "", ({ nf }) => [main(nf.name), quiet(`service ${nf.service} · instance ${nf.instance}`)]],
  ["Process", "", ({ nf }) => [
    quiet(`pid ${nf.pid} · user ${nf.uid}`), quiet(`for ${duration(nf.uptime_s)}`),
  ]],
  ["In", "number", ({ nf, now }) => [main(rate(now?.rx_pps, "pps")), quiet(packets(nf.rx_pkts))]],
  ["Out", "number", ({ nf, now }) => [main(rate(now?.tx_pps, "pps")), quiet(packets(nf.tx_pkts))]],
  ["Held now", "number", ({ nf }) => [main(packets(nf.held_pkts))]],
  ["Dropped", "number", ({ nf, now }) => {
    const lines = [
      main(rate(now && now.drop_pps + now.ring_full_pps, "pps"), now?.ring_full_pps > 0 ? "bad" : ""),
      quiet(`action Drop ${count(nf.drop_pkts)}`),
      quiet(`ring full ${count(nf.ring_full_pkts)}`, nf.ring_full_pkts > 0 ? "bad" : ""),
    ];
    if (nf.violations > 0) lines.push(quiet(`⚠ violations ${count(nf.violations)}`, "bad"));
    return lines;
  }],
];

const DROP_COLUMNS = [
  ["Place", "", ({ drop }) => [main(drop.place)]],
  ["Reason", "", ({ drop }) => [{ text: drop.reason, class: "" }]],
  ["So far", "number", ({ drop }) => [main(packets(drop.pkts))]],
  ["Now", "number", ({ pps }) => [main(rate(pps, "pps"), pps > 0 ? "bad" : "")]],
];

/** Draws all three. */
export function drawTables({ status, rates }) {
  const ports = status.ports.map((port) => ({ port, now: rates.ports.get(port.name) }));
  drawTable("ports", PORT_COLUMNS, ports, (item) => item.port.name, "The manager has no port.");
  const nfs = status.nfs.map((nf) => ({ nf, now: rates.nfs.get(nf.instance) }));
  drawTable("nfs", NF_COLUMNS, nfs, (item) => item.nf.instance, noNfs(status.services));
  const drops = status.drops.map((drop) => ({ drop, pps: dropRate(rates, drop) }));
  const key = ({ drop }) => JSON.stringify([drop.place, drop.reason]);
  drawTable("drops", DROP_COLUMNS, drops, key, "✓ No packet has been dropped.");
}

function noNfs(services) {
  if (services.length === 0) return "No service is wanted: packets go from port to port.";
  const names = services.map((service) => service.name).join(", ");
  return `No NF is attached; wanted: ${names}. Start one: millrace-nf.`;
}

function dropRate(rates, { place, reason }) {
  if (!rates.known) return undefined;
  return rates.drops.find((drop) => drop.place === place && drop.reason === reason)?.pps ?? 0;
}

function drawTable(id, columns, items, keyOf, empty) {
  const body = document.getElementById(id);
  const note = document.getElementById(`no-${id}`);
  body.parentElement.hidden = items.length === 0;
  note.hidden = items.length > 0;
  if (note.textContent !== empty) note.textContent = empty;
  const make = () => el("tr", { role: "row" }, ...columns.map(cell));
  keep(body, items, keyOf, make, (row, item) => {
    columns.forEach(([, , lines], at) => setLines(row.children[at], lines(item)));
  });
}

function cell([label, kind]) {
  const node = el("td", { role: "cell", "data-label": label });
  if (kind) setAttribute(node, "class", kind);
  return node;
}

function distinct(text, at, all) {
  return text && all.indexOf(text) === at;
}
