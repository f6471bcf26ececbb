// The forecast view: a fan chart whose future can be dragged, the series that follow, and a table to drop.
import { about, button, drawing, h, ink, matrix, panel, select, slider, t, toast, toggle } from "/static/ui.js";

const BANDS = [
  [0, 6, 0.18],
  [1, 5, 0.2],
  [2, 4, 0.3],
]; // quantiles 5–95, 10–90, 25–75 %, and how dark

export function mount({ stage, side, say, token, signal }) {
  let names = [],
    data = null,
    found = null,
    before = null,
    series = 0,
    known = [],
    window_ = 0,
    trained = false,
    drag = null,
    cursor = null,
    busy = false,
    fresh = true;

  // ---------------------------------------------------------------- charts
  const chart = drawing(
    "chart",
    {
      tabIndex: 0,
      role: "application",
      "aria-label": t(
        "Fan chart: left and right choose a future step, up and down move its value, Enter gives it, Delete releases it",
      ),
    },
    (c, w, height) => paint(c, w, height, series, true),
  );
  const small = [0, 1, 2].map((i) => ({
    name: h("h3", {}, " "),
    ...drawing(
      "chart.small-chart",
      { role: "img", "aria-label": t("Another series") },
      (c, w, height) => others()[i] !== undefined && paint(c, w, height, others()[i], false),
    ),
  }));
  const picked = select(t("Series"), [["0", "–"]], "0", (value) => {
    series = +value;
    cursor = null;
    redraw();
  });
  const windows = select(t("Forecast from"), [["0", "–"]], "0", (value) => {
    window_ = +value;
    known = [];
    before = null;
    ask();
  });
  const note = h("p.result", { role: "status" }, t("Reading the data …"));
  const bands = h(
    "div.bands",
    {},
    h("span.b50", {}, "50 %"),
    h("span.b80", {}, "80 %"),
    h("span.b90", {}, "90 %"),
    h("span.given", {}, t("given by you")),
    h("span.seen", {}, t("observed")),
  );
  const source = h("p.note.source", {}, "\u00a0");
  stage.append(
    source,
    h("div.chart-tools", {}, picked.element, windows.element),
    chart.element,
    bands,
    note,
    h("h3", {}, t("The other series follow: those that moved most, and the sum")),
    h("div.eyes.three", {}, ...small.map((one) => h("div", {}, one.name, one.element))),
  );

  // ---------------------------------------------------------------- controls
  const truth = toggle(t("What happened"), () => redraw());
  const paths = slider(t("Sample paths"), { min: 10, max: 200, step: 10, value: 50, change: () => ask() });
  const release = button(t("Remove points"), () => {
    known = [];
    ask();
  });
  const naive = select(
    t("Forecast by"),
    [
      ["model", t("the model")],
      ["seasonal", t("the last season again")],
      ["walk", t("a random walk")],
    ],
    "model",
    () => ask(),
  );
  const input = h("input", {
    type: "file",
    accept: ".csv,.tsv,.txt,text/csv",
    "aria-label": t("A CSV file of series"),
    onchange: () => input.files[0] && upload(input.files[0]),
  });
  const drop = h("label.drop", {}, t("Drop a CSV here, or choose one"), input);
  const seconds = slider(t("Seconds of training"), { min: 5, max: 120, step: 5, value: 30 });
  const bar = h("progress", { max: 1, value: 0, "aria-label": t("Training") });
  const train = button(
    t("Train a small model"),
    () => {
      if (busy) {
        say({ do: "stop" });
        return;
      }
      bar.value = 0;
      busy = true;
      train.firstChild.textContent = t("Stop here");
      say({ do: "train", seconds: seconds.value });
    },
    { kind: "main" },
  );
  const back = button(t("The shipped data"), () => say({ do: "shipped" }));
  const trainBox = h("div.training", { hidden: true }, seconds.element, train, bar, back);
  const steps = matrix(t("Noise levels of the future"), [t("first step"), t("last")]);
  side.append(
    panel(t("What if"), naive.element, paths.element, h("div.buttons", {}, truth.element, release)),
    panel(t("Your own data"), drop, trainBox),
    panel(
      "",
      steps.element,
      about(
        t(
          "Each step of time is a token. What is known has no noise. The shipped model samples one step after the other: the next falls from pure noise to clean, and those behind it still wait as noise. The model for tables of your own takes all steps down together.",
        ),
        t(
          "A point that you give is a token, or a part of one, without noise: the sampler keeps it and denoises the rest of the step until both agree, and every later step sees it.",
        ),
      ),
    ),
  );
  for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, dropped, { signal });
  function dropped(event) {
    event.preventDefault();
    drop.classList.toggle("over", event.type === "dragover");
    if (event.type === "drop" && event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  }
  async function upload(file) {
    note.textContent = t("Reading {name} …", { name: file.name });
    const name = file.name.replace(/[^\w.-]+/g, "_");
    const answer = await fetch("/series", {
      method: "POST",
      body: file,
      headers: { "X-Session": token(), "X-Name": name },
    });
    if (!answer.ok) toast((await answer.json()).detail ?? answer.statusText, "bad");
    input.value = "";
  }

  function ask() {
    if (!data) return;
    say({
      do: "forecast",
      window: window_,
      paths: paths.value,
      way: trained ? naive.input.value : naive.input.value === "model" ? "seasonal" : naive.input.value,
      known: canGive() ? known : [],
    });
  }
  const canGive = () => trained && naive.input.value === "model";
  function redraw() {
    chart.redraw();
    small.forEach((one, i) => {
      const n = others()[i];
      one.name.textContent = n === undefined ? " " : names[n];
      one.redraw();
    });
  }

  // ---------------------------------------------------------------- numbers
  // Of series s: history, seven quantiles and what was observed, as the server laid them out.
  function of(s, forecast = found) {
    const { history, horizon } = forecast,
      whole = history + 8 * horizon,
      row = forecast.values.subarray(s * whole, (s + 1) * whole);
    return {
      history: row.subarray(0, history),
      quantiles: Array.from({ length: 7 }, (_, q) => row.subarray(history + q * horizon, history + (q + 1) * horizon)),
      truth: row.subarray(history + 7 * horizon),
    };
  }
  // How wide the future of a series is for what its past moves.
  function width(s) {
    const { history, quantiles } = of(s),
      past = history.filter(Number.isFinite);
    const spread = Math.max(...past) - Math.min(...past);
    return quantiles[5].reduce((sum, v, k) => sum + v - quantiles[1][k], 0) / found.horizon / (spread || 1e-9);
  }
  // The single series, the one with the narrowest future first.
  function clearest() {
    const all = Array.from({ length: found.series - 1 }, (_, s) => [width(s), s]);
    return all.sort((a, b) => a[0] - b[0]).map(([, s]) => s);
  }
  // The small charts: the series that the given points moved most, and the sum.
  function others() {
    if (!found) return [];
    const sum = found.series - 1,
      moved = new Map();
    if (before && known.length && before.window === found.window)
      for (let s = 0; s < sum; s++) {
        const now = of(s).quantiles,
          then = of(s, before).quantiles;
        const shift = (k) => Math.abs(now[3][k] - then[3][k]) / (Math.abs(then[5][k] - then[1][k]) + 1e-9);
        moved.set(s, Array.from({ length: found.horizon }, (_, k) => shift(k)).reduce((a, b) => a + b, 0));
      }
    const order = clearest().filter((s) => s !== series);
    order.sort((a, b) => (moved.get(b) ?? 0) - (moved.get(a) ?? 0));
    return series === sum ? order.slice(0, 3) : [...order.slice(0, 2), sum];
  }

  let frame_ = null; // of the large chart: what a place on it means
  function paint(c, width, height, s, large) {
    if (!found) return;
    const { history, quantiles, truth: seen } = of(s),
      { horizon } = found,
      count = history.length + horizon;
    const left = large ? 58 : 8,
      right = 10,
      top = 10,
      bottom = large ? 26 : 8;
    const all = [
      ...history,
      ...quantiles[0],
      ...quantiles[6],
      ...(truth.on ? seen : []),
      ...(large ? known.filter((one) => one.series === s).map((one) => one.value) : []),
    ].filter(Number.isFinite);
    if (drag && large) all.push(drag.value);
    let low = Math.min(...all),
      high = Math.max(...all);
    if (large && frame_?.held) ({ low, high } = frame_);
    else {
      const room = (high - low || Math.abs(high) || 1) * 0.12;
      low -= room;
      high += room;
    }
    const x = (k) => left + ((k + 0.5) / count) * (width - left - right),
      y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
    if (large)
      frame_ = { ...frame_, low, high, x, y, left, right, top, bottom, width, height, count, history: history.length };
    c.font = "12px system-ui, sans-serif";
    if (large) {
      c.fillStyle = ink("soft");
      c.strokeStyle = ink("line");
      c.lineWidth = 1;
      for (const v of ticks(low, high)) {
        c.beginPath();
        c.moveTo(left, y(v));
        c.lineTo(width - right, y(v));
        c.stroke();
        c.textAlign = "right";
        c.textBaseline = "middle";
        c.fillText(short(v), left - 8, y(v));
      }
      const every = Math.ceil(count / Math.max(2, Math.floor(width / 130)));
      c.textAlign = "center";
      c.textBaseline = "top";
      for (let k = 0; k < count; k += every)
        if (x(k) > left + 30 && x(k) < width - 44) c.fillText(when(found.times[k]), x(k), height - bottom + 8);
    }
    const border = x(history.length - 0.5);
    c.fillStyle = ink("raised");
    c.globalAlpha = 0.6;
    c.fillRect(border, top, width - right - border, height - top - bottom);
    c.globalAlpha = 1;
    const line = (values, from, paint_) => {
      c.beginPath();
      let drawn = false;
      values.forEach((v, k) => {
        if (!Number.isFinite(v)) {
          drawn = false;
          return;
        }
        if (drawn) c.lineTo(x(from + k), y(v));
        else c.moveTo(x(from + k), y(v));
        drawn = true;
      });
      Object.assign(c, paint_);
      c.stroke();
    };
    c.lineJoin = "round";
    for (const [a, b, alpha] of BANDS) {
      c.beginPath();
      quantiles[a].forEach((v, k) => (k ? c.lineTo(x(history.length + k), y(v)) : c.moveTo(x(history.length), y(v))));
      for (let k = horizon - 1; k >= 0; k--) c.lineTo(x(history.length + k), y(quantiles[b][k]));
      c.globalAlpha = alpha;
      c.fillStyle = ink("accent");
      c.fill();
      c.globalAlpha = 1;
    }
    if (before && known.length && before.window === found.window && before.series === found.series) {
      c.setLineDash([3, 4]);
      line(of(s, before).quantiles[3], history.length, { strokeStyle: ink("soft"), lineWidth: 1.2 });
      c.setLineDash([]);
    }
    line(quantiles[3], history.length, { strokeStyle: ink("accent"), lineWidth: 2 });
    line(history, 0, { strokeStyle: ink("ink"), lineWidth: large ? 1.8 : 1.3 });
    if (truth.on) {
      c.setLineDash([5, 4]);
      line(seen, history.length, { strokeStyle: ink("ink"), lineWidth: 1.6 });
      c.setLineDash([]);
    }
    if (!large) return;
    if (canGive() && !known.length && !drag && !cursor) {
      const k = Math.round(horizon * 0.6);
      dot(c, x(history.length + k), y(quantiles[3][k]), "#e39a3b");
      Object.assign(c, { fillStyle: ink("ink"), strokeStyle: ink("surface"), lineWidth: 5, textAlign: "center" });
      c.font = "600 13px system-ui, sans-serif";
      const below = [t("drag it ↕"), x(history.length + k), y(quantiles[3][k]) + 14];
      c.strokeText(...below);
      c.fillText(...below);
    }
    for (const one of [...known.filter((k) => k.series === s), ...(drag ? [drag] : [])])
      dot(c, x(history.length + one.step), y(one.value), "#e39a3b");
    if (cursor) {
      const at = cursor.value;
      c.strokeStyle = ink("accent");
      c.lineWidth = 3;
      c.beginPath();
      c.arc(x(history.length + cursor.step), y(at), 9, 0, 7);
      c.stroke();
      dot(c, x(history.length + cursor.step), y(at), "#e39a3b");
    }
  }
  function dot(c, x, y, fill) {
    c.fillStyle = fill;
    c.strokeStyle = ink("surface");
    c.lineWidth = 2;
    c.beginPath();
    c.arc(x, y, 6.5, 0, 7);
    c.fill();
    c.stroke();
  }

  // ---------------------------------------------------------------- giving points
  function placeOf(event) {
    const box = chart.element.getBoundingClientRect(),
      f = frame_;
    const k = Math.floor(((event.clientX - box.left - f.left) / (f.width - f.left - f.right)) * f.count) - f.history;
    const share = 1 - (event.clientY - box.top - f.top) / (f.height - f.top - f.bottom);
    return { series, step: k, value: f.low + share * (f.high - f.low) };
  }
  function give(point) {
    if (series === found.series - 1) {
      toast(t("Choose a single series: the sum follows from them."));
      return;
    }
    known = [...known.filter((one) => one.series !== point.series || one.step !== point.step), point].slice(-64);
    ask();
  }
  chart.element.addEventListener("pointerdown", (event) => {
    if (!found) return;
    const point = placeOf(event);
    if (point.step < 0 || point.step >= found.horizon) return;
    if (!canGive()) {
      toast(
        trained
          ? t("Naive forecasts ignore given points; choose the model.")
          : t("Train a small model first: naive forecasts ignore given points."),
      );
      return;
    }
    chart.element.setPointerCapture(event.pointerId);
    cursor = null;
    drag = point;
    frame_.held = true;
    chart.redraw();
  });
  chart.element.addEventListener("pointermove", (event) => {
    if (drag) {
      drag = { ...placeOf(event), step: drag.step };
      chart.redraw();
    }
  });
  const drop_ = () => {
    if (!drag) return;
    const point = drag;
    drag = null;
    frame_.held = false;
    give(point);
  };
  chart.element.addEventListener("pointerup", drop_);
  chart.element.addEventListener("pointercancel", () => {
    drag = null;
    frame_.held = false;
    chart.redraw();
  });
  chart.element.addEventListener("keydown", (event) => {
    if (
      !found ||
      !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Enter", "Delete", "Backspace"].includes(event.code)
    )
      return;
    event.preventDefault();
    const value = (step) =>
      known.find((one) => one.series === series && one.step === step)?.value ?? of(series).quantiles[3][step];
    if (!cursor) {
      cursor = { step: 0, value: value(0) };
    } else if (event.code === "ArrowLeft" || event.code === "ArrowRight") {
      const step = Math.min(found.horizon - 1, Math.max(0, cursor.step + (event.code === "ArrowLeft" ? -1 : 1)));
      cursor = { step, value: value(step) };
    } else if (event.code === "ArrowUp" || event.code === "ArrowDown")
      cursor.value += (event.code === "ArrowUp" ? 1 : -1) * (frame_.high - frame_.low) * 0.03;
    else if (event.code === "Enter") {
      if (canGive()) give({ series, ...cursor });
      else toast(t("Train a small model first: naive forecasts ignore given points."));
    } else {
      known = known.filter((one) => one.series !== series || one.step !== cursor.step);
      ask();
    }
    chart.redraw();
  });
  chart.element.addEventListener("blur", () => {
    cursor = null;
    chart.redraw();
  });

  function levels(done, horizon, rows) {
    const columns = Array.from({ length: horizon }, (_, k) => k);
    if (data.together)
      steps.set(
        Array.from({ length: rows + 1 }, (_, row) => columns.map(() => 1 - row / rows)),
        Math.round((done / horizon) * rows),
        t("all {all} steps together, {rows} rows", { all: horizon, rows }),
      );
    else
      steps.set(
        Array.from({ length: horizon + 1 }, (_, row) => columns.map((k) => (k < row ? 0 : 1))),
        done,
        t("step {n} of {all}, {rows} rows each", { n: done, all: horizon, rows }),
      );
  }

  function rest() {
    busy = false;
    train.firstChild.textContent = t("Train a small model");
  }

  return {
    first: ["forecast", "nodata"],
    heard: {
      nodata({ why }) {
        note.textContent = t("The shipped data is not installed: {why} You can drop a CSV.", { why });
      },
      data(header) {
        data = header;
        known = [];
        before = found = null;
        series = 0;
        fresh = true;
        ({ window: window_, trained } = header);
        rest();
        names = [...header.names, t("sum of all")];
        const single = header.names.map((name, i) => [String(i), name]);
        picked.fill([[String(names.length - 1), names.at(-1)], ...single], "0");
        const last = header.begins.length - 1;
        const begins = header.begins.map((time, i) => [
          String(i),
          i === last ? t("{time} (behind the data)", { time: when(time, true) }) : when(time, true),
        ]);
        windows.fill(begins, String(window_));
        naive.input.value = trained ? "model" : "seasonal";
        naive.input.options[0].disabled = !trained;
        trainBox.hidden = !header.file;
        source.textContent = header.file
          ? t("Your table: {n} series", { n: header.names.length })
          : t("Electricity loads, hour by hour: {n} profiles of SimBench", { n: header.names.length });
        levels(0, header.horizon, header.rows);
        stage.dataset.trained = trained;
        if (!header.file) ask();
      },
      step({ done, total }) {
        levels(Math.round((done / total) * data.horizon), data.horizon, data.rows);
      },
      training(header) {
        bar.value = header.share;
        note.textContent = t("Training: {step} steps, loss {loss}", header);
        stage.dataset.training = header.share;
      },
      forecast(header, bytes) {
        found = { ...header, values: new Float32Array(bytes) };
        const given = header.known.length;
        if (!given) before = found;
        if (fresh) {
          fresh = false;
          series = clearest()[0];
          picked.input.value = String(series);
        }
        note.textContent = given
          ? t("Given points: {n}. The dashed line is the forecast without them.", { n: given })
          : t("{paths} paths in {seconds} s", header);
        levels(data.horizon, data.horizon, data.rows);
        release.disabled = !known.length;
        stage.dataset.forecast = header.way;
        stage.dataset.file = data.file;
        stage.dataset.known = given;
        stage.dataset.paths = header.paths;
        redraw();
      },
      note: ({ text }) => toast(text),
      idle: rest,
    },
    failed(text) {
      note.textContent = text;
    },
  };
}

function ticks(low, high) {
  const rough = (high - low) / 4,
    power = 10 ** Math.floor(Math.log10(rough)),
    step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) found.push(Math.abs(v) < step / 1e6 ? 0 : v);
  return found;
}
function short(v) {
  const size = Math.abs(v);
  return size >= 1e6
    ? `${+(v / 1e6).toPrecision(3)}M`
    : size >= 1e4
      ? `${+(v / 1e3).toPrecision(3)}k`
      : String(+v.toPrecision(3));
}
function when(time, whole = false) {
  const [day, hour = ""] = time.split("T"),
    clock = hour.slice(0, 5);
  return whole
    ? `${day}${clock && clock !== "00:00" ? ` ${clock}` : ""}`
    : clock && clock !== "00:00"
      ? `${day.slice(5)} ${clock}`
      : day;
}
