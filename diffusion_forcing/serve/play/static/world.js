// The world view: keys to the model, its frames to a canvas, and the frames that it remembers with the noise they are shown at.
import { about, button, colour, drawing, h, matrix, panel, slider, t, toggle } from "/static/ui.js";

const KEYS = {
  ArrowUp: "forward",
  KeyW: "forward",
  ArrowLeft: "left",
  KeyA: "left",
  ArrowRight: "right",
  KeyD: "right",
};
const ARROWS = { left: "←", forward: "↑", right: "→" };

export function mount({ stage, side, say }) {
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
    const canvas = h("canvas.screen", { width: size, height: size, role: "img", "aria-label": name });
    return { canvas, figure: h("figure", {}, canvas, h("figcaption", {}, name)) };
  });
  screens[1].figure.hidden = true;
  const hint = h("span.hint", {}, t("Hold ↑ or W"));
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
  const wander = toggle(t("Wander by itself"), (on) => say({ do: "wander", on }), { key: "G" });
  const pause = toggle(t("Pause"), (on) => say({ do: "pause", on }), { key: "P" });
  const record = toggle(t("Record a clip"), (on) => say({ do: "record", on }), { key: "R" });
  const actions = {
    KeyT: () => truth.element.click(),
    KeyG: () => wander.element.click(),
    KeyP: () => pause.element.click(),
    KeyR: () => record.element.click(),
    KeyN: () => {
      wipe();
      say({ do: "new" });
    },
    KeyF: () => say({ do: "forget" }),
    Period: () => say({ do: "step" }),
  };
  const pace = () => say({ do: "pace", steps: count.value, fps: speed.value, noise: doubt.value / 100 });
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
    change: pace,
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
    } else if (event.code in actions && !event.repeat) actions[event.code]();
  }
  function up(event) {
    if (event.code in KEYS) hold(KEYS[event.code], false);
  }
  function release() {
    for (const key of [...held]) hold(key, false);
  }
  addEventListener("keydown", down);
  addEventListener("keyup", up);
  addEventListener("blur", release);

  // ---------------------------------------------------------------- what comes
  function draw(screen, bytes) {
    const image = new ImageData(size, size);
    for (let i = 0, j = 0; i < bytes.length; i += 3, j += 4) {
      image.data[j] = bytes[i];
      image.data[j + 1] = bytes[i + 1];
      image.data[j + 2] = bytes[i + 2];
      image.data[j + 3] = 255;
    }
    screen.canvas.getContext("2d").putImageData(image, 0, 0);
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
    heard(header, data) {
      switch (header.type) {
        case "world":
          ({ size, sigmas, steps } = header);
          window_ = header.window;
          for (const { canvas } of screens) Object.assign(canvas, { width: size, height: size });
          count.value = steps;
          doubt.value = Math.round(100 * header.noise);
          truth.element.disabled = !header.truth;
          truth.element.title = header.why;
          if (truth.on && header.truth) say({ do: "truth", on: true });
          if (wander.on) say({ do: "wander", on: true });
          break;
        case "begin":
          kept = Array.from(
            { length: header.frames },
            (_, i) => new Uint8Array(data, i * size * size * 3, size * size * 3),
          ).slice(-window_);
          levels = header.levels;
          schedule();
          strip.redraw();
          break;
        case "memory":
          levels = header.levels;
          schedule();
          strip.redraw();
          break;
        case "frame": {
          const one = size * size * 3;
          for (let i = 0; i < header.pictures; i++) draw(screens[i], new Uint8Array(data, i * one, one));
          if (!header.again) {
            kept = [...kept, new Uint8Array(data, 0, one)].slice(-window_);
            levels = header.levels;
            frame = header.frame;
            const now = performance.now();
            if (now - (drawn.at(-1) ?? 0) > 1000) drawn.length = 0; // it stood still
            drawn.push(now);
            if (drawn.length > 20) drawn.shift();
            facts.fps.textContent =
              drawn.length > 1 ? ((1000 * (drawn.length - 1)) / (now - drawn[0])).toFixed(0) : "–";
            facts.ms.textContent = header.ms.toFixed(0);
            schedule();
            strip.redraw();
          }
          if (sent.has(header.key)) {
            delays.push(performance.now() - sent.get(header.key));
            sent.clear();
            facts.delay.textContent = delays
              .slice(-20)
              .sort((a, b) => a - b)
              [Math.floor(Math.min(20, delays.length) / 2)].toFixed(0);
          }
          stage.dataset.frame = header.frame;
          requestAnimationFrame(() => say({ do: "seen", frame: header.frame }));
          break;
        }
        case "clip": {
          const link = h("a", {
            href: URL.createObjectURL(new Blob([data], { type: "video/mp4" })),
            download: "dream.mp4",
          });
          link.click();
          setTimeout(() => URL.revokeObjectURL(link.href), 10000);
          break;
        }
      }
    },
    state(now) {
      if (now !== "ready") {
        wipe();
        pause.set(false);
        record.set(false);
      }
    },
    leave() {
      removeEventListener("keydown", down);
      removeEventListener("keyup", up);
      removeEventListener("blur", release);
    },
  };
}
