// One curve of a chart: {name, steps, mean, min, max, color, dash, dots}. Where it has min and max,
// a point stands for many steps, and their range is drawn behind the mean.

function columnCurve(column, name, color, more = {}) {
  const found = data.curves.columns[column];
  if (!found) return null;
  const known = found.mean.flatMap((value, i) => value === null ? [] : [i]);
  if (!known.length) return null;
  if (2 * known.length >= found.mean.length) return { name, steps: view.steps, ...found, color, ...more };
  // What is measured now and then: a line from one point to the next.
  const of = (values) => values && known.map((i) => values[i]);
  return { name, steps: of(view.steps), mean: of(found.mean), min: of(found.min), max: of(found.max), color, dots: true, ...more };
}

// Without the noise of single steps: an exponential mean over a hundredth of the run, forwards and
// backwards, so that it neither lags behind nor runs ahead.
function smoothed(curve) {
  const keep = Math.exp(-1 / Math.max(1, curve.mean.length / 100));
  const pass = (values) => {
    let [sum, weight] = [0, 0];
    return values.map((value) => {
      if (value !== null) {
        sum = keep * sum + (1 - keep) * value;
        weight = keep * weight + (1 - keep);
      }
      return weight ? sum / weight : null;
    });
  };
  const forwards = pass(curve.mean);
  const backwards = pass([...curve.mean].reverse()).reverse();
  const mean = forwards.map((value, i) => value === null ? backwards[i] : backwards[i] === null ? value : (value + backwards[i]) / 2);
  return { ...curve, mean, min: null, max: null };
}

// Indices of the points that are shown, and one more on either side for the line to leave by.
function shown(curve) {
  const from = Math.max(0, lowerBound(curve.steps, view.from) - 1);
  const to = Math.min(curve.steps.length, lowerBound(curve.steps, view.to + 1) + 1);
  return [from, to];
}

function sortedShown(curve, part) {
  const [from, to] = shown(curve);
  const values = [];
  for (let i = from; i < to && part; ++i) {
    if (curve.steps[i] >= view.from && curve.steps[i] <= view.to && part[i] !== null) values.push(part[i]);
  }
  return values.sort((a, b) => a - b);
}

// A robust range lets a few outliers leave through the top, which would press the rest into a line.
function rangeOf(curve, robust) {
  const at = (values, share) => values[Math.floor(share * (values.length - 1))];
  const mean = sortedShown(curve, curve.mean);
  if (!mean.length) return null;
  const most = curve.max ? sortedShown(curve, curve.max) : mean;
  const least = curve.min ? sortedShown(curve, curve.min) : mean;
  if (!robust) return [least[0], at(most, 1)];
  const usual = Math.max(at(mean, 0.98), at(most, 0.9));
  return [Math.min(mean[0], at(least, 0.1)), at(mean, 1) > 2.5 * at(mean, 0.98) ? 1.5 * usual : Math.max(at(mean, 1), usual)];
}

function linePath(curve, x, y) {
  const [from, to] = shown(curve);
  let path = "";
  let pen = "M";
  for (let i = from; i < to; ++i) {
    const value = curve.mean[i];
    if (value === null) { pen = "M"; continue; }
    path += `${pen}${x(curve.steps[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  }
  return path;
}

function bandPath(curve, x, y) {
  const [from, to] = shown(curve);
  const [up, down] = [[], []];
  for (let i = from; i < to; ++i) {
    if (curve.min[i] === null) continue;
    const at = x(curve.steps[i]).toFixed(1);
    up.push(`${at} ${y(curve.max[i]).toFixed(1)}`);
    down.push(`${at} ${y(curve.min[i]).toFixed(1)}`);
  }
  return up.length ? `M${up.join("L")}L${down.reverse().join("L")}Z` : "";
}

function valueAt(curve, step) {
  if (!curve.steps.length) return null;
  const at = nearest(curve.steps, step);
  return { step: curve.steps[at], value: curve.mean[at], min: curve.min?.[at], max: curve.max?.[at] };
}
