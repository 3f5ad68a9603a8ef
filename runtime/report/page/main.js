// Controls that hold for the whole page, and its sections in their order.

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  view.themed.forEach((work) => work());
}

function controls() {
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  document.documentElement.dataset.theme = wanted.matches ? "dark" : "light";
  wanted.addEventListener("change", () => setTheme(wanted.matches ? "dark" : "light"));
  const modes = [["step", "step"], ["tokens", "tokens"], ["hours", "time"]].filter(([mode]) => data.curves.x[mode].some((value) => value !== null));
  const unit = choice("By", modes, "step", (mode) => { view.mode = mode; view.redraw(); });
  document.getElementById("controls").append(unit.element,
    make("button", { type: "button", id: "whole", disabled: true, onclick: () => view.zoom(view.first, view.last) }, "Whole run"),
    make("button", { type: "button", onclick: () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark") }, "Light or dark"));
}

controls();
head();
lookSection();
if (view.steps.length) {
  lossSection();
  curvesSection();
}
gatesSection();
mapsSection();
expertsSection();
timelineSection();
configSection();
foot();
drawAll();
