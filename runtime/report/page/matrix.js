// A matrix of values over the steps: rows with names, columns that are as wide as the steps between
// two measures, one colour for each value.

// spec: title, rows() of {name, steps, values}, color(value), format. All may change before a redraw.
function matrix(spec) {
  const hint = "Point at a cell, or use the arrow keys, to read it.";
  const title = make("h3", {});
  const canvas = make("canvas", { tabindex: "0", role: "img" });
  const readout = make("p", { class: "readout" }, hint);
  const figure = make("figure", { class: "matrix" }, make("figcaption", {}, title), canvas, readout);
  const state = { width: 0, row: 0, rows: [], height: 1, stepAt: () => view.to };
  const paint = () => {
    title.textContent = spec.title;
    readout.textContent = hint;
    if (state.width) paintMatrix(spec, state, canvas);
  };
  onWidth(figure, (width) => { state.width = width; paint(); });
  view.onDraw(paint);
  view.onTheme(paint);
  const read = (step) => {
    const row = state.rows[Math.max(0, Math.min(state.row, state.rows.length - 1))];
    if (!row || !row.steps.length) return;
    const at = nearest(row.steps, step);
    readout.textContent = `${row.name}, step ${whole(row.steps[at])}: ${spec.format(row.values[at])}`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    state.row = Math.min(state.rows.length - 1, Math.max(0, Math.floor((event.clientY - box.top) / state.height)));
    const step = state.stepAt(event.clientX - box.left);
    view.moveCursor(Math.round(Math.min(view.to, Math.max(view.from, step))));
    read(step);
  });
  canvas.addEventListener("pointerleave", () => { readout.textContent = hint; view.moveCursor(null); });
  canvas.addEventListener("keydown", (event) => {
    const step = view.cursor ?? view.to;
    const stride = Math.max(1, (view.to - view.from) / 50);
    if (event.key === "ArrowUp") state.row = Math.max(0, state.row - 1);
    else if (event.key === "ArrowDown") state.row = Math.min(state.rows.length - 1, state.row + 1);
    else if (event.key === "ArrowLeft") view.moveCursor(Math.max(view.from, step - stride));
    else if (event.key === "ArrowRight") view.moveCursor(Math.min(view.to, step + stride));
    else return;
    event.preventDefault();
    read(view.cursor ?? step);
    say(readout.textContent);
  });
  return { element: figure, redraw: paint };
}

function paintMatrix(spec, state, canvas) {
  const rows = (state.rows = spec.rows());
  const ratio = window.devicePixelRatio || 1;
  const names = 78;
  state.height = Math.max(3, Math.min(18, Math.floor(420 / Math.max(1, rows.length))));
  const foot = 18;
  const height = state.height * rows.length + foot;
  canvas.width = state.width * ratio;
  canvas.height = height * ratio;
  canvas.style.height = `${height}px`;
  canvas.setAttribute("aria-label", `${spec.title}: ${rows.length} rows over the steps. Arrow keys read it.`);
  const [low, high] = [toUnit(view.from), toUnit(view.to)];
  const span = state.width - names - margin.right;
  // On whole pixels, so that there is no seam between cells.
  const x = (step) => Math.round((names + Math.min(1, Math.max(0, (toUnit(step) - low) / (high - low || 1))) * span) * ratio) / ratio;
  state.stepAt = (pixel) => fromUnit(low + ((pixel - names) / span) * (high - low));
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.clearRect(0, 0, state.width, height);
  context.font = `12px ${styled("--sans")}`;
  context.textBaseline = "middle";
  const everyName = Math.ceil(14 / state.height);
  rows.forEach((row, r) => {
    context.fillStyle = styled("--soft");
    if (r % everyName === 0) context.fillText(row.name, 0, (r + 0.5) * state.height, names - 6);
    const gap = state.height > 6 ? 1 : 0;
    row.steps.forEach((step, i) => {
      if (row.values[i] === null || row.values[i] === undefined) return;
      const left = x(i === 0 ? view.first : row.steps[i - 1]);
      const right = x(step);
      if (right <= left) return;
      context.fillStyle = `rgb(${spec.color(row.values[i]).join(" ")})`;
      context.fillRect(left, r * state.height, right - left, state.height - gap);
    });
  });
  context.fillStyle = styled("--soft");
  context.textAlign = "center";
  for (const value of ticks(low, high, Math.max(2, span / 110))) {
    const at = names + ((value - low) / (high - low || 1)) * span;
    context.fillText(unitText(value), Math.min(state.width - 20, at), height - foot / 2);
  }
}
