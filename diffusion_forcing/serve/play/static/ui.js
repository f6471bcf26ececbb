// Elements, controls and drawings that the views share.
import { zh } from "/static/zh.js";

const asked = new URLSearchParams(location.search).get("lang");
export const language = (asked || navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";

// A text of the page in its language; {name} stands for a value.
export function t(text, values = {}) {
  const found = language === "zh" ? (zh[text] ?? text) : text;
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

// h("p.note", {hidden: true}, "text", element): an element with classes, properties or attributes, and children.
export function h(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function toast(text, kind = "note") {
  const element = h(`div.toast.${kind}`, {}, text);
  const toasts = document.getElementById("toasts");
  toasts.append(element);
  while (toasts.children.length > 3) toasts.firstChild.remove();
  setTimeout(() => element.remove(), 3000 + 40 * text.length);
}

// ------------------------------------------------------------------------------------------------ controls

let numbered = 0;

export function slider(label, { min, max, step = 1, value, show = (v) => String(v), change }) {
  const id = `slider-${numbered++}`;
  const output = h("output", { htmlFor: id }, show(value));
  const input = h("input", { id, type: "range" });
  Object.assign(input, { min, max, step, value });
  const fill = () => {
    const span = input.max - min || 1;
    input.style.setProperty("--share", `${(100 * (input.value - min)) / span}%`);
  };
  input.addEventListener("input", () => {
    output.textContent = show(+input.value);
    fill();
  });
  input.addEventListener("change", () => change?.(+input.value));
  fill();
  const element = h("div.slider", {}, h("label", { htmlFor: id }, label), output, input);
  return {
    element,
    input,
    // A slider with one place has nothing to choose.
    set max(v) {
      input.max = v;
      element.hidden = v <= min;
      fill();
    },
    get value() {
      return +input.value;
    },
    set value(v) {
      input.value = v;
      output.textContent = show(+input.value);
      fill();
    },
  };
}

// A button that stays pressed.
export function toggle(label, change, { key, on = false } = {}) {
  const button = h(
    "button.toggle",
    { type: "button", "aria-pressed": String(on) },
    h("span", {}, label),
    key ? h("kbd", {}, key) : null,
  );
  const set = (state) => button.setAttribute("aria-pressed", String(state));
  button.addEventListener("click", () => {
    const state = button.getAttribute("aria-pressed") !== "true";
    set(state);
    change(state);
  });
  return {
    element: button,
    set,
    get on() {
      return button.getAttribute("aria-pressed") === "true";
    },
  };
}

export function button(label, press, { key, kind = "" } = {}) {
  return h(
    `button${kind ? `.${kind}` : ""}`,
    { type: "button", onclick: press },
    h("span", {}, label),
    key ? h("kbd", {}, key) : null,
  );
}

// The same, of which the player is told: {do, on}.
export const switches = (say) => (label, what, options) => toggle(label, (on) => say({ do: what, on }), options);

// One of several, as radio buttons that look like one control.
export function choice(label, options, value, change) {
  const name = `choice-${numbered++}`;
  const inputs = options.map(([id]) =>
    h("input", { type: "radio", name, value: id, checked: id === value, onchange: () => change(id) }),
  );
  const labels = options.map(([, text], number) => h("label", {}, inputs[number], h("span", {}, text)));
  const element = h("fieldset.choice", {}, h("legend", {}, label), h("div", {}, ...labels));
  return {
    element,
    get value() {
      return inputs.find((input) => input.checked)?.value;
    },
    set value(id) {
      inputs.forEach((input) => {
        input.checked = input.value === id;
      });
    },
  };
}

export function select(label, options, value, change) {
  const id = `select-${numbered++}`;
  const input = h("select", { id, onchange: () => change(input.value) });
  const fill = (all, chosen) =>
    input.replaceChildren(...all.map(([key, text]) => h("option", { value: key, selected: key === chosen }, text)));
  fill(options, value);
  return { element: h("div.select", {}, h("label", { htmlFor: id }, label), input), fill, input };
}

export function panel(title, ...children) {
  return h("section.panel", {}, title ? h("h2", {}, title) : null, ...children);
}

// The command that does what the view shows.
export function commandBar() {
  const code = h("code", { tabIndex: 0 }, "…");
  const copy = button(t("Copy"), async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      toast(t("Copied"), "good");
    } catch {
      getSelection().selectAllChildren(code);
      toast(t("Selected; copy it with Ctrl+C"));
    }
  });
  return {
    element: h(
      "section.command",
      { "aria-label": t("The command that does this") },
      h("h2", {}, t("The command that does this")),
      h("div", {}, code, copy),
    ),
    set(text) {
      code.textContent = text;
    },
  };
}

// A paragraph or two about a view's noise levels, closed at first.
export function about(...paragraphs) {
  return h(
    "details.about",
    {},
    h("summary", {}, t("About the noise levels here")),
    ...paragraphs.map((text) => h("p", {}, text)),
  );
}

// ------------------------------------------------------------------------------------------------ noise

const RAMP = [
  [29, 95, 191],
  [106, 160, 207],
  [201, 183, 156],
  [227, 154, 59],
]; // clean … noise

// The colour of a noise level in 0…1.
export function colour(level, alpha = 1) {
  const at = Math.min(1, Math.max(0, level)) * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(at));
  const mix = RAMP[low].map((value, i) => Math.round(value + (at - low) * (RAMP[low + 1][i] - value)));
  return `rgba(${mix.join(",")},${alpha})`;
}

export const legend = () =>
  h(
    "div.legend",
    { role: "img", "aria-label": t("Colours from clean to noise") },
    h("span", {}, t("clean")),
    h("i"),
    h("span", {}, t("noise")),
  );

export function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// A square picture: show(bytes) draws RGB bytes.
export function screen(what, label = "") {
  const canvas = h(what, { width: 64, height: 64, role: "img", "aria-label": label });
  const show = (bytes) => {
    const side = Math.sqrt(bytes.length / 3),
      image = new ImageData(side, side);
    for (let i = 0, j = 0; i < bytes.length; i += 3, j += 4) {
      for (let k = 0; k < 3; k++) image.data[j + k] = bytes[i + k];
      image.data[j + 3] = 255;
    }
    if (canvas.width !== side) canvas.width = canvas.height = side;
    canvas.getContext("2d").putImageData(image, 0, 0);
  };
  return { element: canvas, show };
}

addEventListener("themechange", () => {
  for (const canvas of document.querySelectorAll("canvas")) canvas.dispatchEvent(new Event("repaint"));
});

// A canvas that follows its size on the page: draw(context, width, height) in CSS pixels.
export function drawing(what, attributes, draw) {
  const canvas = h(`canvas.${what}`, attributes);
  let waiting = false;
  const paint = () => {
    waiting = false;
    const { clientWidth: width, clientHeight: height } = canvas,
      ratio = devicePixelRatio || 1;
    if (!width || !height) return;
    const [w, t_] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== t_) Object.assign(canvas, { width: w, height: t_ });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    draw(context, width, height);
  };
  const redraw = () => {
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(paint);
    }
  };
  new ResizeObserver(redraw).observe(canvas);
  canvas.addEventListener("repaint", redraw);
  return { element: canvas, redraw };
}

// A scheduling matrix: rows of levels 0…1, the lit row bright and outlined. columns: a name of the first and the last token.
export function matrix(title, columns) {
  let rows = [],
    lit = -1;
  const view = drawing("matrix", { role: "img", "aria-label": title }, (c, width, height) => {
    if (!rows.length) return;
    const across = rows[0].length,
      cell = { w: width / across, h: height / rows.length };
    rows.forEach((row, j) =>
      row.forEach((level, i) => {
        c.fillStyle = colour(level, lit < 0 || j === lit ? 1 : 0.34);
        c.fillRect(
          i * cell.w,
          j * cell.h,
          Math.ceil(cell.w) - (cell.w > 4 ? 1 : 0),
          Math.ceil(cell.h) - (cell.h > 4 ? 1 : 0),
        );
      }),
    );
    if (lit < 0) return;
    c.strokeStyle = ink("ink");
    c.lineWidth = 2;
    c.strokeRect(1, Math.min(height - 3, Math.max(1, lit * cell.h)), width - 2, Math.max(2, cell.h - 1));
  });
  const caption = h("p.caption", {}, "");
  const element = h(
    "div.schedule",
    {},
    h("h3", {}, title),
    view.element,
    h("div.ends", {}, h("span", {}, columns[0]), h("span", {}, columns[1])),
    legend(),
    caption,
  );
  return {
    element,
    set(all, row = -1, text) {
      rows = all;
      lit = row;
      if (text !== undefined) caption.textContent = text;
      view.redraw();
    },
  };
}
