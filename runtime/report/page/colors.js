// Colours of maps and matrices. The scale of heat maps comes with the data.

const scale = [];
for (let i = 0; i + 6 <= data.scale.length; i += 6) {
  scale.push([0, 2, 4].map((at) => parseInt(data.scale.slice(i + at, i + at + 2), 16)));
}

function styled(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// From the darkest to the lightest for t from 0 to 1.
function sequential(t) {
  return scale[Math.round(Math.min(1, Math.max(0, t)) * (scale.length - 1))];
}

// Blue below the middle, grey in it, orange above, for t from -1 to 1.
function diverging(t) {
  const end = channels(styled(t < 0 ? "--low" : "--high"));
  const middle = channels(styled("--middle"));
  const share = Math.min(1, Math.abs(t));
  return middle.map((from, i) => Math.round(from + (end[i] - from) * share));
}

function gradient(colorAt, low, high) {
  const canvas = make("canvas", { width: 128, height: 1, "aria-hidden": "true" });
  const paint = () => {
    const context = canvas.getContext("2d");
    for (let i = 0; i < 128; ++i) {
      context.fillStyle = `rgb(${colorAt(low + ((high - low) * i) / 127).join(" ")})`;
      context.fillRect(i, 0, 1, 1);
    }
  };
  paint();
  view.onTheme(paint);
  return canvas;
}

function legend(colorAt, low, high, lowText, highText, about) {
  return make("div", { class: "legend" }, make("span", {}, lowText), gradient(colorAt, low, high), make("span", {}, highText), make("span", {}, about));
}
