// Elements of the page. Text is always set as text: nothing of a run becomes markup.

function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function choice(label, options, chosen, onchange) {
  const select = make("select", { onchange: () => onchange(select.value) });
  for (const [value, text] of options) {
    select.append(make("option", { value, selected: String(value) === String(chosen) }, text));
  }
  return { element: make("label", {}, label, select), select };
}

function toggle(text, pressed, onchange) {
  const button = make("button", { type: "button", "aria-pressed": String(pressed) }, text);
  button.addEventListener("click", () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(now));
    onchange(now);
  });
  return button;
}

function section(id, title, ...children) {
  document.getElementById("sections").append(make("a", { href: "#" + id }, title));
  const element = make("section", { id, "aria-labelledby": id + "-title" },
    make("h2", { id: id + "-title" }, title), ...children);
  document.getElementById("main").append(element);
  return element;
}

function say(text) {
  document.getElementById("spoken").textContent = text;
}

// Calls `work` with the width of `element`: in drawAll(), and whenever it changes. Changes are told in
// the next frame: what changes sizes while they are told is told off by browsers.
const looks = [];
function onWidth(element, work) {
  let last = 0;
  const look = () => {
    const width = Math.floor(element.clientWidth);
    if (width > 0 && width !== last) work((last = width));
  };
  looks.push(look);
  new ResizeObserver(() => requestAnimationFrame(look)).observe(element);
}

// Draws what is on the page for the first time, before a frame is shown without it.
function drawAll() {
  looks.forEach((look) => look());
}
