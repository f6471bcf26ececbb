// The robot view: two cameras to cover, what the policy saw and expected, and the noise of what it remembers.
import { about, button, colour, drawing, h, legend, panel, slider, t, toggle } from "/static/ui.js";

const NAMES = { front: "front camera", over: "camera above" };

export function mount({ stage, side, say }) {
  let facts = {
      cameras: ["front", "over"],
      pixels: 256,
      size: 32,
      window: 40,
      timesteps: 1000,
      stack: 15,
      most: 135,
      rows: 25,
    },
    levels = [],
    swapped = 0,
    played = 0;

  // ---------------------------------------------------------------- pictures
  const cameras = [0, 1].map((number) => {
    const canvas = h("canvas", { width: 256, height: 256 }),
      lid = h("span.lid", { hidden: true }, t("covered")),
      tag = h("span.tag", {}, "");
    const element = h(
      "button.camera",
      {
        type: "button",
        "aria-pressed": "false",
        onclick: () => say({ do: "cover", camera: number, on: element.getAttribute("aria-pressed") !== "true" }),
      },
      canvas,
      lid,
      tag,
    );
    return { canvas, lid, tag, element };
  });
  const eyes = ["sees", "sees", "expects", "expects"].map((what) => {
    const canvas = h("canvas", { width: 32, height: 32, role: "img", "aria-label": t(what) });
    return { canvas, figure: h("figure", {}, canvas, h("figcaption", {}, t(`it ${what}`))) };
  });
  const score = h("p.score", { role: "status" });
  stage.append(
    h("div.cameras", {}, ...cameras.map((one) => one.element)),
    score,
    h("div.eyes", {}, ...eyes.map((one) => one.figure)),
  );

  // ---------------------------------------------------------------- controls
  const play = toggle(t("Play"), (on) => say({ do: "play", on }), { on: true });
  const box = toggle(t("Drop a box"), (on) => say({ do: "distractor", on }));
  const amnesia = toggle(t("No memory at all"), (on) => say({ do: "amnesia", on }));
  const forget = button(t("Wipe its memory"), () => say({ do: "forget" }));
  const fresh = button(t("New episode"), () => say({ do: "new" }), { kind: "main" });
  const speed = slider(t("Speed"), {
    min: 0.5,
    max: 4,
    step: 0.5,
    value: 1,
    show: (v) => `${v}×`,
    change: (v) => say({ do: "speed", speed: v }),
  });
  const memory = drawing(
    "matrix.remembered",
    { role: "img", "aria-label": t("Noise level of each part of each remembered token") },
    (c, width, height) => {
      const across = Math.max(facts.most / facts.stack + 1, levels.length),
        cell = { w: width / across, h: height / (facts.cameras.length + 1) };
      for (let i = 0; i < across; i++)
        for (let j = 0; j <= facts.cameras.length; j++) {
          const level = levels[i]?.[j];
          c.fillStyle =
            level === undefined
              ? colour(1, 0.12)
              : colour(level / (facts.timesteps - 1), i === levels.length - 1 ? 1 : 0.6);
          c.fillRect(i * cell.w, j * cell.h, cell.w - 2, cell.h - 2);
        }
    },
  );
  side.append(
    panel(
      t("Disturb it"),
      h("div.buttons", {}, play.element, fresh, forget, amnesia.element, box.element),
      speed.element,
    ),
    panel(
      "",
      h("h3", {}, t("Its memory: one column per decision")),
      memory.element,
      h("div.ends", {}, h("span", {}, t("rows: front camera, camera above, actions"))),
      legend(),
      about(
        t(
          "A token is what both cameras saw and the actions that led there; each of these parts has a noise level of its own. A covered camera is shown to the model as pure noise, and labelled so: it then trusts the other parts and its memory.",
        ),
        t(
          "Without memory the middle of the task looks like its beginning: the third slot holds a fruit, and nothing says which fruit goes next. Then it fails.",
        ),
      ),
    ),
  );

  function draw(canvas, data, offset, size) {
    if (canvas.width !== size) Object.assign(canvas, { width: size, height: size });
    const bytes = new Uint8Array(data, offset, size * size * 3),
      image = new ImageData(size, size);
    for (let i = 0, j = 0; i < bytes.length; i += 3, j += 4) {
      image.data[j] = bytes[i];
      image.data[j + 1] = bytes[i + 1];
      image.data[j + 2] = bytes[i + 2];
      image.data[j + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
  const slot = (number) => (number < 0 ? t("in hand") : t("slot {n}", { n: number + 1 }));

  return {
    heard(header, data) {
      switch (header.type) {
        case "robot":
          facts = header;
          played = swapped = 0;
          for (const one of [play, box, amnesia]) one.set(one === play);
          speed.value = 1;
          cameras.forEach(({ tag, element }, i) => {
            tag.textContent = t(NAMES[facts.cameras[i]] ?? "");
            element.setAttribute("aria-label", t("Cover the {name}", { name: tag.textContent }));
          });
          break;
        case "episode":
          levels = [];
          memory.redraw();
          stage.dataset.episode = header.seed;
          break;
        case "forgot":
          levels = [];
          memory.redraw();
          break;
        case "decision": {
          const one = facts.size ** 2 * 3;
          eyes.forEach(({ canvas }, i) => draw(canvas, data, i * one, facts.size));
          levels = header.levels;
          memory.redraw();
          stage.dataset.decisions = (+stage.dataset.decisions || 0) + 1;
          break;
        }
        case "scene":
          cameras.forEach(({ canvas, lid, element }, i) => {
            draw(canvas, data, i * facts.pixels ** 2 * 3, facts.pixels);
            lid.hidden = !header.covered[i];
            element.setAttribute("aria-pressed", String(header.covered[i]));
          });
          if (header.over && score.dataset.over !== "true") {
            played += 1;
            swapped += header.success ? 1 : 0;
          }
          score.dataset.over = header.over;
          score.replaceChildren(
            h("span", {}, `${t("apple")} `, h("b", {}, slot(header.fruits[0])), ` → ${slot(header.slots[1])}`),
            h("span", {}, `${t("orange")} `, h("b", {}, slot(header.fruits[1])), ` → ${slot(header.slots[0])}`),
            h("span", {}, `${t("actions")} `, h("b", {}, `${header.actions}/${facts.most}`)),
            h("span", {}, `${t("episodes swapped")} `, h("b", {}, `${swapped}/${played}`)),
            header.over
              ? h(
                  `b.${header.success ? "good" : "bad"}`,
                  {},
                  header.success ? t("Done: both fruits have changed places.") : t("Not done in time."),
                )
              : "",
          );
          break;
      }
    },
  };
}
