// The world view: keys to the model, its frames to a canvas, and the frames that it remembers with the noise they are shown at.
import {
  about,
  button,
  colour,
  drawing,
  h,
  matrix,
  panel,
  screen,
  slider,
  switches,
  t,
  toast,
  toggle,
} from "/static/ui.js";

const KEYS = {
  ArrowUp: "forward",
  KeyW: "forward",
  ArrowLeft: "left",
  KeyA: "left",
  ArrowRight: "right",
  KeyD: "right",
};
const ARROWS = { left: "←", forward: "↑", right: "→" };

export function mount({ stage, side, say, signal }) {
  let size = 64,
    window_ = 16,
    sigmas = [],
    levels = [],
    kept = [],
    steps = 1,
    held = new Set(),
    number = 0,
    frame = 0;
  const sent = new Map(); // keys message: when
  const delays = [],
    drawn = []; // ms from key to picture; when the last frames were drawn
  const noise = Float32Array.from(
    { length: 64 * 64 * 3 },
    () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()),
  );

  // ---------------------------------------------------------------- pictures
  const screens = [t("dream"), t("simulator")].map((name) => {
    const one = screen("canvas.screen", name);
    return { ...one, figure: h("figure", {}, one.element, h("figcaption", {}, name)) };
  });
  screens[1].figure.hidden = true;
  const hint = h("span.hint", {}, t("Hold ↑"));
  screens[0].figure.append(hint);
  const buttons = Object.entries(ARROWS).map(([key, arrow]) => {
    const press = (event) => {
        event.preventDefault();
        hold(key, true);
      },
      release = () => hold(key, false);
    return h(
      "button.pad",
      {
        type: "button",
        "aria-label": t(key),
        onpointerdown: press,
        onpointerup: release,
        onpointerleave: release,
        onpointercancel: release,
        onkeydown: (event) => {
          if (event.code === "Enter" && !event.repeat) press(event);
        },
        onkeyup: (event) => {
          if (event.code === "Enter") release();
        },
      },
      arrow,
    );
  });
  const facts = Object.fromEntries(["fps", "ms", "delay"].map((name) => [name, h("b", {}, "–")]));
  const meter = h(
    "p.meter",
    {},
    facts.fps,
    ` ${t("frames per second")} · `,
    facts.ms,
    ` ${t("ms per frame")} · `,
    facts.delay,
    ` ${t("ms from key to picture")}`,
  );
  const strip = drawing(
    "memory",
    { role: "img", "aria-label": t("The last frames, each as noisy as the model sees it") },
    paintMemory,
  );
  stage.append(
    h("div.screens", {}, ...screens.map(({ figure }) => figure)),
    h("div.pads", {}, ...buttons),
    meter,
    h(
      "div.strip",
      {},
      h("h3", {}, t("Its memory: the last frames, each with the noise it is shown at")),
      strip.element,
    ),
  );

  // ---------------------------------------------------------------- controls
  const truth = toggle(
    t("Simulator beside it"),
    (on) => {
      screens[1].figure.hidden = !on;
      say({ do: "truth", on });
    },
    { key: "T" },
  );
  const tell = switches(say);
  const wander = tell(t("Wander by itself"), "wander", { key: "G" });
  const pause = tell(t("Pause"), "pause", { key: "P" });
  const record = tell(t("Record a clip"), "record", { key: "R" });
  const actions = {
    KeyT: () => truth.element.click(),
    KeyG: () => wander.element.click(),
    KeyP: () => pause.element.click(),
    KeyR: () => record.element.click(),
    KeyN: () => {
      wipe();
      say({ do: "new" });
    },
    KeyF: () => {
      say({ do: "forget" });
      toast(t("It has forgotten where it is. “New maze” begins again."));
    },
    Period: () => say({ do: "step" }),
  };
  let noise_ = 0.19; // as the server set it, until the slider is moved: its places are hundredths
  const pace = () => say({ do: "pace", steps: count.value, fps: speed.value, noise: noise_ });
  const count = slider(t("Denoising steps per frame"), {
    min: 1,
    max: 8,
    value: 1,
    change: (value) => {
      steps = value;
      schedule();
      pace();
    },
  });
  const speed = slider(t("Frames per second, at most"), { min: 2, max: 30, value: 12, change: pace });
  const doubt = slider(t("Noise on its memory"), {
    min: 0,
    max: 100,
    value: 19,
    change: (value) => {
      noise_ = value / 100;
      pace();
    },
    show: (v) => (sigmas.length ? `σ ${sigmas[v].toPrecision(2)}` : `${v} %`),
  });
  const levelsMatrix = matrix(t("Noise levels while the next frame is sampled"), [t("oldest frame"), t("the new one")]);
  side.append(
    panel(
      t("Drive"),
      h(
        "div.buttons",
        {},
        button(t("New maze"), actions.KeyN, { key: "N" }),
        button(t("Forget the past"), actions.KeyF, { key: "F" }),
        pause.element,
        button(t("One step"), actions.Period, { key: "." }),
        wander.element,
        truth.element,
        record.element,
      ),
    ),
    panel(
      "",
      levelsMatrix.element,
      about(
        t(
          "Every frame has a noise level of its own. The frames it remembers are shown nearly clean; the new one starts as pure noise and loses it in as many steps as the slider says.",
        ),
        t(
          "“Forget the past” gives the remembered frames the highest level: to the model they are noise, so it goes on without them; one that was trained behind a nearly clean past then fades to grey. The noise slider does so by degrees, frame by frame.",
        ),
      ),
    ),
    panel(t("Sampling"), count.element, speed.element, doubt.element),
  );

  function schedule() {
    const past = levels.slice(-window_);
    levelsMatrix.set(
      Array.from({ length: steps + 1 }, (_, row) => [...past, 1 - row / steps]),
      frame ? (frame % steps) + 1 : 0,
      t("Denoising steps per frame: {n}", { n: steps }),
    );
  }

  // ---------------------------------------------------------------- keys
  function hold(key, down) {
    if (held.has(key) === down) return;
    hint.hidden = true;
    if (down) held.add(key);
    else held.delete(key);
    buttons[Object.keys(ARROWS).indexOf(key)].classList.toggle("held", down);
    number += 1;
    if (down) sent.set(number, performance.now());
    say({ do: "keys", keys: [...held], number });
  }
  function down(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.code in KEYS) {
      event.preventDefault();
      hold(KEYS[event.code], true);
    } else if (!event.repeat) actions[event.code]?.();
  }
  addEventListener("keydown", down, { signal });
  addEventListener("keyup", ({ code }) => code in KEYS && hold(KEYS[code], false), { signal });
  addEventListener("blur", () => [...held].forEach((key) => hold(key, false)), { signal });

  // ---------------------------------------------------------------- what comes
  function measure(ms) {
    const now = performance.now();
    if (now - (drawn.at(-1) ?? 0) > 1000) drawn.length = 0; // it stood still
    drawn.push(now);
    if (drawn.length > 20) drawn.shift();
    facts.fps.textContent = drawn.length > 1 ? ((1000 * (drawn.length - 1)) / (now - drawn[0])).toFixed(0) : "–";
    facts.ms.textContent = ms.toFixed(0);
  }
  function wipe() {
    kept = [];
    levels = [];
    strip.redraw();
  }
  function paintMemory(c, width, height) {
    const across = window_,
      gap = 3,
      side_ = Math.min(height - 8, (width - gap * (across - 1)) / across);
    const small = new OffscreenCanvas(size, size),
      brush = small.getContext("2d"),
      image = new ImageData(size, size);
    c.imageSmoothingEnabled = side_ < size;
    const first = across - kept.length;
    for (let i = 0; i < across; i++) {
      const x = i * (side_ + gap),
        at = i - first;
      if (at < 0) {
        c.fillStyle = colour(1, 0.15);
        c.fillRect(x, 0, side_, side_);
        continue;
      }
      const level = levels[levels.length - kept.length + at] ?? 0,
        sigma = sigmas[Math.round(100 * level)] ?? 0;
      const signal = 1 / Math.hypot(1, sigma),
        share = sigma * signal,
        pixels = kept[at];
      for (let p = 0, q = 0; p < pixels.length; p += 3, q += 4) {
        for (let k = 0; k < 3; k++)
          image.data[q + k] =
            127.5 + signal * (pixels[p + k] - 127.5) + 127.5 * share * noise[(p + k + 37 * i) % noise.length];
        image.data[q + 3] = 255;
      }
      brush.putImageData(image, 0, 0);
      c.drawImage(small, x, 0, side_, side_);
      c.fillStyle = colour(level);
      c.fillRect(x, side_ + 3, side_, 5);
    }
  }

  return {
    first: ["frame"],
    heard: {
      world(header) {
        ({ size, sigmas, steps } = header);
        window_ = header.window;
        count.max = header.most;
        count.value = steps;
        noise_ = header.noise;
        doubt.value = Math.round(100 * noise_);
        truth.element.disabled = !header.truth;
        truth.element.title = header.why;
        if (truth.on && header.truth) say({ do: "truth", on: true });
        if (wander.on) say({ do: "wander", on: true });
      },
      begin(header, data) {
        const one = size * size * 3;
        kept = Array.from({ length: header.frames }, (_, i) => new Uint8Array(data, i * one, one)).slice(-window_);
        levels = header.levels;
        schedule();
        strip.redraw();
      },
      memory(header) {
        levels = header.levels;
        schedule();
        strip.redraw();
      },
      frame(header, data) {
        const one = size * size * 3;
        for (let i = 0; i < header.pictures; i++) screens[i].show(new Uint8Array(data, i * one, one));
        if (!header.again) {
          kept = [...kept, new Uint8Array(data, 0, one)].slice(-window_);
          levels = header.levels;
          frame = header.frame;
          measure(header.ms);
          schedule();
          strip.redraw();
        }
        if (sent.has(header.key)) {
          delays.push(performance.now() - sent.get(header.key));
          sent.clear();
          const last = delays.slice(-20).sort((a, b) => a - b);
          facts.delay.textContent = last[Math.floor(last.length / 2)].toFixed(0);
        }
        stage.dataset.frame = header.frame;
        requestAnimationFrame(() => say({ do: "seen", frame: header.frame }));
      },
      clip(_, data) {
        const href = URL.createObjectURL(new Blob([data], { type: "video/mp4" }));
        h("a", { href, download: "dream.mp4" }).click();
        setTimeout(() => URL.revokeObjectURL(href), 10000);
      },
    },
    state(now) {
      if (now === "ready") return;
      wipe();
      pause.set(false);
      record.set(false);
    },
  };
}
