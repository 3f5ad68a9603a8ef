// A chart of curves over the run. spec: title, curves() (so that they may change), format, height,
// log() or nothing, zero: y begins at 0, robust: outliers may leave, labels: stages are named.

const margin = { left: 52, right: 10, top: 8, bottom: 22 };

function chart(spec) {
  const keys = make("span", { class: "keys" });
  const where = spec.labels ? make("output", { class: "where" }) : null;
  const picture = draw("svg", { class: "chart", tabindex: "0", role: "img" });
  const figure = make("figure", {}, make("figcaption", {}, make("h3", {}, spec.title), where, keys), picture);
  const state = { width: 0, height: spec.height || 168, curves: [], picture, spec, where, stepAt: () => view.to };  // until it has been drawn
  const redraw = () => state.width && drawChart(state, keys);
  onWidth(figure, (width) => { state.width = width; redraw(); });
  view.onDraw(redraw);
  view.onCursor((step) => showCursor(state, step));
  listen(state);
  return { element: figure, redraw };
}

function scaleX(state) {
  const [low, high] = [toUnit(view.from), toUnit(view.to)];
  const width = state.width - margin.left - margin.right;
  state.x = (step) => margin.left + ((toUnit(step) - low) / (high - low || 1)) * width;
  state.stepAt = (pixel) => fromUnit(low + ((pixel - margin.left) / width) * (high - low));
  state.ticksX = ticks(low, high, Math.max(3, Math.floor(width / 110)))
    .filter((value) => view.mode !== "step" || Number.isInteger(value));
  state.pixelOf = (value) => margin.left + ((value - low) / (high - low || 1)) * width;
}

function scaleY(state) {
  const ranges = state.curves.map((curve) => rangeOf(curve, state.spec.robust)).filter(Boolean);
  let low = Math.min(...ranges.map((r) => r[0]));
  let high = Math.max(...ranges.map((r) => r[1]));
  if (!ranges.length) [low, high] = [0, 1];
  const log = state.spec.log?.() && low > 0;
  if (state.spec.zero && !log) low = Math.min(0, low);
  if (high - low <= 1e-9 * Math.abs(high)) [low, high] = log ? [low / 1.1, high * 1.1] : [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
  if (!log) {
    if (low !== 0) low -= 0.04 * (high - low);
    high += 0.04 * (high - low);
  }
  const turn = log ? Math.log : (value) => value;
  const inside = state.height - margin.top - margin.bottom;
  const span = turn(high) - turn(low);
  state.y = (value) => {
    const share = (turn(log ? Math.max(value, 1e-300) : value) - turn(low)) / span;
    return margin.top + inside * (1 - Math.min(4, Math.max(-4, share)));
  };
  state.ticksY = log ? logTicks(low, high, inside / 34) : ticks(low, high, Math.max(2, inside / 32));
}

function drawChart(state, keys) {
  const { picture, spec, width, height } = state;
  state.curves = spec.curves().filter(Boolean);
  scaleX(state);
  scaleY(state);
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.setAttribute("aria-label", `${spec.title}: ${spec.about || "a curve over the steps"}. Arrow keys read it, plus and minus zoom.`);
  const clip = `clip-${(drawChart.count = (drawChart.count || 0) + 1)}`;
  picture.replaceChildren(
    draw("clipPath", { id: clip }, draw("rect", {
      x: margin.left, y: margin.top - 4, width: Math.max(0, width - margin.left - margin.right), height: height - margin.top - margin.bottom + 8,
    })),
    ...drawStages(state), ...drawAxes(state), ...(spec.labels ? nameStages(state) : []),
    draw("g", { "clip-path": `url(#${clip})` }, ...state.curves.flatMap((curve) => drawCurve(state, curve))),
    ...(spec.marks ? drawMarks(state) : []),
    (state.pick = draw("rect", { class: "pick", y: margin.top, height: height - margin.top - margin.bottom, width: 0 })),
    (state.line = draw("line", { class: "cursor", y1: margin.top, y2: height - margin.bottom, visibility: "hidden" })),
  );
  state.outputs = [];
  keys.replaceChildren(...state.curves.filter((curve) => !curve.thin).map((curve) => drawKey(state, curve)));
  showCursor(state, view.cursor);
}

function drawKey(state, curve) {
  const output = make("output", {});
  state.outputs.push([curve, output]);
  if (!curve.name) return make("span", { class: "key" }, output);
  const swatch = draw("svg", { width: 18, height: 8, "aria-hidden": "true" },
    draw("line", { x1: 0, x2: 18, y1: 4, y2: 4, stroke: `var(--${curve.color})`, "stroke-width": 2, "stroke-dasharray": curve.dash }),
    curve.dots ? draw("circle", { cx: 9, cy: 4, r: 3, fill: `var(--${curve.color})` }) : null);
  return make("span", { class: "key" }, swatch, curve.name, output);
}

function drawCurve(state, curve) {
  const color = `var(--${curve.color})`;
  const parts = [];
  if (curve.min) parts.push(draw("path", { d: bandPath(curve, state.x, state.y), fill: color, opacity: 0.16 }));
  parts.push(draw("path", {
    d: linePath(curve, state.x, state.y), fill: "none", stroke: color, "stroke-width": curve.thin ? 1 : 1.75,
    "stroke-dasharray": curve.dash, "stroke-linejoin": "round", opacity: curve.thin ? 0.35 : 1,
  }));
  const [from, to] = shown(curve);
  if (curve.dots && to - from <= 80) {
    for (let i = from; i < to; ++i) {
      if (curve.mean[i] === null) continue;
      parts.push(draw("circle", { cx: state.x(curve.steps[i]), cy: state.y(curve.mean[i]), r: 3, fill: color }));
    }
  }
  return parts;
}

function drawAxes(state) {
  const bottom = state.height - margin.bottom;
  const format = state.spec.format === percent ? percentMark : compact;
  const parts = [];
  for (const value of state.ticksY) {
    const y = Math.round(state.y(value)) + 0.5;
    if (y < margin.top - 2 || y > bottom + 2) continue;
    parts.push(draw("line", { class: "grid-line", x1: margin.left, x2: state.width - margin.right, y1: y, y2: y }));
    parts.push(draw("text", { x: margin.left - 6, y: y + 4, "text-anchor": "end" }, format(value)));
  }
  state.ticksX.forEach((value, i) => {
    const x = state.pixelOf(value);
    const end = x > state.width - 34;
    const text = i === 0 && view.mode === "step" && state.spec.labels ? `step ${unitText(value)}` : unitText(value);
    parts.push(draw("text", { x: end ? state.width - margin.right : x, y: state.height - 6, "text-anchor": end ? "end" : "middle" }, text));
  });
  return parts;
}

function stageSpans(state) {
  const names = [...new Set(data.stages.map((stage) => stage.name))];
  return data.stages.map((stage, i) => ({
    name: stage.name,
    left: Math.max(margin.left, state.x(i === 0 ? stage.from : data.stages[i - 1].to)),
    right: Math.min(state.width - margin.right, state.x(stage.to)),
    band: `var(--band${names.indexOf(stage.name) % 4})`,
  })).filter((span) => span.right > span.left);
}

function drawStages(state) {
  const bottom = state.height - margin.bottom;
  return stageSpans(state).map(({ left, right, band }) =>
    draw("rect", { x: left, y: margin.top - 4, width: right - left, height: bottom - margin.top + 4, fill: band }));
}

// Where there is room. Before lines of the grid, which they would be read through.
function nameStages(state) {
  return stageSpans(state).filter(({ name, left, right }) => right - left > 7 * name.length + 8)
    .map(({ name, left, band }) => draw("text", { class: "stage", x: left + 6, y: margin.top + 10, stroke: band }, name));
}

// Where something happened to the run, at the foot of the chart.
function drawMarks(state) {
  const y = state.height - margin.bottom;
  const shapes = { resume: "M0 -8L4 0H-4Z", stop: "M-3 -7H3V-1H-3Z", skip: "M-3 -7L3 -1M3 -7L-3 -1", change: "M0 -8L3 -4L0 0L-3 -4Z", hold: "M-3 -8V0M3 -8V0", warning: "M-4 -8H4L0 0Z" };
  return data.events.filter((event) => shapes[event.kind] && event.step >= view.from && event.step <= view.to).slice(-400)
    .map((event) => draw("path", {
      d: shapes[event.kind], transform: `translate(${state.x(event.step).toFixed(1)} ${y})`,
      fill: "var(--soft)", stroke: "var(--soft)", "stroke-width": event.kind === "skip" || event.kind === "hold" ? 1.5 : 0,
    }, draw("title", {}, `step ${event.step}: ${event.text}`)));
}
