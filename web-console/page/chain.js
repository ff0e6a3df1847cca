// Chains as pictures: ports that packets come in by, services in order, ports they leave by.

import { linkTo } from "./captures.js";
import { el, keep, setAttribute, setLines, setText, svg } from "./dom.js";
import { rate } from "./format.js";

const LINK_MARK = { up: "●", down: "○", gone: "✕" };

/** Draws every chain of `view` into `box`; without any, the way straight from port to port. */
export function drawChains(box, view) {
  const none = { name: "No chain: from port to port", services: [], end: "egress" };
  const chains = view.status.chains.length > 0 ? view.status.chains : [none];
  keep(box, chains, (chain) => chain.name, makeChain, (node, chain) => {
    setText(node.querySelector("h3"), title(chain));
    keep(node.querySelector("ol"), stages(view, chain), (item) => item.key, make, update);
  });
}

function makeChain() {
  return el("div", {}, el("h3", { class: "chain-name" }), el("ol", { class: "chain" }));
}

function title(chain) {
  const end = chain.end === "egress" ? "" : `, then ${chain.end}`;
  return `${chain.name}${end}`;
}

/** A service, as a chain names it: by id or by name. */
function serviceOf(status, named) {
  const known = status.services.find((service) => service.id === named || service.name === named);
  return known ?? { id: named, name: String(named) };
}

function stages({ status, rates }, chain) {
  const egress = new Set(status.ports.map((port) => port.egress));
  const comeIn = status.ports.filter((port) => port.egress || port.rx_pkts > 0);
  const leave = status.ports.filter((port) => egress.has(port.name) || port.tx_pkts > 0);
  const places = status.chains.flatMap((other) => other.services)
    .map((named) => serviceOf(status, named).id);
  const services = chain.services.map((named, at) => {
    const service = serviceOf(status, named);
    const uses = places.filter((id) => id === service.id).length;
    return serviceStage(service, at, status, rates, uses);
  });
  const entering = rates.chains.get(chain.name)?.pps;
  const isOnly = status.chains.length < 2;
  const sent = sumOf(leave.map((port) => rates.ports.get(port.name)?.tx_pps));
  const leaving = services.length > 0 ? services.at(-1).leaving : entering;
  const out = { ...portStage("out", "Out by", leave, rates, "tx_pps") };
  out.edge = { pps: isOnly ? sent : leaving };
  carry([...services, out], entering);
  chain.services.forEach((named, at) => {
    const before = at === 0 ? null : serviceOf(status, chain.services[at - 1]);
    services[at].edge.link = linkTo(ringBetween(before, serviceOf(status, named), status));
  });
  const last = chain.services.length > 0 ? serviceOf(status, chain.services.at(-1)) : null;
  if (last) out.edge.link = linkTo(`ring:${last.name}:manager`);
  return [portStage("in", "In by", comeIn, rates, "rx_pps"), ...services, out];
}

/** The ring that leads to a service: straight from the one before where there are such, or the manager's. */
function ringBetween(before, service, status) {
  const ends = status.nfs.filter((nf) => nf.service === service.id).map((nf) => nf.instance);
  const from = before ? status.nfs.filter((nf) => nf.service === before.id) : [];
  const isDirect = from.some((nf) => nf.direct_to.some((instance) => ends.includes(instance)));
  return isDirect ? `ring:${before.name}:${service.name}` : `ring:manager:${service.name}`;
}

/**
 * Fills in the rates that nobody counts, where a service stands in several chains: what enters a
 * chain is counted at its entrance, and as long as nothing is dropped on the way it goes all through.
 */
function carry(stages, entering) {
  let flow = entering;
  for (const [at, stage] of stages.entries()) {
    if (at === 0 && entering !== undefined) stage.edge = { pps: entering };
    else if (stage.edge.pps === undefined) stage.edge = { pps: flow, isAbout: flow !== undefined };
    flow = stage.edge.pps;
    if (stage.drops) flow = undefined;
  }
}

function portStage(key, title, ports, rates, direction) {
  const lines = ports.flatMap((port) => [
    {
      text: `${LINK_MARK[port.link] ?? "?"} ${port.name}${port.link === "up" ? "" : ` (${port.link})`}`,
      class: port.link === "up" ? "main" : "main bad",
      ...linkTo(`port:${port.name}:${key}`),
    },
    { text: rate(rates.ports.get(port.name)?.[direction], "pps"), class: "quiet" },
    // What a port drops it drops once, though it may stand on both sides.
    ...(key === "in" || !port.egress ? dropLines(rates, `port:${port.name}`, "drop") : []),
  ]);
  if (lines.length === 0) lines.push({ text: "no port", class: "quiet" });
  return { key: `ports-${key}`, title, lines, kind: "" };
}

function serviceStage(service, at, status, rates, uses) {
  const nfs = status.nfs.filter((nf) => nf.service === service.id);
  const known = nfs.map((nf) => rates.nfs.get(nf.instance)?.rx_pps);
  const total = sumOf(known);
  const lines = nfs.map((nf, i) => ({
    text: `${nf.stuck ? "✕" : nf.state === "running" ? "●" : "◌"} ${nf.name} #${nf.instance}`
      + ` ${rate(known[i], "pps")}${nf.state === "running" ? "" : ` (${nf.state})`}${nf.stuck ? " stands still" : ""}`,
    class: nf.stuck ? "instance bad" : "instance",
    ...linkTo(`nf:${service.name}#${nf.instance}:in`),
  }));
  if (nfs.length === 0) lines.push({ text: "✕ no NF attached", class: "main bad" });
  if (uses > 1) lines.push({ text: `in all chains: ${rate(total, "pps")}`, class: "quiet" });
  nfs.forEach((nf) => lines.push(...dropLines(rates, `nf:${nf.instance}`, `drop:${service.name}`)));
  lines.push(...dropLines(rates, `service:${service.name}`, `drop:${service.name}`));
  return {
    key: `service-${at}`,
    title: `Service ${service.name}`,
    lines,
    kind: nfs.length === 0 ? "service missing" : "service",
    // Of a service that stands at several places only the sum is known.
    edge: { pps: uses === 1 ? total : undefined },
    drops: nfs.some((nf) => rates.nfs.get(nf.instance)?.drop_pps !== 0)
      || rates.drops.some((drop) => drop.place === `service:${service.name}` && drop.pps > 0),
    leaving: uses === 1 ? sumOf(nfs.map((nf) => {
      const now = rates.nfs.get(nf.instance);
      return now && Math.max(0, now.tx_pps - now.drop_pps);
    })) : undefined,
  };
}

/** The sum of rates; unknown if one of them is. */
function sumOf(rates) {
  return rates.includes(undefined) ? undefined : rates.reduce((sum, pps) => sum + pps, 0);
}

function dropLines(rates, place, point) {
  const here = rates.drops.filter((drop) => drop.place === place && drop.pps > 0);
  return here.map((drop) => ({
    text: `▼ ${rate(drop.pps, "pps")} ${drop.reason}`,
    class: "quiet bad",
    ...linkTo(`${point}:${drop.reason}`),
  }));
}

/** A stage with the arrow that leads to it; the first has none. */
function make(item) {
  const stage = el("div", {}, el("h3"), el("div"));
  if (!item.edge) return el("li", { class: "hop" }, stage);
  const arrow = svg("path", { d: "M1 7h62M56 2l7 5-7 5", fill: "none", stroke: "currentColor" });
  const picture = svg("svg", { viewBox: "0 0 64 14", "aria-hidden": "true" }, arrow);
  return el("li", { class: "hop" }, el("div", {}, el("div", { class: "rate" }), picture), stage);
}

function update(node, item) {
  const stage = node.lastElementChild;
  setAttribute(stage, "class", `stage ${item.kind}`.trim());
  setText(stage.querySelector("h3"), item.title);
  setLines(stage.querySelector("div"), item.lines);
  if (item.edge) updateEdge(node.firstElementChild, item.edge);
}

function updateEdge(node, { pps, isAbout, link }) {
  const still = !pps;
  setAttribute(node, "class", still ? "edge still" : "edge");
  const text = `${isAbout ? "≈\u00a0" : ""}${rate(pps, "pps")}`;
  setLines(node.querySelector(".rate"), [{ text, ...link }]);
  // Ten times the rate is half a unit more of line: 1 pps 1.5, 10 Mpps 5.
  const width = still ? 1.5 : 1.5 + 0.5 * Math.max(0, Math.log10(pps));
  setAttribute(node.querySelector("path"), "stroke-width", width.toFixed(1));
}
