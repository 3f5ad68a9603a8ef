// Numbers as people read them.

function compact(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e12) return trimmed(value / 1e12) + "T";
  if (size >= 1e9) return trimmed(value / 1e9) + "G";
  if (size >= 1e6) return trimmed(value / 1e6) + "M";
  if (size >= 1e4) return trimmed(value / 1e3) + "k";
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return trimmed(value);
}

function trimmed(value) {
  const text = value.toPrecision(4);
  return text.includes("e") || !text.includes(".") ? text : text.replace(/\.?0+$/, "");
}

// Steps and counts, written as the log and the names of files have them.
function whole(value) {
  return Number.isFinite(value) ? String(Math.round(value)) : "\u2013";
}

function percent(share) {
  if (share === null || !Number.isFinite(share)) return "\u2013";
  const value = 100 * share;
  return value.toFixed(value !== 0 && Math.abs(value) < 1 ? 2 : value < 10 ? 1 : 0) + "%";
}

// "5%", where a curve's own value would be "5.0%".
function percentMark(share) {
  return trimmed(100 * share) + "%";
}

function sentence(text) {
  return capital(text) + (/[.?!]$/.test(text) ? "" : ".");
}

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "\u2013";
  const s = Math.max(0, Math.round(seconds));
  if (s >= 172800) return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  if (s >= 60) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${s} s`;
}

// "gate_kl" to "gate KL": fields that have no title of their own.
function spoken(name) {
  return name.replaceAll("_", " ").replace(/\bkl\b/, "KL").replace(/\bmfu\b/, "MFU").replace(/\bms\b/, "milliseconds");
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
