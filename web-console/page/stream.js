// The stream of events from the console's server, started again however it ends.

import { get } from "./api.js";

const RETRY_MS = 2000;

/**
 * Calls `status(data)` or `away(data)` for each event, `lost()` once when nothing has come for
 * three intervals (at least 5 s) or the connection broke, and `back()` when events come again after
 * that. Returns `{setHz}`, which asks for so many events a second.
 */
export function follow({ status, away, lost, back }) {
  let source = null;
  let silence = null;
  let intervalMs = 1000;
  let isLost = false;
  let hz = "";

  function heard(message, tell) {
    const wasLost = isLost;
    isLost = false;
    const data = JSON.parse(message.data);
    intervalMs = data.interval_ms;
    watch();
    if (wasLost) back();
    tell(data);
  }

  function watch() {
    clearTimeout(silence);
    silence = setTimeout(restart, Math.max(5000, 3 * intervalMs));
  }

  function giveUp() {
    if (!isLost) lost();
    isLost = true;
  }

  function restart() {
    giveUp();
    source?.close();
    start();
  }

  function start() {
    source = new EventSource(hz ? `/api/v1/events?hz=${hz}` : "/api/v1/events");
    source.addEventListener("status", (message) => heard(message, status));
    source.addEventListener("away", (message) => heard(message, away));
    source.addEventListener("error", () => {
      giveUp();
      source.close();
      clearTimeout(silence);
      silence = setTimeout(start, RETRY_MS);
      // A stream does not tell why it is refused: a console that was started anew wants the token
      // again, and then this leads to where it can be given.
      get("/api/v1/console").catch(() => {});
    });
    watch();
  }

  start();
  return {
    setHz(next) {
      hz = next;
      clearTimeout(silence);
      source.close();
      start();
    },
  };
}
