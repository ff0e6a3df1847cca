// What changes things: forms and buttons, each of which first shows what would change.

import { ask, segment } from "./api.js";
import { el, setText } from "./dom.js";
import { matchText, setActions, thenText } from "./tables.js";

const $ = (id) => document.getElementById(id);
const TOAST_MS = 8000;

let status = null; // The latest.
let toastTimer = null;

/** What the forms compare with. */
export function observe(latest) {
  status = latest;
  const ports = latest.ports.map((port) => [`out=${port.name}`, `out by ${port.name}`]);
  const chains = latest.chains.map((chain) => [`chain=${chain.name}`, `chain ${chain.name}`]);
  options($("rule-form").elements.action, [...chains, ...ports, ["drop", "drop"]]);
  options($("explain-form").elements.in_port, latest.ports.map((port) => [port.name, port.name]));
}

function options(select, wanted) {
  const have = [...select.options].map((option) => option.value).join("\n");
  if (have === wanted.map(([value]) => value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...wanted.map(([value, text]) => el("option", { value }, text)));
  if (wanted.some(([value]) => value === chosen)) select.value = chosen;
}

/** One line that stays for some seconds. */
export function tell(text, isBad = false) {
  const toast = $("toast");
  setText(toast, text);
  toast.className = isBad ? "toast bad" : "toast";
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, TOAST_MS);
}

/** Shows lines of a difference and asks; true if it is wanted. */
function confirm(title, lines, note, canDo = true) {
  const dialog = $("dialog");
  setText($("dialog-title"), title);
  $("dialog-lines").replaceChildren(...lines.map((line) =>
    el("li", { class: { "+": "added", "-": "removed", "~": "changed" }[line[0]] ?? "" }, line)));
  setText($("dialog-note"), note);
  $("dialog-yes").hidden = !canDo;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Does it if it is wanted, and tells how it went. */
async function change(title, lines, note, method, path, body) {
  if (!(await confirm(title, lines, note))) return false;
  try {
    const applied = await ask(method, path, body);
    tell(outcome(applied, title));
    return true;
  } catch (error) {
    tell(error.message, true);
    return false;
  }
}

function outcome(applied, title) {
  if (!applied) return `Done: ${title}.`;
  if (applied.changes.length === 0) return "Nothing was different.";
  const moved = `${(100 * applied.moved_share).toFixed(1)} % of the flows moved`;
  return [`Done after ${(applied.took_us / 1000).toFixed(1)} ms, ${moved}.`, ...applied.notes].join(" ");
}

/** `field=value field=value` as a match; throws one line. */
export function matchOf(text) {
  const match = {};
  for (const word of text.split(/\s+/).filter((word) => word && word !== "*")) {
    const [, field, value] = /^([a-z_]+)=(.+)$/.exec(word) ?? [];
    if (!field) throw new Error(`“${word}” is no match: expected FIELD=VALUE, as in tp_dst=80`);
    if (field in match) throw new Error(`${field} is given twice`);
    match[field] = /^\d+$/.test(value) ? Number(value) : value;
  }
  return match;
}

function thenOf(text) {
  if (text === "drop") return { drop: true };
  const at = text.indexOf("=");
  return { [text.slice(0, at)]: text.slice(at + 1) };
}

const ruleLine = (rule) =>
  `rule ${rule.table}/${rule.priority} ${matchText(rule.match)}: ${thenText(rule.then)}`;
const chainLine = (chain) => `chain ${chain.name}: ${[...chain.services, chain.end].join(" → ")}`
  + ` (without an NF: ${chain.on_death ?? "drop"})`;

const sameMatch = (a, b) => {
  const text = (match) => Object.entries(match).map(([k, v]) => `${k}=${v}`).sort().join(" ");
  return text(a) === text(b);
};

async function addRule(form) {
  const { table, priority, name, match, action } = form.elements;
  const rule = {
    table: Number(table.value), priority: Number(priority.value),
    match: matchOf(match.value), then: thenOf(action.value),
  };
  if (name.value.trim()) rule.name = name.value.trim();
  const old = status.rules.find((other) => other.table === rule.table
    && other.priority === rule.priority && sameMatch(other.match, rule.match));
  const lines = old ? [`- ${ruleLine(old)}`, `+ ${ruleLine(rule)}`] : [`+ ${ruleLine(rule)}`];
  const note = "Packets of flows that move wait until their old path is free; none is lost.";
  if (await change("add a rule", lines, note, "POST", "/api/v1/rules", rule)) {
    match.value = "";
    name.value = "";
  }
}

async function setChain(form) {
  const { name, services, end, on_death: onDeath } = form.elements;
  const words = services.value.split(/[,\s→]+/).filter(Boolean);
  const old = status.chains.find((chain) => chain.name === name.value.trim());
  const chain = {
    name: name.value.trim(),
    services: words.map((word) => (/^\d+$/.test(word) ? Number(word) : word)),
    end: end.value.trim(),
    on_death: onDeath.value,
  };
  if (old?.branches) chain.branches = old.branches;
  const lines = old ? [`- ${chainLine(old)}`, `+ ${chainLine(chain)}`] : [`+ ${chainLine(chain)}`];
  const note = "Flows whose path changes wait until their old path is free; none is lost.";
  await change("set a chain", lines, note, "PUT", `/api/v1/chains/${segment(chain.name)}`, chain);
}

const changeLine = ({ of, name, before, after }) => {
  if (before === null) return `+ ${of} ${name}: ${after}`;
  if (after === null) return `- ${of} ${name}: ${before}`;
  return `~ ${of} ${name}: ${before} → ${after}`;
};

async function applyConfig(form, allowed) {
  const body = { path: "the page's text", text: form.elements.text.value };
  const diff = await ask("POST", "/api/v1/config/diff", body);
  const lines = diff.changes.map(changeLine);
  if (lines.length === 0) {
    tell("The file says what runs: nothing would change.");
    return;
  }
  if (allowed) await change("apply the file", lines, diff.notes.join(" "), "POST", "/api/v1/config/apply", body);
  else await confirm("what the file would change", lines, "This console only shows.", false);
}

function scale(service, by) {
  const instances = Math.max(0, (service.wanted ?? 0) + by);
  const line = `~ service ${service.name}: ${service.wanted} → ${instances} instances`;
  const note = by > 0 ? "The new instance takes its share of the flows once it is attached."
    : "The instance that goes is drained first.";
  return change(`scale ${service.name}`, [line], note, "PUT",
    `/api/v1/services/${segment(service.name)}/instances`, { instances });
}

/** A form whose mistakes are told. */
export function onSubmit(id, act) {
  $(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await act($(id));
    } catch (error) {
      tell(error.message, true);
    }
  });
}

/** Sets up what may be changed. */
export function start(allowed) {
  onSubmit("config-form", (form) => applyConfig(form, allowed));
  if (!allowed) return;
  for (const node of document.querySelectorAll("[data-changes]")) node.hidden = false;
  onSubmit("rule-form", addRule);
  onSubmit("chain-form", setChain);
  const counted = ({ service }) => service.wanted !== null;
  setActions("services", [
    ["One more", ({ service }) => scale(service, 1), counted],
    ["One fewer", ({ service }) => scale(service, -1), ({ service }) => service.wanted > 0],
  ]);
  setActions("nfs", [["Stop", ({ nf }) => change(
    `stop NF #${nf.instance}`, [`- NF ${nf.service_name} #${nf.instance} (${nf.name}, pid ${nf.pid})`],
    "It leaves in good order. No other is started in its place until the service is scaled or changed.",
    "DELETE", `/api/v1/nfs/${nf.instance}`)]]);
  setActions("rules", [["Remove", ({ rule }) => change(
    "remove a rule", [`- ${ruleLine(rule)}`], "Its packets take what the other rules say.",
    "DELETE", `/api/v1/rules/${rule.id}`)]]);
  setActions("chains", [
    ["Edit", ({ chain }) => {
      const { name, services, end, on_death: onDeath } = $("chain-form").elements;
      name.value = chain.name;
      services.value = chain.services.join(", ");
      end.value = chain.end;
      onDeath.value = chain.on_death ?? "drop";
      services.focus();
    }],
    ["Remove", ({ chain }) => change(
      "remove a chain", [`- ${chainLine(chain)}`], "Refused while a rule, a branch or an end leads to it.",
      "DELETE", `/api/v1/chains/${segment(chain.name)}`)],
  ]);
}
