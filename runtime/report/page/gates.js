// Budgets and measures of gates: every layer and group over the run.

const measures = [
  ["kept_blocks", "Budget: kept blocks", compact, "range"],
  ["kept_mass", "Kept mass, of full attention", percent, "kept"],
  ["sink_mass", "Mass on the sink", percent, "share"],
  ["window_mass", "Mass in the window", percent, "share"],
  ["selected_mass", "Mass on chosen blocks", percent, "share"],
  ["entropy", "Entropy of the choice, nats", compact, "range"],
  ["kl", "KL of attention from the gate, nats", compact, "range"],
  ["margin", "Margin of the last chosen block, nats", compact, "range"],
  ["ramp_share", "Chosen blocks on the ramp", percent, "share"],
  ["waste", "Blocks read per block chosen", compact, "range"],
  ["never_selected", "Blocks never chosen", percent, "share"],
  ["hot", "Blocks nearly always chosen", percent, "share"],
];

function groupName(gate) {
  return `layer ${gate.layer} g${gate.group}`;
}

function gateRange(name) {
  const values = data.gates.flatMap((gate) => gate[name]).filter((value) => value !== null);
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return values.length ? [low, high] : [0, 1];
}

function gatesSection() {
  if (!data.gates.length && !data.changes.length) return;
  const present = measures.filter(([name]) => data.gates.some((gate) => gate[name].some((value) => value !== null)));
  let [chosen] = present;
  const spec = {};
  const plot = matrix(spec);
  const scaleOf = make("div", {});
  const show = () => {
    const [name, title, format, kind] = chosen;
    const [low, high] = kind === "range" ? gateRange(name) : kind === "kept" ? [0.8, 1] : [0, 1];
    // Budgets move by factors.
    const turn = name === "kept_blocks" && low > 0 ? Math.log : (value) => value;
    Object.assign(spec, {
      title, format,
      color: (value) => sequential((turn(value) - turn(low)) / (turn(high) - turn(low) || 1)),
      rows: () => data.gates.map((gate) => ({ name: groupName(gate), steps: gate.step, values: gate[name] })),
    });
    plot.redraw();
    scaleOf.replaceChildren(legend(sequential, 0, 1, (kind === "kept" ? "\u2264 " : "") + format(low), format(high), "g0: KV group 0 of the layer"));
  };
  const parts = [];
  if (chosen) {
    const pick = choice("Measure", present.map(([name, title]) => [name, title]), chosen[0], (name) => {
      chosen = present.find((one) => one[0] === name);
      show();
    });
    parts.push(make("div", { class: "tools" }, pick.element), plot.element, scaleOf);
    show();
  }
  section("gates", "Gates", ...parts, changesTable());
}

function changesTable() {
  if (!data.changes.length) return make("p", { class: "soft apart" }, "No budget was changed.");
  const rows = data.changes.slice(-500).reverse().map((change) => make("tr", {},
    make("td", { class: "number" }, whole(change.step)), make("td", { class: "number" }, change.layer < 0 ? "all" : String(change.layer)),
    make("td", {}, spoken(change.what)), make("td", { class: "number" }, `${change.old} \u2192 ${change.new}`),
    make("td", { class: "words" }, change.reason)));
  return make("details", { open: data.changes.length <= 12 },
    make("summary", {}, `${whole(data.changes.length)} changes, the newest first`),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Changes of gates" }, make("table", {},
      make("thead", {}, make("tr", {}, ...[["Step", "number"], ["Layer", "number"], ["What", ""], ["Value", "number"], ["Reason", ""]]
        .map(([text, kind]) => make("th", { class: kind, scope: "col" }, text)))),
      make("tbody", {}, ...rows))));
}
