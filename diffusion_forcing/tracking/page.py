"""The page of one run, `index.html` in its folder, and the page that compares runs, `outputs/index.html`.

Both are one HTML file without scripts that loads nothing from other servers; all text is escaped; they are readable on
a phone and in dark mode. A run's page contains its images, and its videos up to 8 MB, as data URIs; the page of all
runs links to the runs' folders.
"""

from __future__ import annotations

import base64
import csv
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from diffusion_forcing.tracking.charts import Curve, Point, line_chart
from diffusion_forcing.tracking.records import RunRecord

STYLE = """
:root { --ink: #1d2530; --soft: #5d6876; --line: #dfe3e8; --paper: #fbfbfa; --card: #fff; --accent: #1f6f8b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ed; --soft: #98a3b0; --line: #2e3742; --paper: #14181d; --card: #1b2027; --accent: #5bb8d4; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; }
a { color: var(--accent); }
code, pre { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem .9rem; margin: .3rem 0 1rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.about { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: center; color: var(--soft); }
.note, .unit { color: var(--soft); font-size: .9rem; }
.status { color: #fff; background: #6b7480; border-radius: 1rem; padding: 0 .7rem; font-size: .85rem; }
.status.running { background: #1769aa; } .status.finished { background: #2b7a4b; }
.status.failed { background: #b3362b; } .status.interrupted { background: #96630a; }
.status.killed { background: #7a2e2e; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.headline th { text-align: left; font-weight: 400; color: var(--soft); }
.headline th, .headline td { padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline; overflow-wrap: anywhere; }
.headline .number { font-weight: 600; text-align: right; white-space: nowrap; }
.headline .group th { padding-top: .9rem; color: var(--ink); font-weight: 600; }
.rows { font-size: .85rem; }
.rows th, .rows td { padding: .15rem .8rem .15rem 0; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
.rows.list td, .rows.list th { text-align: left; }
.rows.list td:last-child { white-space: normal; min-width: 15rem; }
.scroll { overflow: auto; max-height: 26rem; }
details { margin: .4rem 0; } summary { cursor: pointer; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem;
  min-width: 0; }
figcaption { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  align-items: start; grid-auto-flow: row dense; }
.wide { grid-column: 1 / -1; }
.cards + .headline { margin-top: 1rem; }
img, video { display: block; width: 100%; height: auto; border-radius: 4px; margin-bottom: .4rem; }
svg { display: block; width: 100%; height: auto; --one: var(--accent); }
svg .tick { font-size: 13px; fill: var(--soft); } svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg polyline { fill: none; stroke: var(--one); stroke-linejoin: round; }
svg .values { stroke-opacity: .35; stroke-width: 1; } svg .mean { stroke-width: 2; }
svg .band { fill: var(--one); fill-opacity: .16; } svg .dot { fill: var(--one); }
svg .hover { fill: transparent; } svg .hover:hover { fill: var(--one); fill-opacity: .16; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; background: var(--one);
  margin-right: .4rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }
"""
COLOURS = ("#1f6f8b", "#c8553d", "#4b8b3b", "#8a5ba6", "#b8860b", "#2f4b7c", "#d45087", "#7a6a53")
STYLE += "".join(f".c{number} {{ --one: {colour}; }}\n" for number, colour in enumerate(COLOURS))

COMPARED = len(COLOURS)  # most runs whose curves are drawn together
SIDE_BY_SIDE = 24  # most images and videos that are compared
VIDEO_BYTES = 8 * 2**20  # a video up to this size is put into the page …
PAGE_BYTES = 40 * 2**20  # … until its images and videos have this size together
WIDE = 800  # pixels; a wider image gets the page's full width
TABLE_ROWS = 200  # most rows of a table that are shown; the file has all
RELOAD_SECONDS = 30  # an open page reloads while its run goes on
STATUSES = ("running", "finished", "failed", "interrupted", "killed")
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".svg": "image/svg+xml"}
MIME |= {".webp": "image/webp", ".mp4": "video/mp4"}
UNITS: tuple[tuple[str, str], ...] = (
    ("seconds", "s"),
    ("_rate", "%"),
    ("first_reach", "steps"),
    ("episode_reward", "steps at the goal"),
    ("normalized_score", "(expert: 100)"),
    ("oracle_ratio", "× oracle"),
)  # the first part found in a metric's name decides


def run_page(
    folder: Path,
    *,
    metadata: Mapping[str, Any],
    metrics: Mapping[str, Any],
    curves: Mapping[str, Curve],
    media: Sequence[Mapping[str, Any]],
) -> str:
    """The page of the run in `folder`, of the contents of run.json, metrics.json, metrics.jsonl and media.json."""
    reload = metadata["status"] == "running"
    body = [
        _header(metadata),
        _section("Results", _headline(metrics)),
        _section("Images and videos", _media(folder, media)),
        _section("Tables", _tables(folder, media)),
        _section("Curves", _curves(curves)),
        _section("Resume, load, repeat", _commands(metadata, folder)),
        _section("Configuration", _configuration(folder)),
        _section("Run", _about(metadata)),
    ]
    return _document(str(metadata["name"]), body, reload=reload)


def comparison_page(outputs: Path, runs: Sequence[RunRecord], compared: Sequence[RunRecord]) -> str:
    """The page of `outputs`: a list of all `runs`, and the curves and media of at most 8 `compared` ones."""
    colours = {run.id: f"c{number}" for number, run in enumerate(compared[:COMPARED])}
    shown = [run for run in compared if run.id in colours]
    plural = "s" * (len(runs) != 1)
    where = f'<p class="about">in <code>{escape(str(outputs.resolve()))}</code></p>'
    body = [
        f"<header><h1>{len(runs)} run{plural}</h1>{where}</header>",
        _section("All runs", _list(outputs, runs, colours)),
        _section("Curves", _compared_curves(shown, colours)),
        _section("Images and videos", _compared_media(outputs, shown, colours)),
    ]
    return _document("runs", body)


def quantity(name: str, value: float | None, stderr: float | None) -> tuple[str, str]:
    """A headline number and its unit: mean ± standard error to the error's second digit; a rate in percent."""
    unit = next((unit for part, unit in UNITS if part in name), "")
    if value is None:
        return "not a number", ""
    if isinstance(value, int):
        return f"{value:,}", unit
    factor = 100.0 if unit == "%" else 1.0
    value *= factor
    if not stderr:
        return f"{value:,.1f}" if unit == "%" or abs(value) >= 100 else f"{value:.4g}", unit
    stderr *= factor
    digits = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{value:,.{digits}f} ± {stderr:.{digits}f}", unit


def headlines(run: RunRecord, most: int = 4) -> str:
    """A run's first results in one line: `success rate 98.0 % · normalized score 150.1`."""
    parts = []
    for name, value in run.metrics.items():
        if isinstance(value, (int, float)) and not name.endswith(("_stderr", "_std")) and not name.startswith("data/"):
            text, unit = quantity(name, value, None)
            parts.append(f"{name.rpartition('/')[2].replace('_', ' ')} {text}{' %' if unit == '%' else ''}")
    return " · ".join(parts[:most])


def started_with(words: Sequence[str]) -> list[str]:
    """The command line a person would type for `words` (sys.argv): `python -m main …` or `diffusion-forcing …`."""
    program = Path(words[0]).name if words else ""
    if program in ("main.py", "__main__.py", "-m", "-c", ""):
        return ["python", "-m", "main", *words[1:]]
    return ["python", *words] if program.endswith(".py") else [program, *words[1:]]


def data_uri(path: Path) -> str:
    """An image's or video's file as `data:<type>;base64,…`."""
    return f"data:{MIME[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


# The parts of a page.


def _document(title: str, body: Iterable[str], *, reload: bool = False) -> str:
    refresh = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if reload else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">{refresh}<title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(kind: str, rows: Iterable[Iterable[str]], head: Iterable[str] = ()) -> str:
    """A table of cells of HTML. Without a `head`, the first cell of a row is its heading."""
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"] if head else []
    for first, *others in rows:
        tag = "td" if head else "th"
        lines.append(f"<tr><{tag}>{first}</{tag}>" + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>")
    return f'<table class="{kind}">{"".join(lines)}</table>' if lines else ""


def _image(source: str, alt: str, link: str) -> str:
    return f'<a href="{escape(link)}"><img loading="lazy" alt="{escape(alt)}" src="{escape(source)}"></a>'


def _video(source: str, poster: str = "") -> str:
    first = f' poster="{escape(poster)}"' if poster else ""
    return f'<video controls loop muted playsinline preload="metadata"{first} src="{escape(source)}"></video>'


def _figure(content: str, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}">{content}<figcaption>{caption}</figcaption></figure>'


def _status(status: str) -> str:
    return f'<span class="status {status if status in STATUSES else "other"}">{escape(status)}</span>'


def _header(metadata: Mapping[str, Any]) -> str:
    ended = metadata.get("ended")
    until = datetime.fromisoformat(ended) if ended else datetime.now().astimezone()
    took = _duration((until - datetime.fromisoformat(metadata["started"])).total_seconds())
    when = f"ended {ended[:16].replace('T', ' ')}" if ended else f"as of {until:%Y-%m-%d %H:%M:%S}"
    return (
        f'<header><h1>{escape(metadata["name"])}</h1><p class="about">{_status(str(metadata["status"]))}'
        f"<span>run <code>{escape(metadata['id'])}</code></span><span>{took}, {escape(when)}</span></p>"
        f"<pre>{escape(shlex.join(started_with(metadata['command'])))}</pre></header>"
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    rows, group = [], None
    for name, value in metrics.items():
        if name.endswith("_stderr") and name.removesuffix("_stderr") in metrics:
            continue
        prefix, _, rest = name.rpartition("/")
        if prefix != group:
            group = prefix
            rows.append(f'<tr class="group"><th colspan="3">{escape(prefix or "results")}</th></tr>')
        text, unit = (value, "") if isinstance(value, str) else quantity(name, value, metrics.get(f"{name}_stderr"))
        rows.append(
            f'<tr title="{escape(name)}"><th scope="row">{escape(rest.replace("_", " "))}</th>'
            f'<td class="number">{escape(text)}</td><td class="unit">{escape(unit)}</td></tr>'
        )
    note = '<p class="note">mean ± standard error</p>' if any(name.endswith("_stderr") for name in metrics) else ""
    return f'<table class="headline">{"".join(rows)}</table>{note}' if rows else ""


def _media(folder: Path, media: Sequence[Mapping[str, Any]]) -> str:
    figures, left = [], PAGE_BYTES
    for entry in media:
        path = folder / "pictures" / entry["file"]
        if entry["kind"] not in ("image", "video") or not path.is_file():
            continue
        link, size, wide = f"pictures/{entry['file']}", path.stat().st_size, ""
        inside = size <= left and (entry["kind"] == "image" or size <= VIDEO_BYTES)
        left -= size if inside else 0
        source = data_uri(path) if inside else link
        if entry["kind"] == "image":
            wide = "wide" if _png_width(path) > WIDE else ""
            content = _image(source, entry["caption"] or entry["name"], link)
        else:
            poster = folder / "pictures" / str(entry.get("poster"))
            content = _video(source, data_uri(poster) if poster.is_file() else "")
        caption = f'<b>{escape(entry["name"])}</b> {escape(entry["caption"])} <a href="{escape(link)}">file</a>'
        figures.append(_figure(content, caption, wide))
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def _tables(folder: Path, media: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for entry in media:
        path = folder / "tables" / entry["file"]
        if entry["kind"] != "table" or not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        more = f", the first {TABLE_ROWS} of {len(rows)} rows" if len(rows) > TABLE_ROWS else f", {len(rows)} rows"
        cells = ([escape(_short(cell)) for cell in row] for row in rows[:TABLE_ROWS] if row)
        link = f'<a href="tables/{escape(entry["file"])}">file</a>'
        shown.append(
            f"<details><summary>{escape(entry['name'])}{more}</summary><p>{escape(entry['caption'])} {link}</p>"
            f'<div class="scroll">{_table("rows", cells, [escape(cell) for cell in head])}</div></details>'
        )
    return "".join(shown)


def _curves(curves: Mapping[str, Curve]) -> str:
    charts, single = [], []
    for name in sorted(curves, key=lambda name: ("loss" not in name, name)):
        points = curves[name].points()
        if len(points) > 1:
            caption = f"<b>{escape(name)}</b> now {points[-1].mean:.4g}"
            charts.append(_figure(line_chart(name, {"one": points}), caption))
        elif points:
            single.append([escape(name), f"{points[0].mean:.5g}", f"step {points[0].last:,.0f}"])
    grid = f'<div class="cards">{"".join(charts)}</div>' if charts else ""
    return grid + _table("headline", single)


def _commands(metadata: Mapping[str, Any], folder: Path) -> str:
    words = started_with(metadata["command"])
    plain = [word for word in words if not word.startswith(("resume=", "load=", "+resume=", "+load="))]
    lines: list[tuple[str, list[str]]] = [("Run the same again", words)]
    if any((folder / "checkpoints").glob("*/checkpoint.json")):
        lines[:0] = [
            ("Resume this run: weights, optimizer, step, random state, log", [*plain, f"resume={metadata['id']}"]),
            ("Start a new run from its checkpoint", [*plain, f"load={metadata['id']}"]),
        ]
    return "".join(f"<p>{text}</p><pre>{escape(shlex.join(command))}</pre>" for text, command in lines)


def _configuration(folder: Path) -> str:
    try:
        text = (folder / "config.yaml").read_text("utf-8", "replace")
    except OSError:
        return ""
    return f"<details><summary>config.yaml</summary><pre>{escape(text)}</pre></details>"


def _about(metadata: Mapping[str, Any]) -> str:
    names = ("started", "ended", "directory", "host", "pid", "python", "commit")
    rows = [[name, escape(str(metadata[name]))] for name in names if metadata.get(name) is not None]
    rows += [["resumed", escape(str(again["time"]))] for again in metadata.get("resumed", [])]
    return _table("headline", rows)


def _list(outputs: Path, runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    rows = []
    for run in runs:
        key = f'<span class="key {colours[run.id]}"></span>' if run.id in colours else ""
        link = escape(_link(outputs, run.folder / "index.html"))
        name = f'{key}<a href="{link}">{escape(run.name)}</a>'
        step = "" if run.step is None else f"{run.step:,}"
        identity = f"<code>{escape(run.id)}</code>"
        rows.append([name, identity, _status(run.status), escape(run.started), step, escape(headlines(run))])
    table = _table("rows list", rows, ("run", "id", "", "started", "step", "results"))
    others = "Others: <code>diffusion-forcing runs ID ID …</code>" if len(runs) > len(colours) else ""
    note = f"A dot marks the runs that are compared below, at most {COMPARED}. {others}"
    return f'<div class="scroll">{table}</div><p class="note">{note}</p>'


def _key(run: RunRecord, colours: Mapping[str, str]) -> str:
    return f'<span class="key {colours[run.id]}"></span>{escape(run.name)} <code>{escape(run.id)}</code>'


def _compared_curves(runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    logged: dict[str, dict[str, list[Point]]] = {}
    for run in runs:
        for name, curve in run.curves().items():
            if len(points := curve.points()) > 1:
                logged.setdefault(name, {})[colours[run.id]] = points
    names = sorted(logged, key=lambda name: ("loss" not in name, -len(logged[name]), name))
    charts = [_figure(line_chart(name, logged[name]), f"<b>{escape(name)}</b>") for name in names]
    legend = "".join(f"<span>{_key(run, colours)}</span>" for run in runs)
    return f'<p class="legend">{legend}</p><div class="cards">{"".join(charts)}</div>' if charts else ""


def _compared_media(outputs: Path, runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    named: dict[str, list[str]] = {}
    for run in runs:
        for entry in run.media:
            name, path = str(entry["name"]), run.folder / "pictures" / str(entry["file"])
            if entry["kind"] in ("image", "video") and path.is_file():
                link = _link(outputs, path)
                content = _video(link) if entry["kind"] == "video" else _image(link, name, link)
                named.setdefault(name, []).append(_figure(content, _key(run, colours)))
    shown = sorted(named, key=lambda name: -len(named[name]))[:SIDE_BY_SIDE]
    return "".join(f'<p><b>{escape(name)}</b></p><div class="cards">{"".join(named[name])}</div>' for name in shown)


def _link(outputs: Path, path: Path) -> str:
    return Path(os.path.relpath(path, outputs)).as_posix()


def _png_width(path: Path) -> int:
    """A PNG's width in pixels; 0 for another file."""
    with path.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[16:20], "big") if head.startswith(b"\x89PNG") else 0


def _short(cell: str) -> str:
    """A table's cell; a long decimal number in five digits."""
    try:
        return f"{float(cell):.5g}" if "." in cell and len(cell) > 7 else cell
    except ValueError:
        return cell


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
