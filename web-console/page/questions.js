// What only the manager can answer: what becomes of a packet, and the flows with most packets.

import { get } from "./api.js";
import { tell } from "./change.js";
import { el } from "./dom.js";
import { count, duration, packets } from "./format.js";
import { drawTable, matchText, thenText } from "./tables.js";

const $ = (id) => document.getElementById(id);

const FLOW_COLUMNS = [
  ["Flow", "", (flow) => [{ text: matchText(flow.key), class: "code" }]],
  ["Action", "", (flow) => [
    { text: flow.then, class: "code" },
    { text: flow.rule === null ? "no rule" : `rule ${flow.rule}`, class: "quiet" },
  ]],
  ["Packets", "number", (flow) => [
    { text: packets(flow.pkts), class: "main" },
    { text: `${count(flow.bytes)}\u00a0B, last ${duration(flow.idle_s)} ago`, class: "quiet" },
  ]],
];

async function lookAtFlows() {
  try {
    const { flows, total } = await get("/api/v1/flows?limit=20");
    drawTable("flows", FLOW_COLUMNS, flows, (flow) => JSON.stringify(flow.key), "");
    $("flows-total").textContent = flows.length > 0
      ? `${flows.length} of ${count(total)} flows` : "No flow is known: without rules none is looked up.";
  } catch (error) {
    tell(error.message, true);
  }
}

async function explain(event) {
  event.preventDefault();
  const { packet, in_port: inPort } = $("explain-form").elements;
  const query = new URLSearchParams({ packet: packet.value });
  if (inPort.value) query.set("in_port", inPort.value);
  try {
    const lines = told(await get(`/api/v1/flows/explain?${query}`));
    $("explanation").replaceChildren(...lines.map(([what, text, kind]) =>
      el("li", { class: kind ?? "" }, el("b", {}, what), ` ${text}`)));
  } catch (error) {
    tell(error.message, true);
  }
}

function* steps({ key, tables, chain, hops, end }) {
  yield ["packet", matchText(key)];
  for (const { table, rule, also_matching: others } of tables) {
    yield [`table ${table}`, rule
      ? `rule ${rule.name ?? rule.id} (priority ${rule.priority}): ${matchText(rule.match)} → ${thenText(rule.then)}`
      : "no rule matches"];
    for (const other of others) {
      yield ["matches too", `rule ${other.name ?? other.id} (priority ${other.priority}), not taken`, "quiet"];
    }
  }
  yield ["chain", chain ?? "none"];
  for (const hop of hops) {
    const whom = hop.instance === null ? "✕ no instance" : `instance ${hop.instance}`;
    yield [`hop ${hop.hop}`, `${hop.service}: ${whom}${hop.why ? ` (${hop.why})` : ""}${hop.via ? `, ${hop.via}` : ""}`,
      hop.instance === null ? "bad" : ""];
  }
  yield ["end", end];
}

const told = (explanation) => [...steps(explanation)];

/** Sets the forms up. */
export function start() {
  $("explain-form").addEventListener("submit", explain);
  $("look-flows").addEventListener("click", lookAtFlows);
}
