// Uses every control of the page of a run, as a person with a keyboard and a pointer would, and
// leaves what it has read in an element "used". Errors are the test's to find, in the console.

setTimeout(() => {
  const read = [];
  const press = (element, keys) => {
    for (const key of keys) element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  };
  const point = (element, steps) => {
    const box = element.getBoundingClientRect();
    for (const [type, x, y] of steps) {
      element.dispatchEvent(new PointerEvent(type, { clientX: box.left + x * box.width, clientY: box.top + y * box.height, button: 0, pointerType: "mouse", bubbles: true }));
    }
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  for (const select of all("select")) {
    for (const option of select.options) {
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
    }
  }
  for (const chart of all("svg.chart[tabindex]")) press(chart, ["ArrowLeft", "ArrowRight", "Home", "End", "+", "-", "Escape"]);
  point(all("svg.chart")[0], [["pointerdown", 0.3, 0.5], ["pointermove", 0.4, 0.5], ["pointerup", 0.7, 0.5]]);
  for (const canvas of all(".matrix canvas")) {
    press(canvas, ["ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight"]);
    point(canvas, [["pointermove", 0.6, 0.2]]);
    read.push(canvas.nextElementSibling.textContent);
  }
  for (const canvas of all(".map canvas")) {
    point(canvas, [["pointermove", 0.2, 0.8]]);
    read.push(canvas.nextElementSibling.textContent);
  }
  for (const slider of all("input[type=range]")) {
    slider.value = 0;
    slider.dispatchEvent(new Event("input"));
  }
  for (const control of all("button, input[type=checkbox], summary")) control.click();
  const used = document.createElement("pre");
  used.id = "used";
  used.textContent = read.join("\n");
  document.body.append(used);
}, 500);
