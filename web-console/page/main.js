// The page: follows the stream of events and draws each.

import { drawBooks, drawPool } from "./books.js";
import { drawChains } from "./chain.js";
import { setText } from "./dom.js";
import { clock, duration } from "./format.js";
import { follow } from "./stream.js";
import { drawTables } from "./tables.js";

const $ = (id) => document.getElementById(id);
const STATES = {
  live: "● live",
  paused: "Ⅱ paused",
  away: "✕ manager away",
  lost: "✕ console away",
};

let state = "waiting";
let paused = false;
let latest = null; // Data of the latest status event.
let latestAt = null; // When it came.

function draw() {
  if (latest === null) return;
  const { status } = latest;
  const view = { status, rates: byName(latest.rates) };
  setText($("facts"), facts(status));
  $("no-chain").hidden = true;
  drawChains($("chains"), view);
  drawTables(view);
  drawBooks($("books"), status.accounting);
  drawPool($("pool"), status.pool);
}

/** Rates found by name; all unknown when there are none yet. */
function byName(rates) {
  return {
    known: rates !== null,
    ports: new Map(rates?.ports.map((port) => [port.name, port])),
    nfs: new Map(rates?.nfs.map((nf) => [nf.instance, nf])),
    drops: rates?.drops ?? [],
  };
}

function facts(status) {
  const workers = status.workers.map((worker) =>
    worker.core === null ? `${worker.worker}` : `${worker.worker} on core ${worker.core}`);
  return [
    `manager ${status.version}`,
    `pid ${status.pid}`,
    `up ${duration(status.uptime_s)}`,
    `worker${workers.length === 1 ? "" : "s"} ${workers.join(", ") || "none"}`,
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

follow({
  status(data) {
    if (!paused || latest === null) {
      latest = data;
      latestAt = new Date();
      draw();
    }
    show("live");
  },
  away(data) {
    show("away", `The manager is away: ${data.message}. This page goes on by itself as soon as it answers.${since()}`);
  },
  lost() {
    show("lost", `The console's server does not answer (millrace-web). This page goes on by itself as soon as it does.${since()}`);
  },
});

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  setText($("pause"), paused ? "Resume" : "Pause");
  if (state === "live") show("live");
});
