// The plan view: a maze to click in, the plan's rows as they condense, and the ball.
import { about, button, choice, colour, drawing, h, ink, matrix, panel, select, slider, t } from "/static/ui.js";

const ROW_MS = 45,
  STEPS_A_MS = 0.12;

export function mount({ stage, side, say, signal }) {
  let maze = null,
    start = [0, 0],
    goal = [0, 0],
    tool = "goal",
    cursor = null,
    seed = 0;
  let schedule = [],
    top = 1,
    rows = [],
    shown = null,
    shownAt = 0,
    plans = [],
    plan = null,
    first = null,
    ball = [],
    ballAt = 0,
    received = 0,
    end = null,
    wished = false,
    building = false;

  // ---------------------------------------------------------------- pictures
  const picture = drawing(
    "maze",
    {
      tabIndex: 0,
      role: "application",
      "aria-label": t("Maze: move with the arrow keys, Enter sets the chosen point"),
    },
    paint,
  );
  const result = h("p.result", { role: "status" });
  stage.append(h("div.maze-box", {}, picture.element, result));
  const rowsMatrix = matrix(t("Scheduling matrix"), [t("now"), t("the plan's end")]);

  // ---------------------------------------------------------------- controls
  const mazes = select(t("Maze"), [["medium", t("medium")]], "medium", (name) => say({ do: "maze", maze: name }));
  const tools = choice(
    t("A click sets"),
    [
      ["goal", t("goal")],
      ["start", t("start")],
      ["wall", t("walls")],
    ],
    "goal",
    (id) => {
      tool = id;
    },
  );
  const shapes = choice(
    t("Scheduling: which tokens lose their noise first"),
    [
      ["full_sequence", t("all at once")],
      ["pyramid", t("pyramid")],
      ["trapezoid", t("trapezoid")],
      ["autoregressive", t("one by one")],
    ],
    "full_sequence",
    ask,
  );
  shapes.element.classList.add("two");
  const guidance = slider(t("Guidance to the goal"), { min: 0, max: 8, step: 0.5, value: 3, change: ask });
  const levels = slider(t("Noise levels"), { min: 2, max: 50, value: 10, change: ask });
  const candidates = slider(t("Candidates"), { min: 1, max: 16, value: 1, change: ask });
  const again = button(
    t("Plan again"),
    () => {
      seed += 1;
      ask();
    },
    { kind: "main" },
  );
  const reset = button(t("Restore walls"), () => maze && say({ do: "maze", maze: maze.name }));
  side.append(
    panel("", mazes.element, tools.element, h("div.buttons", {}, again, reset)),
    panel(
      "",
      rowsMatrix.element,
      about(
        t(
          "A plan is a row of tokens, each some steps of the way with a noise level of its own. The scheduling matrix says in which order they lose their noise: each row is one denoising step.",
        ),
        t(
          "All at once is full-sequence diffusion; one by one is next-token prediction; pyramid and trapezoid are between: the near future is settled while the far one is still open.",
        ),
      ),
    ),
    panel(t("Sampling"), shapes.element, guidance.element, levels.element, candidates.element),
  );

  function tell(text, kind = "") {
    result.textContent = text;
    result.className = `result ${kind}`;
  }
  function clear() {
    rows = [];
    plans = [];
    ball = [];
    shown = plan = first = end = null;
    ballAt = received = 0;
    tell(t("Planning …"));
  }
  function ask() {
    if (!maze) return;
    clear();
    wished = true;
    say({
      do: "plan",
      start: metres(start),
      goal: metres(goal),
      matrix: shapes.value,
      rows: levels.value,
      guidance: guidance.value,
      candidates: candidates.value,
      seed,
    });
    picture.redraw();
  }

  // ---------------------------------------------------------------- the maze's places
  function scale(width, height) {
    const across = maze.rows[0].length,
      down = maze.rows.length,
      cell = Math.min(width / across, height / down);
    return { cell, left: (width - across * cell) / 2, top: (height - down * cell) / 2 };
  }
  // Positions are in metres, x down the rows and y along the columns; cell (i, j) is centred at unit · (i, j) + offset.
  const metres = ([i, j]) => [maze.unit * i + maze.offset, maze.unit * j + maze.offset];
  function place([x, y], { cell, left, top: above }) {
    return [left + ((y - maze.offset) / maze.unit + 0.5) * cell, above + ((x - maze.offset) / maze.unit + 0.5) * cell];
  }
  function cellAt(event) {
    const box = picture.element.getBoundingClientRect(),
      s = scale(box.width, box.height);
    return [
      Math.floor((event.clientY - box.top - s.top) / s.cell),
      Math.floor((event.clientX - box.left - s.left) / s.cell),
    ];
  }
  const inside = ([i, j]) => i > 0 && j > 0 && i < maze.rows.length - 1 && j < maze.rows[0].length - 1;
  const isWall = ([i, j]) => maze.rows[i][j] === "#";
  const same = (a, b) => a[0] === b[0] && a[1] === b[1];

  function use(cell, what = tool) {
    if (!maze || !inside(cell)) return;
    if (what === "wall") {
      if ([start, goal].some((point) => same(point, cell))) return;
      const drawn = maze.rows.map((row, i) =>
        i === cell[0] ? row.slice(0, cell[1]) + (isWall(cell) ? "O" : "#") + row.slice(cell[1] + 1) : row,
      );
      building = true;
      say({ do: "maze", maze: maze.name, rows: drawn });
    } else if (isWall(cell)) tell(t("That is a wall: click a free place."), "bad");
    else {
      if (what === "start") start = cell;
      else goal = cell;
      ask();
    }
  }
  picture.element.addEventListener("pointerdown", (event) => {
    if (!maze) return;
    cursor = null;
    use(cellAt(event), event.shiftKey ? "start" : tool);
  });
  picture.element.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.code];
    if (!maze || (!move && event.code !== "Enter" && event.code !== "Space")) return;
    event.preventDefault();
    cursor = cursor ?? [...goal];
    if (move) {
      const next = [cursor[0] + move[0], cursor[1] + move[1]];
      if (inside(next)) cursor = next;
    } else use(cursor, event.shiftKey ? "start" : tool);
    picture.redraw();
  });
  picture.element.addEventListener("blur", () => {
    cursor = null;
    picture.redraw();
  });

  // ---------------------------------------------------------------- drawing
  function path(c, points, s, from = 0, to = points.length / 2) {
    c.beginPath();
    for (let k = from; k < to; k++) {
      const [x, y] = place([points[2 * k], points[2 * k + 1]], s);
      if (k > from) c.lineTo(x, y);
      else c.moveTo(x, y);
    }
  }
  function paint(c, width, height) {
    if (!maze) return;
    const s = scale(width, height);
    c.fillStyle = ink("floor");
    c.fillRect(s.left, s.top, s.cell * maze.rows[0].length, s.cell * maze.rows.length);
    c.fillStyle = ink("wall");
    maze.rows.forEach((row, i) =>
      [...row].forEach((mark, j) => {
        if (mark === "#") c.fillRect(s.left + j * s.cell - 0.3, s.top + i * s.cell - 0.3, s.cell + 0.6, s.cell + 0.6);
      }),
    );
    c.save();
    c.beginPath();
    c.rect(s.left, s.top, s.cell * maze.rows[0].length, s.cell * maze.rows.length);
    c.clip();
    c.lineCap = c.lineJoin = "round";
    if (shown && !plan) {
      // A row: every point in the colour of its token's noise, the line fading in as the noise goes.
      const length = shown.points.length / shown.count / 2;
      for (let n = 0; n < shown.count; n++) {
        const points = shown.points.subarray(2 * n * length, 2 * (n + 1) * length);
        for (let k = 0; k < length; k++) {
          const level =
            shown.levels[Math.min(shown.levels.length - 1, Math.floor((k / length) * shown.levels.length))] / top;
          const [x, y] = place([points[2 * k], points[2 * k + 1]], s);
          if (k) {
            const [px, py] = place([points[2 * k - 2], points[2 * k - 1]], s);
            c.strokeStyle = colour(level, (0.05 + 0.75 * (1 - level) ** 3) / Math.sqrt(shown.count));
            c.lineWidth = Math.max(1.5, s.cell / 22);
            c.beginPath();
            c.moveTo(px, py);
            c.lineTo(x, y);
            c.stroke();
          }
          c.fillStyle = colour(level, shown.count > 1 ? 0.6 : 0.95);
          c.beginPath();
          c.arc(x, y, Math.max(2, s.cell / 26), 0, 7);
          c.fill();
        }
      }
    }
    if (plan) {
      plan.all.forEach((points, n) => {
        if (n === plan.best) return;
        path(c, points, s);
        c.strokeStyle = plan.valid[n] ? colour(0.33, 0.45) : colour(1, 0.4);
        c.lineWidth = Math.max(1, s.cell / 40);
        c.stroke();
      });
      path(c, plan.all[plan.best], s);
      c.strokeStyle = colour(0);
      c.lineWidth = Math.max(2.5, s.cell / 14);
      c.stroke();
      path(c, plan.all[plan.best], s);
      c.strokeStyle = colour(0.33);
      c.lineWidth = Math.max(1, s.cell / 40);
      c.stroke();
    }
    const at = Math.floor(ballAt);
    if (ball.length) {
      path(c, ball, s, 0, Math.min(ball.length / 2, at + 1));
      c.strokeStyle = ink("ink");
      c.lineWidth = Math.max(1.5, s.cell / 34);
      c.stroke();
    }
    c.restore();

    const [gx, gy] = place(metres(goal), s);
    c.strokeStyle = "#d4342c";
    c.lineWidth = 2;
    c.setLineDash([4, 4]);
    c.beginPath();
    c.arc(gx, gy, (maze.radius / maze.unit) * s.cell, 0, 7);
    c.stroke();
    c.setLineDash([]);
    c.fillStyle = "#d4342c";
    c.beginPath();
    for (let k = 0; k < 10; k++) {
      const r = s.cell * (k % 2 ? 0.09 : 0.21),
        a = -Math.PI / 2 + (k * Math.PI) / 5;
      c.lineTo(gx + r * Math.cos(a), gy + r * Math.sin(a));
    }
    c.fill();
    const [sx, sy] = place(metres(start), s);
    c.fillStyle = "#1a8754";
    c.beginPath();
    c.arc(sx, sy, s.cell * 0.13, 0, 7);
    c.fill();
    if (ball.length) {
      const k = Math.min(ball.length / 2 - 1, at),
        [x, y] = place([ball[2 * k], ball[2 * k + 1]], s);
      c.fillStyle = ink("ink");
      c.strokeStyle = ink("floor");
      c.lineWidth = 2;
      c.beginPath();
      c.arc(x, y, s.cell * 0.16, 0, 7);
      c.fill();
      c.stroke();
    }
    if (cursor) {
      c.strokeStyle = ink("accent");
      c.lineWidth = 3;
      c.strokeRect(s.left + cursor[1] * s.cell + 2, s.top + cursor[0] * s.cell + 2, s.cell - 4, s.cell - 4);
    }
  }

  // Rows come faster than one can look: they are shown one after the other, then the plans, then the ball.
  function tick(now) {
    if (signal.aborted) return;
    requestAnimationFrame(tick);
    if (rows.length) {
      if (now - shownAt < Math.max(8, Math.min(ROW_MS, 2500 / schedule.length))) return;
      shown = rows.shift();
      if (shown.row >= schedule.length)
        schedule = [...schedule, ...Array.from({ length: shown.row - schedule.length + 1 }, () => shown.levels)];
      drawSchedule(shown.row, t("row {n} of {all}", { n: shown.row, all: schedule.length - 1 }));
    } else if (plans.length && (!plan || plans[0].from <= ballAt)) {
      plan = plans.shift();
      first = first ?? plan;
    } else if (plan && ballAt < ball.length / 2 - 1) {
      const far = ballAt + Math.min(60, now - shownAt) * STEPS_A_MS;
      ballAt = Math.min(ball.length / 2 - 1, far, ...(plans.length ? [plans[0].from] : []));
    } else {
      shownAt = now;
      if (!end || end.told) return;
      end.told = true;
      plan = first; // beside the way that was driven: of the last one only the rest is left
      if (end.arrived) tell(t("Goal reached after {n} steps. Click another goal.", { n: end.step }), "good");
      else tell(t("Goal not reached in {n} steps.", { n: end.step }), "bad");
    }
    shownAt = now;
    picture.redraw();
  }
  requestAnimationFrame(tick);
  const drawSchedule = (row, text) =>
    rowsMatrix.set(
      schedule.map((levels) => levels.map((level) => level / top)),
      row,
      text,
    );

  return {
    first: ["maze"],
    heard: {
      mazes: (header) =>
        mazes.fill(
          header.mazes.map((name) => [name, t(name)]),
          header.chosen,
        ),
      maze(header) {
        const kept = maze && maze.name === header.name && !isWallIn(header.rows, start) && !isWallIn(header.rows, goal);
        maze = header;
        building = false;
        reset.disabled = !header.changed;
        if (!kept) {
          ({ start, goal } = header);
          shapes.value = header.matrix;
          guidance.value = header.guidance;
          levels.value = header.sampling_rows;
          candidates.value = header.candidates;
          guidance.input.disabled = !header.guided;
          ask();
        } else if (wished) ask();
        stage.dataset.maze = header.name;
        picture.redraw();
      },
      schedule(header, data) {
        const bytes = new Uint8Array(data);
        clear();
        top = header.top;
        schedule = Array.from({ length: header.rows }, (_, r) => [
          ...bytes.subarray(r * header.tokens, (r + 1) * header.tokens),
        ]);
        drawSchedule(0);
      },
      row: ({ row, levels, candidates: count }, data) =>
        rows.push({ row, levels, count, points: new Float32Array(data) }),
      plan({ number, best, valid, until, candidates: all }, data) {
        const points = new Float32Array(data),
          length = points.length / all;
        const ways = until.map((steps, n) => points.subarray(n * length, n * length + 2 * steps));
        plans.push({ best, valid, from: received, all: ways });
        stage.dataset.plan = number;
        if (number) return;
        if (all > 1) {
          const n = valid.filter(Boolean).length;
          tell(t("{n} of {all} candidates stay clear of the walls; the best one is followed.", { n, all }));
        } else tell(t("The ball follows the plan."));
      },
      ball(header, data) {
        ball = [...ball, ...new Float32Array(data)];
        received += header.steps;
      },
      end(header) {
        end = header;
        stage.dataset.end = header.arrived;
      },
    },
    failed(text) {
      tell(text, "bad");
      if (!building) return;
      building = false;
      ask(); // the walls stay as they were, and so does the question
    },
  };
}

const isWallIn = (rows, [i, j]) => !rows[i] || rows[i][j] === "#" || rows[i][j] === undefined;
