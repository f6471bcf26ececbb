"""The page of all runs, `outputs/index.html`: a list of them, and the curves, pictures and films of some side by side.

Like a run's own page it has no script, loads nothing from elsewhere and escapes all text; pictures and films are linked from the runs' folders.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffusion_forcing.tracking.charts import Curve, compared_chart
from diffusion_forcing.tracking.page import STYLE, quantity
from diffusion_forcing.tracking.records import RunRecord

COMPARED = 8  # runs at most whose curves are drawn together: so many colours can be told apart
HEADLINES = 4  # numbers of a run in the list
SIDE_BY_SIDE = 24  # names of pictures and films shown
_COLOURS = ("#1f6f8b", "#c8553d", "#4b8b3b", "#8a5ba6", "#b8860b", "#2f4b7c", "#d45087", "#7a6a53")
_STYLE = (
    "".join(f".c{n} {{ --one: {colour}; }}\n" for n, colour in enumerate(_COLOURS))
    + """
svg .compared { fill: none; stroke: var(--one); stroke-width: 1.8; stroke-linejoin: round; }
svg .end { fill: var(--one); }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; background: var(--one); margin-right: .4rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }
.status.killed { background: #7a2e2e; }
.rows.list td, .rows.list th { text-align: left; }
.rows.list td:last-child { white-space: normal; min-width: 15rem; }
"""
)


def render(outputs: Path, runs: Sequence[RunRecord], compared: Sequence[RunRecord]) -> str:
    """The page for `outputs`: all `runs` in their order, and of `compared`, at most 8, what they have in common."""
    colours = {run.id: f"c{number}" for number, run in enumerate(compared[:COMPARED])}
    shown = [run for run in compared if run.id in colours]
    sections = [_list(outputs, runs, colours), _curves(shown, colours), _media(outputs, shown, colours)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>runs</title>'
        f"<style>{STYLE}{_STYLE}</style></head>\n"
        f"<body><main><header><h1>{len(runs)} run{'s' * (len(runs) != 1)}</h1>"
        f'<p class="facts">in <code>{escape(str(outputs.resolve()))}</code></p></header>{"".join(sections)}</main></body></html>\n'
    )


def headlines(run: RunRecord, most: int = HEADLINES) -> str:
    """A run's first numbers on one line: `success rate 98.0 % · normalized score 150.1`."""
    parts = []
    for name, value in run.metrics.items():
        if isinstance(value, (int, float)) and not name.endswith(("_stderr", "_std")) and not name.startswith("data/"):
            text, unit = quantity(name, value, None)
            parts.append(f"{name.rpartition('/')[2].replace('_', ' ')} {text}{' %' if unit == '%' else ''}")
    return " · ".join(parts[:most])


def _list(outputs: Path, runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in ("run", "id", "", "started", "step", "results")) + "</tr>"]
    for run in runs:
        key = f'<span class="key {colours[run.id]}"></span>' if run.id in colours else ""
        link = escape(_link(outputs, run.folder / "index.html"))
        kind = run.status if run.status in ("running", "finished", "failed", "interrupted", "killed") else "other"
        step = "" if run.step is None else f"{run.step:,}"
        lines.append(
            f'<tr><td>{key}<a href="{link}">{escape(run.name)}</a></td><td><code>{escape(run.id)}</code></td>'
            f'<td><span class="status {kind}">{escape(run.status)}</span></td><td>{escape(run.started)}</td>'
            f"<td>{step}</td><td>{escape(headlines(run))}</td></tr>"
        )
    how = "Others: <code>diffusion-forcing runs ID ID …</code>" if len(runs) > len(colours) else ""
    return (
        f'<section><h2>All runs</h2><div class="scroll"><table class="rows list">{"".join(lines)}</table></div>'
        f'<p class="note">A dot marks the runs that are compared below, at most {COMPARED}. {how}</p></section>'
    )


def _legend(runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    parts = (
        f'<span><span class="key {colours[run.id]}"></span>{escape(run.name)} <code>{escape(run.id)}</code></span>'
        for run in runs
    )
    return f'<p class="legend">{"".join(parts)}</p>'


def _curves(runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    logged: dict[str, dict[str, Curve]] = {}
    for run in runs:
        for name, curve in run.curves().items():
            if len(curve.points()) > 1:
                logged.setdefault(name, {})[run.id] = curve
    charts = []
    for name in sorted(logged, key=lambda name: ("loss" not in name, -len(logged[name]), name)):
        points = {colours[key]: curve.points() for key, curve in logged[name].items()}
        charts.append(f"<figure><figcaption><b>{escape(name)}</b></figcaption>{compared_chart(name, points)}</figure>")
    if not charts:
        return ""
    return f'<section><h2>Curves</h2>{_legend(runs, colours)}<div class="charts">{"".join(charts)}</div></section>'


def _media(outputs: Path, runs: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    named: dict[str, list[tuple[RunRecord, dict[str, Any]]]] = {}
    for run in runs:
        for entry in run.media:
            if entry["kind"] in ("image", "video") and (run.folder / "pictures" / str(entry["file"])).is_file():
                named.setdefault(str(entry["name"]), []).append((run, entry))
    groups = []
    for name in sorted(named, key=lambda name: -len(named[name]))[:SIDE_BY_SIDE]:
        figures = []
        for run, shown in named[name]:
            source = escape(_link(outputs, run.folder / "pictures" / str(shown["file"])))
            what = (
                f'<video controls loop muted playsinline preload="metadata" src="{source}"></video>'
                if shown["kind"] == "video"
                else f'<a href="{source}"><img loading="lazy" alt="{escape(name)}" src="{source}"></a>'
            )
            caption = f'<span class="key {colours[run.id]}"></span>{escape(run.name)} <code>{escape(run.id)}</code>'
            figures.append(f"<figure>{what}<figcaption>{caption}</figcaption></figure>")
        groups.append(f'<p><b>{escape(name)}</b></p><div class="pictures">{"".join(figures)}</div>')
    return f"<section><h2>Pictures and films</h2>{''.join(groups)}</section>" if groups else ""


def _link(outputs: Path, path: Path) -> str:
    return Path(os.path.relpath(path, outputs)).as_posix()
