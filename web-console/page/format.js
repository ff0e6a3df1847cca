// Numbers as people read them, with their units.

const GROUPED = new Intl.NumberFormat("en");
const SPACE = "\u00a0"; // No line break between a number and its unit.
const UNKNOWN = "–";

/** A rate with three digits and a decimal prefix: 12.3 kpps. */
export function rate(value, unit) {
  if (value === undefined || value === null) return UNKNOWN;
  const steps = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  // 999.7 k would be shown as 1000 k, so the step is taken a little early.
  const [size, prefix] = steps.find(([size]) => value >= size * 0.9995) ?? [1, ""];
  const scaled = value / size;
  const whole = prefix === "" && (scaled >= 100 || Number.isInteger(scaled));
  const digits = whole || scaled >= 99.95 ? 0 : scaled >= 9.995 ? 1 : 2;
  return scaled.toFixed(digits) + SPACE + prefix + unit;
}

/** A count in full: 1,234,567. */
export function count(value) {
  return GROUPED.format(value);
}

/** A count of packets: 1,234,567 packets. */
export function packets(value) {
  return count(value) + SPACE + (value === 1 ? "packet" : "packets");
}

/** A time span: 42 s, 3 min 5 s, 2 h 10 min, 3 d 4 h. */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([size]) => whole >= size);
  if (first < 0) return "0" + SPACE + "s";
  const [size, unit] = units[first];
  const rest = units[first + 1];
  const more = rest ? Math.floor((whole % size) / rest[0]) : 0;
  const head = Math.floor(whole / size) + SPACE + unit;
  return more ? `${head} ${more}${SPACE}${rest[1]}` : head;
}

/** A time a packet takes: 850 ns, 12.3 µs, 1.25 ms. */
export function nanos(value) {
  if (value === undefined || value === null) return UNKNOWN;
  const steps = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]];
  const [size, unit] = steps.find(([size]) => value >= size * 0.9995) ?? [1, "ns"];
  const scaled = value / size;
  const digits = size === 1 || Number.isInteger(scaled) || scaled >= 99.95 ? 0 : scaled >= 9.995 ? 1 : 2;
  return scaled.toFixed(digits) + SPACE + unit;
}

/** Bytes: 12.3 kB. */
export function bytes(value) {
  return rate(value, "B");
}

/** A share of 1 in percent: 12.3 %; what is there but small is never shown as none. */
export function share(part, whole) {
  if (whole <= 0) return UNKNOWN;
  const percent = (100 * part) / whole;
  if (percent > 0 && percent < 0.1) return "<" + SPACE + "0.1" + SPACE + "%";
  return percent.toFixed(1) + SPACE + "%";
}

/** A time of day: 14:03:22. */
export function clock(date) {
  return date.toLocaleTimeString("en-GB");
}
