// Which charts there are, in cards of one thing each.

import { drawChart, makeChart } from "./chart.js";
import { el, keep, setText } from "./dom.js";
import { rate, share } from "./format.js";
import { series, spanMs } from "./memory.js";

const pps = (value) => rate(value, "pps");
const bps = (value) => rate(value, "bit/s");
const time = (value) => (value >= 1000 ? `${(value / 1000).toFixed(1)}\u00a0µs` : `${value.toFixed(0)}\u00a0ns`);
const packets = (value) => rate(value, "pkt");
const percent = (value) => share(value, 1);

/** The charts of one thing: title, lines (name, figure), how values are written. */
const PORT = [
  ["Packets", [["in", "rx_pps"], ["out", "tx_pps"], ["dropped", "drop_pps"]], pps],
  ["Bits", [["in", "rx_bps"], ["out", "tx_bps"]], bps],
];
const NF = [
  ["Packets", [["in", "rx_pps"], ["out", "tx_pps"], ["dropped", "drop_pps"], ["ring full", "ring_full_pps"]], pps],
  ["Packets it has", [["held", "held_pkts"]], packets],
  ["CPU time a packet", [["cost", "cost_ns"]], time],
];
const WORKER = [["Turns that moved packets", [["busy", "busy_share"]], percent, 1]];
const DROPS = [["Dropped packets", [["dropped", "drop_pps"]], pps]];
const TOTAL = [["Packets", [["in", "rx_pps"], ["out", "tx_pps"], ["dropped", "drop_pps"]], pps]];

function draw(parent, subject, charts) {
  const items = charts.map(([title, lines, format, max]) => ({ title, lines, format, max }));
  keep(parent, items, (item) => item.title, (item) => makeChart(item.title), (figure, item) => {
    const lines = item.lines.map(([name, figure]) => ({ name, ...series(subject, figure) }));
    drawChart(figure, { title: item.title, lines, format: item.format, spanMs: spanMs(), max: item.max });
  });
}

function cards(id, items, charts) {
  const make = () => el("section", {}, el("h2"), el("div", { class: "charts" }));
  keep(document.getElementById(id), items, (item) => item.subject, make, (node, item) => {
    setText(node.querySelector("h2"), item.title);
    draw(node.querySelector(".charts"), item.subject, charts);
  });
}

/** The sum of all ports. */
export function drawTotals() {
  draw(document.getElementById("totals"), "manager", TOTAL);
}

/** A card for each port. */
export function drawPortCharts({ status }) {
  cards("port-charts", status.ports.map((port) =>
    ({ subject: `port:${port.name}`, title: `Port ${port.name}` })), PORT);
}

/** A card for each NF. */
export function drawNfCharts({ status }) {
  cards("nf-charts", status.nfs.map((nf) => ({
    subject: `nf:${nf.instance}`,
    title: `${nf.service_name} #${nf.instance} (${nf.name})`,
  })), NF);
}

/** A card for each worker. */
export function drawCoreCharts({ status }) {
  cards("core-charts", status.workers.map((worker) => ({
    subject: `worker:${worker.worker}`,
    title: `Worker ${worker.worker}${worker.core === null ? "" : `, core ${worker.core}`}`,
  })), WORKER);
}

/** A card for each place at which packets were dropped. */
export function drawDropCharts({ status }) {
  const places = [...new Set(status.drops.map((drop) => drop.place))].sort();
  const shown = places.filter((place) => !place.startsWith("worker:"));
  cards("drop-charts", shown.map((place) => ({ subject: place, title: place })), DROPS);
}
