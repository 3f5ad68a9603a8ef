// The cursor, the keys and the pointer of charts, and which charts there are.

function showCursor(state, step) {
  if (!state.line) return;
  const format = state.spec.format || compact;
  const here = step ?? view.to;
  const x = state.x(Math.min(view.to, Math.max(view.from, here)));
  state.line.setAttribute("visibility", step === null ? "hidden" : "visible");
  state.line.setAttribute("x1", x);
  state.line.setAttribute("x2", x);
  if (state.where) state.where.textContent = step === null ? "" : `step ${whole(step)}, ${stageAt(step)}`;
  for (const [curve, output] of state.outputs) output.textContent = format(valueAt(curve, here)?.value ?? null);
}

function stageAt(step) {
  return data.stages.find((stage) => stage.to >= step)?.name || data.run.stage;
}

function listen(state) {
  const { picture } = state;
  let begin = null;
  const place = (event) => Math.min(state.width - margin.right, Math.max(margin.left, event.clientX - picture.getBoundingClientRect().left));
  picture.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (begin !== null && state.pick) {
      state.pick.setAttribute("x", Math.min(begin, at));
      state.pick.setAttribute("width", Math.abs(at - begin));
    }
    view.moveCursor(Math.round(state.stepAt(at)));
  });
  picture.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0) begin = place(event);
  });
  picture.addEventListener("pointerup", (event) => {
    const end = place(event);
    const [from, to] = [begin, end].map((at) => at === null ? 0 : state.stepAt(at)).sort((a, b) => a - b);
    const wide = begin !== null && Math.abs(end - begin) > 8;
    begin = null;
    state.pick?.setAttribute("width", 0);
    if (wide) view.zoom(from, to);
  });
  picture.addEventListener("pointerleave", () => {
    begin = null;
    state.pick?.setAttribute("width", 0);
    if (document.activeElement !== picture) view.moveCursor(null);
  });
  picture.addEventListener("dblclick", () => view.zoom(view.first, view.last));
  picture.addEventListener("keydown", (event) => pressed(state, event));
  picture.addEventListener("blur", () => view.moveCursor(null));
}

function pressed(state, event) {
  const span = view.to - view.from;
  const here = view.cursor ?? view.to;
  const stride = Math.max(1, span / (event.shiftKey ? 10 : 100));
  const moves = { ArrowLeft: here - stride, ArrowRight: here + stride, Home: view.from, End: view.to };
  if (event.key in moves) {
    const step = Math.round(Math.min(view.to, Math.max(view.from, moves[event.key])));
    view.moveCursor(step);
    say(`${state.spec.title}, step ${step}: ` + state.curves.filter((curve) => !curve.thin)
      .map((curve) => `${curve.name || ""} ${(state.spec.format || compact)(valueAt(curve, step)?.value ?? null)}`).join(", "));
  } else if (event.key === "+" || event.key === "=") {
    view.zoom(here - span / 4, here + span / 4);
  } else if (event.key === "-") {
    view.zoom(view.from - span / 2, view.to + span / 2);
  } else if (event.key === "Escape") {
    view.moveCursor(null);
    view.zoom(view.first, view.last);
  } else {
    return;
  }
  event.preventDefault();
}

function lossSection() {
  const state = { log: false, smooth: true };
  const curves = () => {
    const loss = columnCurve("loss", "training", "c0");
    const validation = data.validation.step.length
      ? { name: "validation", steps: data.validation.step, mean: data.validation.loss, color: "c1", dash: "5 3", dots: true } : null;
    if (!loss) return [validation];
    if (!state.smooth) return [loss, validation];
    return [{ ...loss, thin: true }, { ...smoothed(loss), name: "training, smoothed" }, validation];
  };
  const plot = chart({
    title: "Nats per token", about: "training and validation loss", curves, height: 320, robust: true,
    log: () => state.log, labels: true, marks: true, format: (value) => value === null ? "\u2013" : value.toFixed(3),
  });
  return section("loss", "Loss",
    make("div", { class: "tools" },
      toggle("Smooth", state.smooth, (on) => { state.smooth = on; plot.redraw(); }),
      toggle("Logarithmic", state.log, (on) => { state.log = on; plot.redraw(); }),
      make("span", { class: "soft" }, "Drag to zoom, double-click to see all. Marks at the foot are events of the timeline.")),
    plot.element);
}

function curvesSection() {
  const list = [
    { title: "Learning rate", columns: [["learning_rate", "", "c0"]], zero: true },
    { title: "Gradient norm", columns: [["gradient_norm", "", "c0"]], zero: true, robust: true },
    { title: "Sparsity and gate openness", columns: [["sparsity", "sparsity", "c0"], ["gate_openness", "openness", "c1", "5 3"]], zero: true, format: percent },
    { title: "Kept blocks", columns: [["kept_blocks", "", "c0"]], zero: true },
    { title: "Window, tokens", columns: [["window", "", "c0"]], zero: true },
    { title: "Losses of the gate", columns: [["gate_kl", "KL", "c0"], ["gate_entropy", "entropy", "c1", "5 3"]], zero: true },
    { title: "Tokens per second", columns: [["tokens_per_second", "", "c2"]], zero: true, robust: true },
    { title: "Step time, ms", columns: [["ms", "", "c2"]], zero: true, robust: true },
    { title: "Memory of rank 0, GiB", columns: [["memory_gib", "", "c3"]], zero: true },
    { title: "Waiting for data", columns: [["data_wait", "", "c1"]], zero: true, robust: true, format: percent },
    { title: "Expert load, most / mean", columns: [["expert_load", "experts", "c0"], ["rank_load", "ranks", "c1", "5 3"]], robust: true },
    { title: "Skipped steps", columns: [["skipped_steps", "", "c1"]], zero: true },
  ];
  const told = new Set(["loss", "validation_loss", "memory_share", "expert_load_layer", "skipped", "gate_strength", "tflops_per_device"]);
  list.forEach((one) => one.columns.forEach(([column]) => told.add(column)));
  // Whatever else the run writes, and is not the same all the time.
  for (const [column, curve] of Object.entries(data.curves.columns)) {
    const values = curve.mean.filter((value) => value !== null);
    if (told.has(column) || !values.some((value) => value !== values[0])) continue;
    list.push({ title: capital(spoken(column)), columns: [[column, "", "c4"]], robust: true });
  }
  const grid = make("div", { class: "grid" });
  for (const one of list) {
    const present = one.columns.filter(([column]) => columnCurve(column) && !(data.curves.columns[column].mean.every((value) => !value)));
    if (!present.length) continue;
    const curves = () => present.map(([column, name, color, dash]) => columnCurve(column, name, color, { dash }));
    grid.append(chart({ ...one, curves }).element);
  }
  return section("curves", "Curves", grid);
}
