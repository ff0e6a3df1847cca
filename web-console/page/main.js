// The page: follows the stream of events and draws what is in view.

import { ask, get } from "./api.js";
import { drawBooks, drawPool } from "./books.js";
import * as captures from "./captures.js";
import { drawChains } from "./chain.js";
import * as change from "./change.js";
import {
  drawCoreCharts, drawDropCharts, drawNfCharts, drawPortCharts, drawTotals,
} from "./charts.js";
import * as crashes from "./crashes.js";
import { el, setText } from "./dom.js";
import { clock, duration } from "./format.js";
import * as latency from "./latency.js";
import * as memory from "./memory.js";
import * as questions from "./questions.js";
import { follow } from "./stream.js";
import { drawCores, drawDrops, drawNfs, drawPorts, drawRules } from "./tables.js";
import * as timeline from "./timeline.js";
import * as traces from "./traces.js";

const $ = (id) => document.getElementById(id);
const STATES = {
  live: "● live",
  paused: "Ⅱ paused",
  away: "✕ manager away",
  lost: "✕ console away",
};

/** What is drawn in each view. */
const VIEWS = {
  overview(view) {
    drawTotals();
    $("no-chain").hidden = true;
    drawChains($("chains"), view);
    drawBooks($("books"), view.status.accounting);
    drawPool($("pool"), view.status.pool);
  },
  ports(view) {
    drawPorts(view);
    drawPortCharts(view);
  },
  nfs(view) {
    drawNfs(view);
    drawNfCharts(view);
  },
  cores(view) {
    drawCores(view);
    drawCoreCharts(view);
  },
  drops(view) {
    drawDrops(view);
    drawDropCharts(view);
  },
  rules: drawRules,
  timeline() {},
  latency: latency.draw,
  traces: traces.draw,
  captures: captures.draw,
  crashes: crashes.draw,
};
/** Views without charts. */
const WITHOUT_CHARTS = ["rules", "timeline", "traces", "captures", "crashes"];
/** What a link may fill in: `#captures?at=drop`. */
const PREFILL = { captures: captures.prefill, crashes: crashes.prefill };

let state = "waiting";
let paused = false;
let latest = null; // Data of the latest status event.
let latestAt = null; // When it came.
let shown = "overview";

function draw() {
  if (latest === null) return;
  const { status, rates } = latest;
  setText($("facts"), facts(status));
  VIEWS[shown]({ status, rates: byName(rates) });
}

/** Rates found by name; all unknown when there are none yet. */
function byName(rates) {
  return {
    known: rates !== null,
    ports: new Map(rates?.ports.map((port) => [port.name, port])),
    nfs: new Map(rates?.nfs.map((nf) => [nf.instance, nf])),
    chains: new Map(rates?.chains.map((chain) => [chain.name, chain])),
    rules: new Map(rates?.rules.map((rule) => [rule.id, rule])),
    workers: new Map(rates?.workers.map((worker) => [worker.worker, worker])),
    drops: rates?.drops ?? [],
  };
}

function facts(status) {
  const workers = status.workers.length;
  return [
    `manager ${status.version}`,
    `pid ${status.pid}`,
    `up ${duration(status.uptime_s)}`,
    `${workers} worker${workers === 1 ? "" : "s"}`,
    `plan ${status.plan.generation}${status.plan.changing ? " (changing)" : ""}`,
    status.hugepages ? "on hugepages" : "on ordinary pages",
  ].join(" · ");
}

function show(next, message = null) {
  state = next;
  document.body.dataset.state = paused && next === "live" ? "paused" : next;
  setText($("state"), STATES[paused && next === "live" ? "paused" : next]);
  document.title = next === "live" ? "Millrace" : `${STATES[next]} – Millrace`;
  $("banner").hidden = message === null;
  if (message !== null) setText($("banner"), message);
}

function since() {
  return latestAt === null ? "" : ` The figures below are of ${clock(latestAt)}.`;
}

/** Shows the view that the address names. */
function route() {
  const [wanted, query] = location.hash.slice(1).split("?");
  shown = wanted in VIEWS ? wanted : "overview";
  for (const name of Object.keys(VIEWS)) $(`view-${name}`).hidden = name !== shown;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.hash === `#${shown}`) {
      link.setAttribute("aria-current", "page");
      // Where not all fit, the one that is shown does.
      $("views").scrollLeft = link.offsetLeft - $("views").clientWidth / 2;
    } else link.removeAttribute("aria-current");
  }
  $("span").hidden = WITHOUT_CHARTS.includes(shown);
  draw();
  timeline.draw();
  if (query !== undefined) PREFILL[shown]?.(new URLSearchParams(query));
}

const stream = follow({
  status(data) {
    if (!paused || latest === null) {
      latest = data;
      latestAt = new Date();
      memory.observe(data);
      change.observe(data.status);
      captures.observe(data.status);
      crashes.observe(data.status);
      draw();
    }
    timeline.follow(data.timeline_seq);
    show("live");
  },
  away(data) {
    timeline.follow(data.timeline_seq);
    show("away", `The manager is away: ${data.message}. This page goes on by itself as soon as it answers.${since()}`);
  },
  lost() {
    show("lost", `The console's server does not answer (millrace-web). This page goes on by itself as soon as it does.${since()}`);
  },
  back: () => memory.load().then(draw),
});

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  setText($("pause"), paused ? "Resume" : "Pause");
  // What came meanwhile is remembered by the server.
  if (!paused) memory.load().then(draw);
  if (state === "live") show("live");
});
$("hz").addEventListener("change", () => stream.setHz($("hz").value));
for (const radio of document.querySelectorAll("[name=span]")) {
  radio.addEventListener("change", () => memory.setSpan(radio.value).then(draw));
}
$("log-out").addEventListener("click", () =>
  ask("DELETE", "/api/v1/session").finally(() => location.replace("/login")));
window.addEventListener("hashchange", route);
window.addEventListener("resize", draw);

questions.start();
route();
memory.load().then(draw);
get("/api/v1/console").then((console) => {
  change.start(console.allow_changes);
  for (const node of document.querySelectorAll("[data-captures]")) node.hidden = !console.allow_captures;
  for (const node of document.querySelectorAll(".forbidden")) node.hidden = console.allow_captures;
  captures.start(console.allow_captures);
  traces.start(console.allow_captures);
  crashes.start(console.allow_captures, timeline.draw);
  $("log-out").hidden = !console.asks_for_token;
  draw();
}).catch(() => {});
get("/api/v1/rule-fields").then((fields) => {
  $("fields").append(...fields.map(({ name, meaning }) =>
    el("option", { value: `${name}=` }, meaning)));
}).catch(() => {});
