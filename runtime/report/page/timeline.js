// Events of the run, its configuration, and the foot of the page.

const kindNames = {
  start: "start", resume: "resume", save: "save", skip: "skipped step", stop: "stop", change: "gate change", hold: "hold", warning: "warning",
};

function timelineSection() {
  if (!data.events.length) return;
  const kinds = Object.keys(kindNames).filter((kind) => data.events.some((event) => event.kind === kind));
  const count = (kind) => data.events.filter((event) => event.kind === kind).length;
  const on = new Set(kinds.filter((kind) => count(kind) <= 40 || kind === "resume" || kind === "warning"));
  const body = make("tbody", {});
  const show = () => body.replaceChildren(...data.events.filter((event) => on.has(event.kind)).reverse().map((event) => make("tr", { class: event.kind },
    make("td", { class: "number" }, event.step > 0 ? whole(event.step) : "\u2013"), make("td", { class: "number" }, event.clock || ""),
    make("td", { class: "kind" }, kindNames[event.kind]), make("td", { class: "words" }, event.text))));
  const boxes = kinds.map((kind) => {
    const box = make("input", { type: "checkbox", checked: on.has(kind) });
    box.addEventListener("change", () => { box.checked ? on.add(kind) : on.delete(kind); show(); });
    return make("label", {}, box, `${kindNames[kind]} (${whole(count(kind))})`);
  });
  show();
  section("timeline", "Timeline", make("div", { class: "tools" }, ...boxes),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Events, the newest first" }, make("table", {},
      make("thead", {}, make("tr", {}, ...[["Step", "number"], ["Clock", "number"], ["Event", ""], ["Words of the log", ""]]
        .map(([text, kind]) => make("th", { class: kind, scope: "col" }, text)))), body)));
}

function configSection() {
  if (!data.config) return;
  section("config", "Configuration", make("details", {}, make("summary", {}, "All of it, as the run resolved it"),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Configuration" }, make("pre", {}, data.config))));
}

function foot() {
  document.getElementById("footer").append(`Written ${data.run.written} by tessera report. This page is one file and asks the network for nothing.`);
}
