"""A run's one page: everything a person wants to see of it in a single HTML file that loads nothing from anywhere.

`render` reads the run's folder and returns the text. Pictures, and films up to 8 MB, are inside it as data URIs; what
is larger is linked beside it. No script; all text is escaped; it reads well on a phone and in the dark.
"""

from __future__ import annotations

import base64
import csv
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from diffusion_forcing.tracking.charts import Curve, line_chart

# The page's style sheet: one accent, light and dark, readable on a phone.

STYLE = """
:root { --ink: #1d2530; --soft: #5d6876; --line: #dfe3e8; --paper: #fbfbfa;
  --card: #fff; --accent: #1f6f8b; --band: #1f6f8b26; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ed; --soft: #98a3b0; --line: #2e3742; --paper: #14181d; --card: #1b2027; --accent: #5bb8d4;
  --band: #5bb8d42e; }
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
  padding: .7rem .9rem; margin: .3rem 0 1rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: center; color: var(--soft); }
.note, .unit { color: var(--soft); font-size: .9rem; }
.status { color: #fff; background: #6b7480; border-radius: 1rem; padding: 0 .7rem; font-size: .85rem; }
.status.running { background: #1769aa; } .status.finished { background: #2b7a4b; }
.status.failed { background: #b3362b; } .status.interrupted { background: #96630a; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.headline th { text-align: left; font-weight: 400; color: var(--soft); }
.headline th, .headline td { padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline; overflow-wrap: anywhere; }
.headline .number { font-weight: 600; text-align: right; white-space: nowrap; }
.headline .group th { padding-top: .9rem; color: var(--ink); font-weight: 600; }
.rows { font-size: .85rem; }
.rows th, .rows td { padding: .15rem .8rem .15rem 0; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
.scroll { overflow: auto; max-height: 26rem; }
details { margin: .4rem 0; } summary { cursor: pointer; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem;
  min-width: 0; }
figcaption { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.pictures, .charts {
  display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  align-items: start; grid-auto-flow: row dense; }
.wide { grid-column: 1 / -1; }
.charts + .headline { margin-top: 1rem; }
img, video { display: block; width: 100%; height: auto; border-radius: 4px; margin-bottom: .4rem; }
svg { display: block; width: 100%; height: auto; }
svg .tick { font-size: 13px; fill: var(--soft); } svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg .raw { fill: none; stroke: var(--accent); stroke-opacity: .35; stroke-width: 1; }
svg .smooth { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg .band { fill: var(--band); } svg .dot { fill: var(--accent); }
svg .hover { fill: transparent; } svg .hover:hover { fill: var(--band); }
"""

FILM_BYTES = 8 * 2**20  # a film up to this size is put into the page
PAGE_BYTES = 40 * 2**20  # … until all pictures and films in it have this size
WIDE = 800  # pixels: a picture wider than this gets the page's full width
TABLE_ROWS = 200  # of a table shown; the file has them all
RELOAD_SECONDS = 30  # an open page reloads while its run goes on
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


def render(
    folder: Path,
    *,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    curves: Mapping[str, Curve],
    media: Sequence[Mapping[str, Any]],
) -> str:
    """The page of the run in `folder`: `facts`, `metrics` and `media` as in the json files of these names."""
    running = facts["status"] == "running"
    sections = [_headline(metrics), _pictures(folder, media), _tables(folder, media), _curves(curves)]
    sections += [_commands(facts, folder), _configuration(folder), _facts(facts)]
    reload = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if running else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">{reload}<title>{escape(facts["name"])}</title>'
        f"<style>{STYLE}</style></head>\n"
        f"<body><main>{_header(facts)}{''.join(sections)}</main></body></html>\n"
    )


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


def started_with(words: Sequence[str]) -> list[str]:
    """The command line a person would type for `words` (sys.argv): `python -m main …` or `diffusion-forcing …`."""
    if not words:
        return ["python", "-m", "main"]
    program = Path(words[0]).name
    if program in ("main.py", "__main__.py", "-m", "-c", ""):
        return ["python", "-m", "main", *words[1:]]
    return ["python", *words] if program.endswith(".py") else [program, *words[1:]]


def _header(facts: Mapping[str, Any]) -> str:
    status = str(facts["status"])
    ended = facts.get("ended")
    until = datetime.fromisoformat(ended) if ended else datetime.now().astimezone()
    took = _duration((until - datetime.fromisoformat(facts["started"])).total_seconds())
    when = f"ended {ended[:16].replace('T', ' ')}" if ended else f"as of {until:%Y-%m-%d %H:%M:%S}"
    kind = status if status in ("running", "finished", "failed", "interrupted") else "other"
    return (
        f'<header><h1>{escape(facts["name"])}</h1><p class="facts"><span class="status {kind}">{escape(status)}</span>'
        f"<span>run <code>{escape(facts['id'])}</code></span><span>{took}, {escape(when)}</span></p>"
        f'<pre class="command">{escape(shlex.join(started_with(facts["command"])))}</pre></header>'
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
        if isinstance(value, str):
            text, unit = value, ""
        else:
            text, unit = quantity(name, value, metrics.get(f"{name}_stderr"))
        rows.append(
            f'<tr title="{escape(name)}"><th scope="row">{escape(rest.replace("_", " "))}</th>'
            f'<td class="number">{escape(text)}</td><td class="unit">{escape(unit)}</td></tr>'
        )
    note = '<p class="note">mean ± standard error</p>' if any(name.endswith("_stderr") for name in metrics) else ""
    return f'<section><h2>Results</h2><table class="headline">{"".join(rows)}</table>{note}</section>' if rows else ""


def _pictures(folder: Path, media: Sequence[Mapping[str, Any]]) -> str:
    figures, left = [], PAGE_BYTES
    for entry in media:
        if entry["kind"] not in ("image", "video"):
            continue
        path = folder / "pictures" / entry["file"]
        if not path.is_file():
            continue
        size = path.stat().st_size
        inside = size <= left and (entry["kind"] == "image" or size <= FILM_BYTES)
        left -= size if inside else 0
        link = f"pictures/{entry['file']}"
        source = escape(data_uri(path) if inside else link)
        if entry["kind"] == "image":
            wide = ' class="wide"' if _png_width(path) > WIDE else ""
            alt = escape(entry["caption"] or entry["name"])
            shown = f'<a href="{escape(link)}"><img loading="lazy" alt="{alt}" src="{source}"></a>'
        else:
            wide = ""
            poster = folder / "pictures" / str(entry.get("poster"))
            first = f' poster="{data_uri(poster)}"' if poster.is_file() else ""
            shown = f'<video controls loop muted playsinline preload="metadata"{first} src="{source}"></video>'
        caption = f'<b>{escape(entry["name"])}</b> {escape(entry["caption"])} <a href="{escape(link)}">file</a>'
        figures.append(f"<figure{wide}>{shown}<figcaption>{caption}</figcaption></figure>")
    return (
        f'<section><h2>Pictures and films</h2><div class="pictures">{"".join(figures)}</div></section>'
        if figures
        else ""
    )


def _tables(folder: Path, media: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for entry in media:
        path = folder / "tables" / entry["file"]
        if entry["kind"] != "table" or not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
        lines += [
            "<tr>" + "".join(f"<td>{escape(_short(cell))}</td>" for cell in row) + "</tr>" for row in rows[:TABLE_ROWS]
        ]
        more = f", the first {TABLE_ROWS} of {len(rows)} rows" if len(rows) > TABLE_ROWS else f", {len(rows)} rows"
        link = f'<a href="tables/{escape(entry["file"])}">file</a>'
        shown.append(
            f"<details><summary>{escape(entry['name'])}{more}</summary><p>{escape(entry['caption'])} {link}</p>"
            f'<div class="scroll"><table class="rows">{"".join(lines)}</table></div></details>'
        )
    return f"<section><h2>Tables</h2>{''.join(shown)}</section>" if shown else ""


def _curves(curves: Mapping[str, Curve]) -> str:
    charts, once = [], []
    for name in sorted(curves, key=lambda name: ("loss" not in name, name)):
        points = curves[name].points()
        if len(points) > 1:
            last = f"{points[-1].mean:.4g}"
            charts.append(
                f"<figure><figcaption><b>{escape(name)}</b> now {last}</figcaption>{line_chart(name, points)}</figure>"
            )
        elif points:
            once.append(
                f"<tr><th>{escape(name)}</th><td>{points[0].mean:.5g}</td><td>step {points[0].last:,.0f}</td></tr>"
            )
    if not charts and not once:
        return ""
    table = f'<table class="headline">{"".join(once)}</table>' if once else ""
    return f'<section><h2>Curves</h2><div class="charts">{"".join(charts)}</div>{table}</section>'


def _commands(facts: Mapping[str, Any], folder: Path) -> str:
    words = started_with(facts["command"])
    plain = [word for word in words if not word.startswith(("resume=", "load=", "+resume=", "+load="))]
    lines: list[tuple[str, list[str]]] = [("Do the same again", words)]
    if any((folder / "checkpoints").glob("*/checkpoint.json")):
        lines[:0] = [
            ("Go on with this run: weights, optimiser, step, random state, log", [*plain, f"resume={facts['id']}"]),
            ("Start a new run from its checkpoint", [*plain, f"load={facts['id']}"]),
        ]
    shown = "".join(f"<p>{text}</p><pre>{escape(shlex.join(command))}</pre>" for text, command in lines)
    return f"<section><h2>Go on, start from it, repeat it</h2>{shown}</section>"


def _configuration(folder: Path) -> str:
    try:
        text = (folder / "config.yaml").read_text("utf-8", "replace")
    except OSError:
        return ""
    folded = f"<details><summary>config.yaml</summary><pre>{escape(text)}</pre></details>"
    return f"<section><h2>Configuration</h2>{folded}</section>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = []
    for name in ("started", "ended", "directory", "host", "pid", "python", "commit"):
        if facts.get(name) is not None:
            rows.append(f"<tr><th>{name}</th><td>{escape(str(facts[name]))}</td></tr>")
    rows += [f"<tr><th>resumed</th><td>{escape(str(again['time']))}</td></tr>" for again in facts.get("resumed", [])]
    return f'<section><h2>Run</h2><table class="headline">{"".join(rows)}</table></section>'


def data_uri(path: Path) -> str:
    """A picture's or film's file as `data:<type>;base64,…`."""
    return f"data:{MIME[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _png_width(path: Path) -> int:
    """A PNG's width in pixels; 0 for another file."""
    with path.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[16:20], "big") if head.startswith(b"\x89PNG") else 0


def _short(cell: str) -> str:
    """A table's cell: a long decimal number in five digits."""
    try:
        return f"{float(cell):.5g}" if "." in cell and len(cell) > 7 else cell
    except ValueError:
        return cell


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
