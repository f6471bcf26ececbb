// The frame of the page: tabs, theme, language, and the one view that is open.
// Leaving a view closes its connection, and so its work.
import { Connection } from "/static/connection.js";
import { commandBar, h, language, t, toast } from "/static/ui.js";

const VIEWS = {
  world: {
    name: t("World"),
    line: t("Hold an arrow: the model dreams every frame from the ones before and your arrows."),
  },
  plan: { name: t("Plan"), line: t("Click a goal in the maze: a plan condenses out of noise, and the ball runs it.") },
  forecast: {
    name: t("Forecast"),
    line: t("Drag a point of the future up or down: the others follow. Or drop a CSV of your own."),
  },
  robot: {
    name: t("Robot"),
    line: t("The arm swaps the fruits. Click a camera to cover it, or wipe its memory, and watch."),
  },
};
const STATES = {
  connecting: t("Loading the model …"),
  ready: t("Ready"),
  lost: t("The connection is lost; trying again …"),
  taken: t("This model is in use, perhaps in another tab. This page waits and starts when it is free."),
};
const main = document.getElementById("view");
let open = null; // aborted when its view is left

// A view's module has mount({stage, side, say, token, signal}), which returns heard: what to do with each type of message;
// first: the types that bring its first picture; failed(text) after an error; state(now): connecting, ready, lost, …
async function mountView(name) {
  open?.abort();
  const { signal } = (open = new AbortController());
  const { name: title, line } = VIEWS[name];
  document.title = `${title} · Diffusion Forcing`;
  for (const tab of document.querySelectorAll("#tabs a")) tab.toggleAttribute("aria-current", tab.hash === `#${name}`);
  const stage = h("div.stage"),
    side = h("aside.side"),
    command = commandBar(),
    state = h("p.state", { role: "status" }, STATES.connecting);
  const heading = h("div.heading", {}, h("h1", {}, title), h("p.line", {}, line), state);
  const root = h(`div.view.${name}`, {}, heading, h("div.body", {}, stage, side), command.element);
  main.replaceChildren(root);

  const { mount } = await import(`/static/${name}.js`);
  if (signal.aborted) return;
  let connection = null,
    pictured = false;
  const view = mount({ stage, side, signal, say: (said) => connection.say(said), token: () => connection.token });
  const change = (now, text = STATES[now]) => {
    root.dataset.state = now;
    state.textContent = text;
    pictured = now === "ready";
    view.state?.(now);
  };
  const heard = (header, data) => {
    if (header.type === "error") {
      toast(header.text, "bad");
      view.failed?.(header.text);
    } else if (header.type === "command") command.set(header.text);
    else view.heard[header.type]?.(header, data);
    if (!pictured && view.first.includes(header.type)) {
      pictured = true;
      requestAnimationFrame(() => pictured && change("ready")); // when it is drawn
    }
  };
  connection = new Connection(name, heard, change);
  signal.addEventListener("abort", () => connection.close());
}

// ------------------------------------------------------------------------------------------------ frame

const tabs = document.getElementById("tabs");
for (const [name, { name: title }] of Object.entries(VIEWS)) tabs.append(h("a", { href: `#${name}` }, title));
document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
document.getElementById("skip").textContent = t("Skip to the view");
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

const other = language === "zh" ? ["en", "English"] : ["zh", "中文"];
const languages = document.getElementById("language");
languages.textContent = other[1];
languages.lang = other[0];
languages.addEventListener("click", () => {
  const here = new URL(location.href);
  here.searchParams.set("lang", other[0]);
  location.replace(here);
});

const theme = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch {
    /* a browser without storage follows the system */
  }
  const now = chosen ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now;
  theme.textContent = now === "dark" ? "☀" : "☾";
  theme.setAttribute("aria-label", now === "dark" ? t("Light colours") : t("Dark colours"));
  theme.title = theme.getAttribute("aria-label");
  dispatchEvent(new Event("themechange"));
}
theme.addEventListener("click", () => {
  try {
    localStorage.setItem("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  } catch {
    /* as above */
  }
  paint();
});
dark.addEventListener("change", paint);
paint();

const chosen = () => (location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "world");
addEventListener("hashchange", () => mountView(chosen()));
mountView(chosen());
