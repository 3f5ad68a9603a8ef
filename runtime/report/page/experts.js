// How evenly tokens fall on experts.

function expertsSection() {
  if (!data.experts.length) return;
  const times = (value) => value === null ? "\u2013" : `${trimmed(value)} times the mean`;
  // An eighth of the mean to eight times.
  const color = (value) => diverging(value > 0 ? Math.log2(value) / 3 : -1);
  const spec = { format: times, color };
  const plot = matrix(spec);
  const show = (which) => {
    const one = data.experts[Number(which)];
    if (which === "all") {
      spec.title = "Most tokens of an expert, by layer";
      spec.rows = () => data.experts.map((layer) => ({ name: `layer ${layer.layer}`, steps: layer.step, values: layer.load.map((load) => Math.max(...load)) }));
    } else {
      spec.title = `Tokens of each expert of layer ${one.layer}`;
      spec.rows = () => one.load[0].map((_, e) => ({ name: `expert ${e}`, steps: one.step, values: one.load.map((load) => load[e]) }));
    }
    plot.redraw();
  };
  const options = [["all", "all, the most loaded expert"], ...data.experts.map((layer, i) => [i, `layer ${layer.layer}, every expert`])];
  const pick = choice("Layer", options, "all", show);
  show("all");
  section("experts", "Expert load", make("div", { class: "tools" }, pick.element), plot.element,
    legend(diverging, -1, 1, "1/8", "8x", "of the mean; grey is even"));
}
