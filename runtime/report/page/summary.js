// The head of the page, and what deserves a look.

function last(column) {
  const values = data.curves.columns[column]?.mean || [];
  for (let i = values.length - 1; i >= 0; --i) if (values[i] !== null) return values[i];
  return null;
}

function middleOf(column) {
  const values = (data.curves.columns[column]?.mean || []).filter((value) => value !== null).sort((a, b) => a - b);
  return values.length ? values[values.length >> 1] : null;
}

function head() {
  const run = data.run;
  const left = run.step < run.steps && run.seconds_left ? `, about ${duration(run.seconds_left)} of work left` : "";
  document.getElementById("status").textContent = capital(run.status) + (run.stage ? `, stage: ${run.stage}` : "") + left + `. Written ${run.written}.`;
  const hours = data.curves.x.hours;
  const seconds = hours.length ? hours[hours.length - 1] * 3600 : null;
  const loss = data.curves.columns.loss ? smoothed(data.curves.columns.loss).mean : [];
  const validation = data.validation.loss;
  const figures = [
    ["Loss", loss.length ? trimmed(loss[loss.length - 1]) : null, "smoothed"],
    ["Validation", validation.length ? trimmed(validation[validation.length - 1]) : null, ""],
    ["Sparsity", last("sparsity") === null ? null : percent(last("sparsity")), ""],
    ["Tokens", run.tokens === null ? null : compact(run.tokens), ""],
    ["Training", seconds === null ? null : duration(seconds), ""],
    ["Speed", middleOf("tokens_per_second") === null ? null : compact(middleOf("tokens_per_second")), "tokens/s"],
    ["MFU", last("mfu") === null ? null : percent(last("mfu")), ""],
    ["Skipped", last("skipped_steps") ? whole(last("skipped_steps")) : null, "steps"],
  ];
  for (const [name, value, unit] of figures) {
    if (value === null) continue;
    document.getElementById("figures").append(make("div", {}, make("dt", {}, name), make("dd", {}, value, unit ? make("small", {}, ` ${unit}`) : "")));
  }
}

function lookSection() {
  const parts = [];
  if (data.warnings.length) {
    parts.push(make("ul", { class: "warnings" }, ...data.warnings.map((warning) => make("li", { class: warning.bad ? "bad" : "" },
      make("b", {}, warning.bad ? "Wrong" : "Look"),
      make("span", {}, sentence(warning.text) + " ", warning.step > 0 ? showStep(warning.step) : null)))));
  } else if (view.steps.length) {
    parts.push(make("p", { class: "soft" }, "Nothing is beyond the limits that docs/report.md lists."));
  }
  if (data.gaps.length) {
    parts.push(make("h3", {}, "What this page lacks"), make("ul", {}, ...data.gaps.map((gap) => make("li", {}, capital(gap)))));
  }
  if (parts.length) section("look", "What to look at", ...parts);
}

function showStep(step) {
  return make("button", {
    type: "button", class: "link", onclick: () => {
      const wide = Math.max(10, (view.last - view.first) / 10);
      view.zoom(step - wide, step + wide);
      document.getElementById("loss")?.scrollIntoView();
    },
  }, `Show step ${whole(step)}`);
}
