// Requests to the console's server. An error is thrown as one line for people.

/** Asks for JSON. */
export function get(path) {
  return ask("GET", path);
}

/** Sends JSON (or nothing); returns what comes back, null for nothing. */
export async function ask(method, path, body) {
  const init = { method };
  if (body !== undefined) {
    init.headers = { "Content-Type": "application/json" };
    init.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new Error("the console's server does not answer");
  }
  if (response.status === 401) {
    location.replace("/login");
    throw new Error("the token is asked for again");
  }
  const text = await response.text();
  const json = text ? JSON.parse(text) : null;
  if (!response.ok) throw new Error(json?.error?.message ?? `HTTP ${response.status}`);
  return json;
}

/** One segment of a path. */
export const segment = (text) => encodeURIComponent(String(text));
