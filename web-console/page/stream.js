// The stream of events from the console's server, started again however it ends.

const RETRY_MS = 2000;

/**
 * Calls `status(data)` or `away(data)` for each event, and `lost()` once when nothing has come for
 * three intervals (at least 5 s) or the connection broke.
 */
export function follow({ status, away, lost }) {
  let source = null;
  let silence = null;
  let intervalMs = 1000;
  let isLost = false;

  function heard(message, tell) {
    isLost = false;
    const data = JSON.parse(message.data);
    intervalMs = data.interval_ms;
    watch();
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
    source = new EventSource("/api/v1/events");
    source.addEventListener("status", (message) => heard(message, status));
    source.addEventListener("away", (message) => heard(message, away));
    source.addEventListener("error", () => {
      giveUp();
      source.close();
      clearTimeout(silence);
      silence = setTimeout(start, RETRY_MS);
    });
    watch();
  }

  start();
}
