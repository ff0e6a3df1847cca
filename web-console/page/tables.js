// The tables: ports, services, network functions, cores, drop ledger, rules, chains.

import { el, keep, setAttribute, setLines, setText } from "./dom.js";
import { count, duration, packets, rate, share } from "./format.js";

const LINK = { up: "● up", down: "○ down", gone: "✕ gone" };
const main = (text, kind = "") => ({ text, class: `main ${kind}`.trim() });
const STATE = { running: "●", standby: "◐", draining: "◌", leaving: "◌" };
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
  ["State", "", ({ nf }) => [
    main(nf.stuck ? "✕ stands still" : `${STATE[nf.state] ?? ""} ${nf.state}`.trim(), nf.stuck ? "bad" : ""),
    ...(nf.stuck ? [quiet(nf.stuck, "bad")] : []),
    quiet(`pid ${nf.pid} · user ${nf.uid}`),
    quiet(`${nf.core === null ? "no core of its own" : `core ${nf.core}`} · for ${duration(nf.uptime_s)}`),
  ]],
  ["Flows", "number", ({ nf }) => [
    main(share(nf.flow_share, 1)),
    quiet(nf.cost_ns > 0 ? `${count(Math.round(nf.cost_ns))}\u00a0ns a packet` : "cost not known"),
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

const SERVICE_COLUMNS = [
  ["Service", "", ({ service }) => [main(service.name), quiet(`id ${service.id}`)]],
  ["Instances", "", ({ service }) => {
    const enough = service.wanted === null || service.instances.length >= service.wanted;
    const wanted = service.wanted === null ? "started by hand" : `${service.wanted} wanted`;
    const lines = [main(`${enough ? "●" : "✕"} ${service.instances.length}`, enough ? "" : "bad"), quiet(wanted)];
    if (service.draining.length > 0) lines.push(quiet(`${service.draining.length} draining`));
    if (service.upgrade) lines.push(quiet(`upgrade: ${service.upgrade.phase}`));
    if (service.waiting) lines.push(quiet(service.waiting, "bad"));
    return lines;
  }],
  ["Confined", "", ({ service }) => [
    quiet(service.confine ?? "by hand"),
    ...(service.isolated ? [quiet(service.shared_region ? "isolated, shared region" : "isolated")] : []),
    ...(service.read_only ? [quiet("read-only")] : []),
  ]],
  ["Restarts", "number", ({ service }) => [main(count(service.restarts))]],
  ["Dropped", "number", ({ service }) =>
    Object.entries(service.drops).map(([reason, pkts]) => quiet(`${count(pkts)} ${reason}`))],
];

const CORE_COLUMNS = [
  ["Core", "", ({ core }) => [main(core === null ? "any" : `core ${core}`)]],
  ["Workers", "", ({ workers }) => workers.map(({ worker, now }) =>
    quiet(`worker ${worker.worker}: ${now ? share(now.busy_share ?? 0, 1) : "–"} busy`))],
  ["NFs", "", ({ nfs }) => nfs.map(({ nf, now }) =>
    quiet(`${nf.service_name} #${nf.instance}: ${rate(now?.rx_pps, "pps")}`))],
  ["CPU time for packets", "number", ({ nfs }) => {
    const known = nfs.filter(({ nf, now }) => now && nf.cost_ns > 0);
    const busy = known.reduce((sum, { nf, now }) => sum + nf.cost_ns * now.rx_pps, 0) / 1e9;
    return nfs.length > 0 ? [main(share(busy, 1)), quiet("of one core, by the NFs' account")] : [];
  }],
];

const RULE_COLUMNS = [
  ["Rule", "", ({ rule }) => [main(rule.name ?? `#${rule.id}`), quiet(`id ${rule.id}`)]],
  ["Order", "", ({ rule }) => [main(`priority ${rule.priority}`), quiet(`table ${rule.table}`)]],
  ["Match", "", ({ rule }) => [{ text: matchText(rule.match), class: "code" }]],
  ["Action", "", ({ rule }) => [{ text: thenText(rule.then), class: "code" }]],
  ["Packets", "number", ({ rule, now }) => [
    main(rate(now?.pps ?? 0, "pps")), quiet(packets(rule.pkts)),
    quiet(rule.pkts > 0 ? `last ${duration(rule.idle_s)} ago` : "none so far"),
  ]],
];

const CHAIN_COLUMNS = [
  ["Chain", "", ({ chain }) => [main(chain.name), quiet(`without an NF: ${chain.on_death ?? "drop"}`)]],
  ["Services", "", ({ chain }) => [
    { text: [...chain.services, chain.end].join(" → "), class: "code" },
    ...(chain.missing.length > 0 ? [quiet(`✕ no instance of ${chain.missing.join(", ")}`, "bad")] : []),
  ]],
  ["Packets", "number", ({ chain, now }) => [main(rate(now?.pps, "pps")), quiet(packets(chain.pkts))]],
  ["Inside", "number", ({ chain }) => [
    main(packets(chain.held_pkts)), quiet(`credit ${count(chain.credit_pkts)}`),
  ]],
];

/** A match as people write it. */
export function matchText(match) {
  const fields = Object.entries(match).map(([field, value]) => `${field}=${value}`);
  return fields.length > 0 ? fields.join(" ") : "* (every packet)";
}

/** An action as people write it. */
export function thenText(then) {
  return Object.entries(then).map(([what, value]) => (what === "drop" ? "drop" : `${what}=${value}`)).join(" ");
}

/** The buttons of a row: label, what it does. Set by the part of the page that changes things. */
const actions = { services: [], nfs: [], rules: [], chains: [] };

/** Gives the rows of a table buttons: `buttons` is a list of [label, (item) => void, (item) => shown]. */
export function setActions(table, buttons) {
  actions[table] = buttons;
}

/** The view of ports. */
export function drawPorts({ status, rates }) {
  const ports = status.ports.map((port) => ({ port, now: rates.ports.get(port.name) }));
  drawTable("ports", PORT_COLUMNS, ports, (item) => item.port.name, "The manager has no port.");
}

/** The view of services and NFs. */
export function drawNfs({ status, rates }) {
  const services = status.services.map((service) => ({ service }));
  drawTable("services", SERVICE_COLUMNS, services, (item) => item.service.id,
    "No service is wanted: packets go from port to port.", actions.services);
  const nfs = status.nfs.map((nf) => ({ nf, now: rates.nfs.get(nf.instance) }));
  drawTable("nfs", NF_COLUMNS, nfs, (item) => item.nf.instance, noNfs(status.services), actions.nfs);
}

/** The view of cores: workers and NFs by the core they are pinned to. */
export function drawCores({ status, rates }) {
  const cores = new Map();
  const of = (core) => {
    if (!cores.has(core)) cores.set(core, { core, workers: [], nfs: [] });
    return cores.get(core);
  };
  for (const worker of status.workers) {
    of(worker.core).workers.push({ worker, now: rates.workers.get(worker.worker) });
  }
  for (const nf of status.nfs) of(nf.core).nfs.push({ nf, now: rates.nfs.get(nf.instance) });
  const sorted = [...cores.values()].sort((a, b) => (a.core ?? Infinity) - (b.core ?? Infinity));
  drawTable("cores", CORE_COLUMNS, sorted, (item) => String(item.core), "No worker and no NF runs.");
}

/** The drop ledger. */
export function drawDrops({ status, rates }) {
  const drops = status.drops.map((drop) => ({ drop, pps: dropRate(rates, drop) }));
  const key = ({ drop }) => JSON.stringify([drop.place, drop.reason]);
  drawTable("drops", DROP_COLUMNS, drops, key, "✓ No packet has been dropped.");
}

/** The flow table and the chains. */
export function drawRules({ status, rates }) {
  const rules = status.rules.map((rule) => ({ rule, now: rates.rules.get(rule.id) }));
  drawTable("rules", RULE_COLUMNS, rules, (item) => item.rule.id,
    "There is no rule: every packet takes the chain “default”, or goes from port to port.", actions.rules);
  const chains = status.chains.map((chain) => ({ chain, now: rates.chains.get(chain.name) }));
  drawTable("chain-list", CHAIN_COLUMNS, chains, (item) => item.chain.name, "There is no chain.", actions.chains);
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

/** Draws a table: a row per item, with buttons at its end where there are any. */
export function drawTable(id, columns, items, keyOf, empty, buttons = []) {
  const body = document.getElementById(id);
  const note = document.getElementById(`no-${id}`);
  body.parentElement.hidden = items.length === 0;
  if (note) {
    note.hidden = items.length > 0;
    setText(note, empty);
  }
  fillTable(body, columns, items, keyOf, buttons);
}

/** A table without rows, for `fillTable`; `label` names it for those who do not see it. */
export function makeTable(label) {
  const body = el("tbody", { role: "rowgroup" });
  const headRow = el("tr", { role: "row" });
  return el("table", { role: "table", "aria-label": label },
    el("thead", { role: "rowgroup" }, headRow), body);
}

/** Fills the body of a table. */
export function fillTable(body, columns, items, keyOf, buttons = []) {
  const all = buttons.length > 0 ? [...columns, ["Change", "buttons", null]] : columns;
  head(body.parentElement.querySelector("thead tr"), all);
  const make = () => el("tr", { role: "row" }, ...all.map(cell));
  keep(body, items, keyOf, make, (row, item) => {
    row.item = item;
    while (row.childElementCount < all.length) row.append(cell(all[row.childElementCount]));
    all.forEach(([, , lines], at) => {
      if (lines) setLines(row.children[at], lines(item));
      else setButtons(row, row.children[at], buttons);
    });
  });
}

function head(row, columns) {
  if (row.childElementCount === columns.length) return;
  row.replaceChildren(...columns.map(([label, kind]) =>
    el("th", { role: "columnheader", scope: "col", class: kind }, label)));
}

function setButtons(row, parent, buttons) {
  if (parent.childElementCount === 0) {
    for (const [label, act] of buttons) {
      const button = el("button", { type: "button" }, label);
      button.addEventListener("click", () => act(row.item));
      parent.append(button);
    }
  }
  buttons.forEach(([, , shown], at) => {
    parent.children[at].hidden = shown ? !shown(row.item) : false;
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
