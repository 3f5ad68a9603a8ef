// What all curves share: the stretch of steps that is shown, the cursor, and the unit of x.

const view = {
  steps: data.curves.x.step,
  mode: "step",
  from: 0,
  to: 1,
  cursor: null,
  drawers: [],
  cursors: [],
  themed: [],
  onDraw(work) { this.drawers.push(work); },
  onCursor(work) { this.cursors.push(work); },
  onTheme(work) { this.themed.push(work); },
  redraw() { this.drawers.forEach((work) => work()); },
  // Nobody reads a cursor more often than it is drawn.
  moveCursor(step) {
    if (step === this.cursor) return;
    this.cursor = step;
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.cursors.forEach((work) => work(this.cursor));
    });
  },
  zoom(from, to) {
    this.from = Math.max(this.first, from);
    this.to = Math.min(this.last, to);
    if (this.to - this.from < 1) [this.from, this.to] = [this.first, this.last];
    document.getElementById("whole").disabled = this.from === this.first && this.to === this.last;
    this.redraw();
  },
  get first() { return this.steps.length ? this.steps[0] : 0; },
  get last() { return this.steps.length ? Math.max(this.steps[this.steps.length - 1], this.first + 1) : 1; },
};
[view.from, view.to] = [view.first, view.last];

// Index of the first of `sorted` that is not below `value`.
function lowerBound(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}

function nearest(sorted, value) {
  const at = lowerBound(sorted, value);
  if (at === 0) return 0;
  if (at === sorted.length) return at - 1;
  return value - sorted[at - 1] <= sorted[at] - value ? at - 1 : at;
}

function between(xs, ys, x) {
  if (!xs.length) return x;
  const at = Math.min(Math.max(1, lowerBound(xs, x)), xs.length - 1);
  if (xs.length === 1 || xs[at] === xs[at - 1]) return ys[0];
  return ys[at - 1] + ((ys[at] - ys[at - 1]) * (x - xs[at - 1])) / (xs[at] - xs[at - 1]);
}

// Steps to the unit that x has, and back.
function toUnit(step) {
  return view.mode === "step" ? step : between(view.steps, data.curves.x[view.mode], step);
}

function fromUnit(value) {
  return view.mode === "step" ? value : between(data.curves.x[view.mode], view.steps, value);
}

function unitText(value) {
  return view.mode === "hours" ? duration(value * 3600) : compact(value);
}

function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const all = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) all.push(i * step);
  return all;
}

function logTicks(low, high, count) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power) {
    for (const m of [1, 2, 5]) {
      const value = m * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) all.push(value);
    }
  }
  const tens = all.filter((value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9);
  const chosen = all.length > 2 * count && tens.length > 1 ? tens : all;
  if (chosen.length < 2) return ticks(low, high, count);
  const stride = Math.ceil(chosen.length / (1.5 * count));
  return chosen.filter((_, i) => i % stride === 0);
}
