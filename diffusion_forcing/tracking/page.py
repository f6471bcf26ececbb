"""The page of one run, `index.html` in its folder, and the page that compares runs, `outputs/index.html`.

Both are one HTML file without scripts that loads nothing from other servers; all text is escaped; they are readable on
a phone and in dark mode (`templates/`). A run's page contains its images, and its videos up to 8 MB, as data URIs; the
page of all runs links to the runs' folders. What is shown comes from `records`, and a page has at most so much of each.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import shlex
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from diffusion_forcing.files import open_file, read_bytes
from diffusion_forcing.terminal import clean
from diffusion_forcing.tracking.records import LARGEST, Point, RunRecord, read_config, started_with

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def _pairs(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _scale(low: float, high: float, start: float, end: float, logarithmic: bool) -> Callable[[float], float]:
    """Map low … high to the pixels start … end, to a tenth."""
    if logarithmic:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0
    return lambda value: round(start + (end - start) * ((math.log(value) if logarithmic else value) - low) / span, 1)


def _padded(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """The values' range, slightly wider; a constant gets a range around it."""
    if logarithmic:
        factor = max(high / low, 1.05) ** 0.05
        return low / factor, high * factor
    space = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - space, high + space


COLOURS = ("#1f6f8b", "#c8553d", "#4b8b3b", "#8a5ba6", "#b8860b", "#2f4b7c", "#d45087", "#7a6a53")
COMPARED = len(COLOURS)  # most runs whose curves are drawn together
SIDE_BY_SIDE = 24  # most images and videos that are compared
VIDEO_BYTES = 8 * 2**20  # a video up to this size is put into the page …
PAGE_BYTES = 40 * 2**20  # … until its images and videos have this size together
WIDE = 800  # pixels; a wider image gets the page's full width
TABLE_ROWS, TABLE_COLUMNS, CELL = 200, 100, 200  # most of a table that are shown, and characters of a cell
TABLE_BYTES = 2**24  # read of a table
RUNS = 1000  # most runs that are listed
CHARTS = 200  # most charts
SHORT = 14  # results of a group that are shown at once; the others fold out
RELOAD_SECONDS = 30  # an open page reloads while its run goes on
STATUSES = ("running", "finished", "failed", "interrupted", "killed")
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".svg": "image/svg+xml"}
MIME |= {".webp": "image/webp", ".mp4": "video/mp4"}
UNITS: tuple[tuple[str, str], ...] = (
    ("seconds", "s"),
    ("frames_per_second", "frames/s"),
    ("psnr", "dB"),
    ("actions_gain", "dB"),
    ("megabytes", "MB"),
    ("_rate", "%"),
    ("first_reach", "steps"),
    ("episode_reward", "steps at the goal"),
    ("normalized_score", "(expert: 100)"),
    ("oracle_ratio", "× oracle"),
)  # the first part found in a metric's name decides
BESIDE = ("_stderr", "_std", "_low", "_high")  # ends of the names of numbers that belong to another
NOTES = {"_stderr": "value ± standard error", "_high": "value (low … high): the ends of a 95 % interval"}


def run_page(run: RunRecord) -> str:
    """The page of `run`."""
    curves = {name: curve.points() for name, curve in run.curves().items()}
    names = sorted(curves, key=lambda name: ("loss" not in name, name))
    drawn = [name for name in names if changes(curves[name])][:CHARTS]
    single = [(name, points[-1]) for name in names if (points := curves[name]) and not changes(points)]
    configuration = ""
    with contextlib.suppress(OSError):
        configuration = read_config(run.folder)
    return _render(
        "run.html",
        run=run,
        reload_seconds=RELOAD_SECONDS if run.status == "running" else None,
        when=_when(run),
        command=shlex.join(started_with(run.metadata.get("command", []))),
        results=_results(run),
        notes=[note for end, note in NOTES.items() if any(name.endswith(end) for name in run.metrics)],
        media=_media(run),
        tables=[_table(run, entry) for entry in run.media if entry["kind"] == "table"],
        charts=[(name, line_chart(name, {"one": curves[name]}), f"{curves[name][-1].mean:.4g}") for name in drawn],
        single=[(name, f"{point.mean:.5g}", f"{point.last:,.0f}") for name, point in single],
        commands=_commands(run),
        configuration=configuration,
    )


def comparison_page(outputs: Path, runs: Sequence[RunRecord], compared: Sequence[RunRecord]) -> str:
    """The page of `outputs`: a list of all `runs`, and the curves and media of at most 8 `compared` ones."""
    compared = compared[:COMPARED]
    colours_of = {run.id: f"c{number}" for number, run in enumerate(compared)}

    def link(path: Path) -> str:
        return _link(Path(os.path.relpath(path, outputs)).as_posix())

    curves: dict[str, dict[str, list[Point]]] = {}
    media: dict[str, list[tuple[RunRecord, str, str]]] = {}
    for run in compared:
        for name, curve in run.curves().items():
            if len(points := curve.points()) > 1:
                curves.setdefault(name, {})[colours_of[run.id]] = points
        for entry in run.media:
            if entry["kind"] != "table":
                shown = (run, entry["kind"], link(run.path(entry)))
                media.setdefault(entry["name"], []).append(shown)
    drawn = [name for name, lines in curves.items() if changes([point for line in lines.values() for point in line])]
    names = sorted(drawn, key=lambda name: ("loss" not in name, -len(curves[name]), name))
    return _render(
        "runs.html",
        outputs=outputs.resolve(),
        count=len(runs),
        runs=runs[:RUNS],
        compared=compared,
        colours_of=colours_of,
        charts=[(name, line_chart(name, curves[name])) for name in names[:CHARTS]],
        media=sorted(media.items(), key=lambda item: -len(item[1]))[:SIDE_BY_SIDE],
        link=link,
        headlines=headlines,
    )


def quantity(name: str, metrics: Mapping[str, Any]) -> tuple[str, str]:
    """The number `name` of `metrics` and its unit; a rate in percent.

    Its standard error (`name_stderr`) or its interval (`name_low`, `name_high`) stands beside it where there is one,
    and decides on the digits: two of the error.
    """
    unit = next((unit for part, unit in UNITS if part in name), "")
    if (value := metrics[name]) is None:
        return "not a number", ""
    if isinstance(value, int):
        return f"{value:,}", unit
    factor = 100.0 if unit == "%" else 1.0
    stderr, low, high = (
        factor * number if isinstance(number := metrics.get(f"{name}_{end}"), (int, float)) else math.nan
        for end in ("stderr", "low", "high")
    )
    value *= factor
    error = (high - low) / 2 if math.isnan(stderr) else stderr
    plain = abs(value) < 1e15  # of fewer digits than a float has
    if not (plain and 1e-12 < error < 1e15):
        return f"{value:,.1f}" if plain and (unit == "%" or abs(value) >= 100) else f"{value:.4g}", unit
    digits = max(0, 1 - math.floor(math.log10(error)))
    if math.isnan(stderr):
        return f"{value:,.{digits}f} ({low:,.{digits}f} … {high:,.{digits}f})", unit
    return f"{value:,.{digits}f} ± {stderr:.{digits}f}", unit


def headlines(run: RunRecord, most: int = 4) -> str:
    """A run's first results in one line: `success rate 98.0 % · normalized score 150.1`."""
    parts = []
    for name, value in run.metrics.items():
        if isinstance(value, (int, float)) and not name.endswith(BESIDE) and not name.startswith("data/"):
            text, unit = quantity(name, {name: value})
            parts.append(f"{name.rpartition('/')[2].replace('_', ' ')} {text}{' %' if unit == '%' else ''}")
    return " · ".join(parts[:most])


def repeated(run: RunRecord) -> list[str]:
    """The words that `run` was started with (sys.argv), and those that it was resumed with, which replace the earlier ones."""
    words = list(run.metadata.get("command", []))
    for resumed in run.metadata.get("resumed", []):
        later = [word for word in (resumed["command"] or [])[1:] if _key(word) != "resume"]
        given = {_key(word) for word in later} - {""}
        words = [word for word in words if _key(word) not in given] + later
    return words


def _key(word: str) -> str:
    """`a.b` of `a.b=1` or `+a.b=1`; empty for another word."""
    key, equals, _ = word.lstrip("+").partition("=")
    return key if equals else ""


def _render(template: str, **values: Any) -> str:
    return TEMPLATES.get_template(template).render(colours=COLOURS, statuses=STATUSES, **values)


def _when(run: RunRecord) -> str:
    """How long a run took and when it ended: `2 h 05 min, ended 2026-11-23 14:15`."""
    started, ended = run.metadata.get("started"), run.metadata.get("ended")
    until = datetime.fromisoformat(ended) if ended else datetime.now().astimezone()
    took = max(0, round((until - datetime.fromisoformat(started)).total_seconds())) if started else 0
    minutes, seconds = divmod(took, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
    return f"{text}, ended {until:%Y-%m-%d %H:%M}" if ended else f"{text}, as of {until:%Y-%m-%d %H:%M:%S}"


def _results(run: RunRecord) -> list[tuple[str, list[dict[str, str]], list[dict[str, str]]]]:
    """The results by group, which is what precedes the last slash: the first ones, and those that fold out."""
    groups: dict[str, list[dict[str, str]]] = {}
    for name, value in run.metrics.items():
        if _beside(name, run.metrics):
            continue
        text, unit = (value, "") if isinstance(value, str) else quantity(name, run.metrics)
        group, _, label = name.rpartition("/")
        row = {"name": name, "label": label.replace("_", " "), "text": text, "unit": unit}
        groups.setdefault(group or "results", []).append(row)
    return [(group, rows[:SHORT], rows[SHORT:]) for group, rows in groups.items()]


def _beside(name: str, metrics: Mapping[str, Any]) -> bool:
    """Whether `quantity` shows the number `name` beside another: the error of a float, or both ends of its interval."""
    whole, _, end = name.rpartition("_")
    ends = {"stderr": ("stderr",), "low": ("low", "high"), "high": ("low", "high")}.get(end, ())
    return bool(ends) and isinstance(metrics.get(whole), float) and all(f"{whole}_{e}" in metrics for e in ends)


def _media(run: RunRecord) -> list[dict[str, Any]]:
    """The images and videos, with their content as `source` while the page has room, else a link."""
    shown, room = [], PAGE_BYTES
    for entry in run.media:
        if entry["kind"] == "table":
            continue
        path, link = run.path(entry), _link(f"pictures/{entry['file']}")
        source, size = _data_uri(path, room if entry["kind"] == "image" else min(room, VIDEO_BYTES))
        poster, extra = _data_uri(path.with_name(entry["poster"]), room - size) if entry["poster"] else ("", 0)
        room -= size + extra
        wide = source.startswith("data:image/png") and int.from_bytes(b64decode(source[22:54])[16:20], "big") > WIDE
        # An SVG that is opened by itself may run scripts.
        file = "" if path.suffix.lower() == ".svg" else link
        shown.append({**entry, "source": source or link, "link": file, "wide": wide, "poster": poster})
    return shown


def _table(run: RunRecord, entry: dict[str, Any]) -> dict[str, Any]:
    rows: list[list[str]] = []
    with contextlib.suppress(OSError, csv.Error), open_file(run.path(entry)) as file:
        rows.extend(csv.reader(io.StringIO(file.read(TABLE_BYTES).decode("utf-8", "replace"), newline="")))
    cells = [[_short(cell) for cell in row[:TABLE_COLUMNS]] for row in rows[: TABLE_ROWS + 1] if row]
    link = _link(f"tables/{entry['file']}")
    return {**entry, "head": cells[0] if cells else [], "rows": cells[1:], "count": max(0, len(rows) - 1), "link": link}


def _commands(run: RunRecord) -> list[tuple[str, str]]:
    """What one may do with the run, and the command."""
    first = run.metadata.get("command", [])
    words = started_with(repeated(run))
    plain = [word for word in words if _key(word) not in ("resume", "load")]
    resume = [*started_with(first[:1]), f"resume={run.id}", *(word for word in plain if _key(word) == "outputs")]
    again = [("Run the same again", shlex.join(words))]
    if not any((run.folder / "checkpoints").glob("*/checkpoint.json")):
        return again
    return [
        ("Resume this run: weights, optimizer, step, random state, log", shlex.join(resume)),
        ("Start a new run from its checkpoint", shlex.join([*plain, f"load={run.id}"])),
        *again,
    ]


def _link(path: str) -> str:
    """A relative address; quoted, a folder's name such as `javascript:…` is only a name."""
    return quote(path, safe="/=+,")


def _data_uri(path: Path, most: int) -> tuple[str, int]:
    """An image's or video's file as `data:<type>;base64,…`, and its size; "" and 0 for more than `most` bytes."""
    try:
        content = read_bytes(path, max(0, most))
    except OSError:
        return "", 0
    return f"data:{MIME[path.suffix.lower()]};base64,{b64encode(content).decode()}", len(content)


def _short(cell: str) -> str:
    """A table's cell; a long decimal number in five digits."""
    with contextlib.suppress(ValueError):
        return f"{float(cell):.5g}" if "." in cell and len(cell) > 7 else clean(cell, CELL)
    return clean(cell, CELL)


# -------------------------------------------------------------------------------------------------------------- charts

WIDTH, HEIGHT = 440, 240  # of the view box; the chart scales with the page
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 32  # margins, for the tick labels
FEW = 12  # up to so many points are drawn as dots
TOOLTIPS = 80  # across a chart
SMOOTHING_SHARE = 0.04  # a running mean covers this share of the curve
LOG_RATIO = 30.0  # positive values that span a larger factor get a logarithmic axis; a loss always does


def changes(points: Sequence[Point]) -> bool:
    """Whether there is a curve to draw: values that differ."""
    return bool(points) and min(point.low for point in points) < max(point.high for point in points)


def line_chart(name: str, lines: Mapping[str, Sequence[Point]]) -> Markup:
    """An `<svg>` of the metric `name`: the running mean of every curve in `lines`, whose keys are CSS classes.

    A single curve also shows its values, their range and tooltips. At least one curve needs two points.
    """
    every = [point for points in lines.values() for point in points]
    smooth = {key: smoothed([p.mean for p in points]) for key, points in lines.items()}
    single = len(lines) == 1
    values = [v for p in every for v in (p.low, p.high)] if single else [v for line in smooth.values() for v in line]
    low, high = min(values), max(values)
    logarithmic = low > 1 / LARGEST and ("loss" in name or high / low > LOG_RATIO)
    low, high = _padded(low, high, logarithmic)
    first, last = min(p.first for p in every), max(p.last for p in every)
    x = _scale(first, last, LEFT, WIDTH - RIGHT, False)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    tooltips = _tooltips(every) if single else []
    column = (WIDTH - RIGHT - LEFT) / max(1, len(tooltips))

    curves = []
    for key, points in lines.items():
        xs = [x((point.first + point.last) / 2) for point in points]
        mean = [(a, y(value)) for a, value in zip(xs, smooth[key], strict=True)]
        curve = {"key": key, "mean": _pairs(mean), "dots": mean if len(points) <= FEW else mean[-1:]}
        if single and any(point.high > point.low for point in points):
            highs = [(a, y(point.high)) for a, point in zip(xs, points, strict=True)]
            lows = [(a, y(point.low)) for a, point in zip(xs, points, strict=True)]
            curve["band"] = _pairs(highs + lows[::-1])
        if single and len(points) > FEW:
            curve["unsmoothed"] = _pairs([(a, y(point.mean)) for a, point in zip(xs, points, strict=True)])
        curves.append(curve)
    svg = TEMPLATES.get_template("chart.svg").render(
        name=name,
        logarithmic=logarithmic,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        x_ticks=[(x(tick), label(tick)) for tick in ticks(first, last, 5)],
        y_ticks=[(y(tick), label(tick)) for tick in (log_ticks(low, high) if logarithmic else ticks(low, high, 5))],
        curves=curves,
        tooltips=[(round(LEFT + number * column, 1), text) for number, text in enumerate(tooltips)],
        tooltip_width=round(column, 1),
    )
    return Markup(svg)


def _tooltips(points: Sequence[Point]) -> list[str]:
    """The values under evenly spaced columns of the chart, which show where the pointer is."""
    columns = min(TOOLTIPS, len(points))
    texts = []
    for column in range(columns):
        point = points[round(column * (len(points) - 1) / max(1, columns - 1))]
        text = f"step {point.last:,.0f}: {point.mean:.5g}"
        if point.values > 1:
            values = f"{point.mean:.5g} ({point.low:.5g} to {point.high:.5g})"
            text = f"steps {point.first:,.0f} to {point.last:,.0f}: {values}"
        texts.append(text)
    return texts


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of the values around each one, over 4 % of them, half of it at the ends."""
    half = int(SMOOTHING_SHARE * len(values) / 2)
    total = [0.0, *accumulate(values)]
    windows = ((max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values)))
    return [(total[last] - total[first]) / (last - first) for first, last in windows]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) between low and high, about `most` of them."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between low and high; also 2 and 5 times them when they are few, every n-th when many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 200 else (1,)
    every = (factor * 10.0**decade for decade in decades[:: math.ceil(len(decades) / 7)] for factor in factors)
    found = [tick for tick in every if low <= tick <= high]
    return found if len(found) > 1 else ticks(low, high, 4)


def label(value: float) -> str:
    """A short number for a tick: 20k, 1.5M, 2e−5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}".replace("e-0", "e-").replace("-", "−")
