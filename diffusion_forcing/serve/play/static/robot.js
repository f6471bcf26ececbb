// The robot view: two cameras to cover, what the policy saw and expected, and the noise of what it remembers.
import { about, button, colour, drawing, h, legend, panel, screen, slider, switches, t, toggle } from "/static/ui.js";

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
    const { element: canvas, show } = screen("canvas"),
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
    return { show, lid, tag, element };
  });
  const eyes = ["sees", "sees", "expects", "expects"].map((what) => {
    const { element, show } = screen("canvas", t(what));
    return { show, figure: h("figure", {}, element, h("figcaption", {}, t(`it ${what}`))) };
  });
  const score = h("p.score", { role: "status" });
  stage.append(
    h("div.cameras", {}, ...cameras.map((one) => one.element)),
    score,
    h("div.eyes", {}, ...eyes.map((one) => one.figure)),
  );

  // ---------------------------------------------------------------- controls
  const tell = switches(say);
  const pause = toggle(t("Pause"), (on) => say({ do: "play", on: !on }));
  const box = tell(t("Drop a box"), "distractor");
  const amnesia = tell(t("No memory at all"), "amnesia");
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
      h("div.buttons", {}, pause.element, fresh, forget, amnesia.element, box.element),
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

  const slot = (number) => (number < 0 ? t("in hand") : t("slot {n}", { n: number + 1 }));

  const where = (fruit, now, aim) => h("span", {}, `${fruit}: `, h("b", {}, slot(now)), ` → ${slot(aim)}`);
  const blank = () => {
    levels = [];
    memory.redraw();
  };

  return {
    first: ["scene"],
    heard: {
      robot(header) {
        facts = header;
        played = swapped = 0;
        for (const one of [pause, box, amnesia]) one.set(false);
        speed.value = 1;
        cameras.forEach(({ tag, element }, i) => {
          tag.textContent = t(NAMES[facts.cameras[i]] ?? "");
          element.setAttribute("aria-label", t("Cover the {name}", { name: tag.textContent }));
        });
      },
      episode(header) {
        blank();
        stage.dataset.episode = header.seed;
      },
      forgot: blank,
      decision(header, data) {
        const one = facts.size ** 2 * 3;
        eyes.forEach(({ show }, i) => show(new Uint8Array(data, i * one, one)));
        levels = header.levels;
        memory.redraw();
        stage.dataset.decisions = (+stage.dataset.decisions || 0) + 1;
      },
      scene(header, data) {
        const one = facts.pixels ** 2 * 3,
          { success, over, fruits, slots } = header;
        cameras.forEach(({ show, lid, element }, i) => {
          show(new Uint8Array(data, i * one, one));
          lid.hidden = !header.covered[i];
          element.setAttribute("aria-pressed", String(header.covered[i]));
        });
        if (over && score.dataset.over !== "true") {
          played += 1;
          swapped += success ? 1 : 0;
        }
        score.dataset.over = over;
        const end = success ? t("Done: both fruits have changed places.") : t("Not done in time.");
        score.replaceChildren(
          where(t("apple"), fruits[0], slots[1]),
          where(t("orange"), fruits[1], slots[0]),
          h("span", {}, `${t("actions")} `, h("b", {}, `${header.actions}/${facts.most}`)),
          h("span", {}, `${t("episodes swapped")} `, h("b", {}, `${swapped}/${played}`)),
          over ? h(`b.${success ? "good" : "bad"}`, {}, end) : "",
        );
      },
    },
  };
}
