// Heat maps: one large beside another step of the same group, and all groups small.

const framesOf = new Map();  // "layer/group" to its maps by step
for (const map of data.maps) {
  const key = `${map.layer}/${map.group}`;
  if (!framesOf.has(key)) framesOf.set(key, []);
  framesOf.get(key).push(map);
}
const mapSteps = [...new Set(data.maps.map((map) => map.step))].sort((a, b) => a - b);

function shadesOf(map) {
  if (!map.bytes) map.bytes = Uint8Array.from(atob(map.shades), (c) => c.charCodeAt(0));
  return map.bytes;
}

function paintMap(canvas, map) {
  const bins = map ? map.bins : 1;
  canvas.width = canvas.height = bins;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, bins, bins);
  if (!map) return;
  const image = context.createImageData(bins, bins);
  const shades = shadesOf(map);
  let at = 0;
  for (let row = 0; row < bins; ++row) {
    for (let column = 0; column <= row; ++column, ++at) {
      if (shades[at] === 0) continue;
      const color = scale[shades[at] - 1];
      image.data.set([...color, 255], 4 * (row * bins + column));
    }
  }
  context.putImageData(image, 0, 0);
}

// The newest map of a group that is not later than `step`, or its first one.
function mapAt(key, step) {
  const frames = framesOf.get(key) || [];
  let found = frames[0];
  for (const frame of frames) if (frame.step <= step) found = frame;
  return found;
}

function binText(map, row, column) {
  if (!map || column > row) return "later than the query";
  const shade = shadesOf(map)[(row * (row + 1)) / 2 + column];
  if (shade === 0) return "no query of this part was sampled";
  if (shade === 1) return "0.01% of the mass or less";
  return `${percent(10 ** (-4 * (1 - (shade - 1) / 254)))} of the mass`;
}

function mapFigure(name) {
  const canvas = make("canvas", { role: "img" });
  const title = make("h3", {});
  const readout = make("p", { class: "readout" }, "\u00a0");
  const figure = { map: null };
  canvas.addEventListener("pointermove", (event) => {
    if (!figure.map) return;
    const box = canvas.getBoundingClientRect();
    const bins = figure.map.bins;
    const [column, row] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((t) => Math.min(bins - 1, Math.max(0, Math.floor(t * bins))));
    readout.textContent = `query at ${percent(row / bins)}, key at ${percent(column / bins)} of the sequence: ${binText(figure.map, row, column)}`;
  });
  canvas.addEventListener("pointerleave", () => { readout.textContent = "\u00a0"; });
  figure.element = make("figure", { class: "map" }, make("figcaption", {}, title), canvas, readout);
  figure.show = (map) => {
    figure.map = map;
    title.textContent = map ? `${name}: step ${whole(map.step)}` : `${name}: none`;
    canvas.setAttribute("aria-label", map ? `Heat map of layer ${map.layer}, group ${map.group} at step ${map.step}` : "No heat map");
    paintMap(canvas, map);
  };
  return figure;
}

function distanceChart() {
  const picture = draw("svg", { class: "chart", role: "img" });
  const title = make("h3", {});
  const figure = make("figure", {}, make("figcaption", {}, title), picture);
  let shown = [];
  let width = 0;
  const paint = () => {
    if (!width) return;
    const height = 200;
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const most = Math.max(1e-9, ...shown.map((value) => value ?? 0));
    const slot = (width - margin.left - margin.right) / Math.max(1, shown.length);
    const y = (value) => height - margin.bottom - (value / most) * (height - margin.bottom - margin.top);
    picture.replaceChildren(...ticks(0, most, 4).flatMap((value) => [
      draw("line", { class: "grid-line", x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) }),
      draw("text", { x: margin.left - 6, y: y(value) + 4, "text-anchor": "end" }, percentMark(value))]),
    ...shown.flatMap((value, i) => [
      draw("rect", { x: margin.left + i * slot + 2, width: Math.max(1, slot - 4), y: y(value ?? 0), height: Math.max(0, y(0) - y(value ?? 0)), fill: "var(--c0)" },
        draw("title", {}, `${2 ** i} to ${2 ** (i + 1) - 1} blocks away: ${percent(value)}`)),
      draw("text", { x: margin.left + (i + 0.5) * slot, y: height - 6, "text-anchor": "middle" }, compact(2 ** i))]));
    picture.setAttribute("aria-label", shown.map((value, i) => `${2 ** i} blocks away: ${percent(value)}`).join(", "));
  };
  onWidth(figure, (now) => { width = now; paint(); });
  return {
    element: figure,
    show(values, step) {
      shown = values;
      figure.hidden = !values.length;
      title.textContent = `Chosen, by distance in blocks: step ${whole(step)}`;
      paint();
    },
  };
}
