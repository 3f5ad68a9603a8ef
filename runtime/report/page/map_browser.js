// The section of heat maps: which group, which step, and what beside it.

function mapsSection() {
  if (!data.maps.length) {
    if (data.gates.length) section("maps", "Heat maps", make("p", { class: "soft" }, "There is no heat map in this run yet."));
    return;
  }
  const state = { key: [...framesOf.keys()][0], at: mapSteps.length - 1, other: mapSteps[0], timer: null };
  const [main, beside, distances] = [mapFigure("Shown"), mapFigure("Beside it"), distanceChart()];
  const slider = make("input", { type: "range", min: 0, max: mapSteps.length - 1, step: 1, value: state.at, "aria-label": "Step of the heat map" });
  const place = make("output", {});
  const group = choice("Layer and group", [...framesOf.keys()].map((key) => [key, `layer ${key.replace("/", ", group ")}`]), state.key, (key) => show({ key }));
  const other = choice("Beside it", mapSteps.map((step) => [step, `step ${whole(step)}`]), state.other, (step) => show({ other: Number(step) }));
  const play = make("button", { type: "button", disabled: mapSteps.length < 2 }, "Play");
  const smalls = smallMaps((key) => show({ key }));
  const stop = () => { clearInterval(state.timer); state.timer = null; play.textContent = "Play"; };
  const show = (change) => {
    Object.assign(state, change);
    const step = mapSteps[state.at];
    slider.value = state.at;
    group.select.value = state.key;
    other.select.value = state.other;
    place.textContent = `step ${whole(step)}`;
    slider.setAttribute("aria-valuetext", place.textContent);
    main.show(mapAt(state.key, step));
    beside.show(mapAt(state.key, state.other));
    smalls.show(step, state.key);
    const gate = data.gates.find((one) => `${one.layer}/${one.group}` === state.key);
    const at = gate ? nearest(gate.step, step) : 0;
    distances.show(gate?.frequency[at] ?? [], gate?.step[at]);
  };
  slider.addEventListener("input", () => { stop(); show({ at: Number(slider.value) }); });
  play.addEventListener("click", () => {
    if (state.timer) return stop();
    play.textContent = "Pause";
    if (state.at === mapSteps.length - 1) state.at = -1;
    const next = () => {
      show({ at: state.at + 1 });
      if (state.at === mapSteps.length - 1) stop();
    };
    state.timer = setInterval(next, 500);
    next();
  });
  const shown = data.maps.length < data.run.maps_there ? ` Of ${whole(data.run.maps_there)} maps ${whole(data.maps.length)} are shown.` : "";
  section("maps", "Heat maps",
    make("p", { class: "soft" }, "Where queries (down) find their keys (across), both from the first token of the sequence to its last. The scale is logarithmic and the same everywhere." + shown),
    make("div", { class: "tools" }, group.element, make("div", { class: "slider" }, play, slider, place), other.element),
    pairButtons(show),
    make("div", { class: "maps" }, main.element, beside.element, distances.element),
    legend(sequential, 0, 1, "\u2264 0.01%", "100%", "share of attention\u2019s mass; grey: the future, or not sampled"),
    smalls.element);
  show({});
}

// A change of a budget with maps before and after it.
function pairButtons(show) {
  const pairs = [];
  for (const change of data.changes.filter((one) => one.layer >= 0)) {
    const key = [...framesOf.keys()].find((one) => one.startsWith(`${change.layer}/`));
    const frames = framesOf.get(key) || [];
    const after = frames.findIndex((frame) => frame.step > change.step);
    if (after > 0) pairs.push({ change, key, after: mapSteps.indexOf(frames[after].step), before: frames[after - 1].step });
  }
  if (!pairs.length) return null;
  const options = pairs.slice(-200).map(({ change }, i) => [i, `step ${whole(change.step)}, layer ${change.layer}: ${spoken(change.what)} ${change.old} \u2192 ${change.new}`]);
  const pick = choice("Before and after a change", [["", "choose one"], ...options], "", (i) => {
    const pair = pairs.slice(-200)[Number(i)];
    if (i !== "" && pair) show({ key: pair.key, at: pair.after, other: pair.before });
  });
  return make("div", { class: "tools" }, pick.element);
}

function smallMaps(choose) {
  const keys = [...framesOf.keys()].slice(0, 64);
  const buttons = keys.map((key) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const button = make("button", { type: "button", "aria-pressed": "false", onclick: () => choose(key) }, canvas, `layer ${key.replace("/", " g")}`);
    return { key, canvas, button };
  });
  return {
    element: keys.length < 2 ? null : make("div", { class: "small", role: "group", "aria-label": "All groups" }, ...buttons.map((one) => one.button)),
    show(step, chosen) {
      if (keys.length < 2) return;
      for (const { key, canvas, button } of buttons) {
        paintMap(canvas, mapAt(key, step));
        button.setAttribute("aria-pressed", String(key === chosen));
      }
    },
  };
}
