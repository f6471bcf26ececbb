"""Reading runs: everything that is known of a run comes from its folder through this module.

A run's folder may have been copied from anywhere or damaged, so nothing in it is trusted. `read_run` returns values of
the right types only, with texts that a terminal or a page may show, of regular files that lie in the folder; what is
damaged, too long or elsewhere is left out. A folder without a readable run.json is no run.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_forcing.errors import UserError, did_you_mean, explaining_os_errors, require
from diffusion_forcing.files import (
    folders,
    is_alive,
    is_plain,
    is_regular,
    is_run_id,
    open_file,
    point_to,
    read_bytes,
    read_json,
    run_folders,
)
from diffusion_forcing.limits import limit
from diffusion_forcing.terminal import clean

NAME, TEXT = 200, 2000  # most characters of a name, and of another text
ENTRIES = 1000  # most results, curves, images, words of a command, resumes
CONFIG_BYTES = 2**20
LINE_BYTES = 2**20  # longest line of metrics.jsonl
LAST_BYTES = 2**16  # of it that are read for its last step
LARGEST_STEP = 2**53
KILLED = "killed"
"""The status of a run that is "running" by its file, while its process on this machine has ended."""
RUN_FILES = ("run.json", "config.yaml", "metrics.jsonl", "metrics.json")
"""What resuming needs of a run's folder besides a checkpoint."""
RUN = "run"
"""Folder in the artifact of a checkpoint for the `RUN_FILES`."""
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"),
    "video": (".mp4",),
    "table": (".csv",),
}
"""Of the files of each kind of medium."""

POINTS = 500  # most points of a curve
LARGEST = 1e100  # a value beyond this says no more than infinity, and would overflow a chart


class Point(NamedTuple):
    """The values logged from step `first` to step `last`: their mean, minimum, maximum and number."""

    first: float
    last: float
    mean: float
    low: float
    high: float
    values: int


class Curve:
    """The values of one metric over steps.

    Each value joins the newest point until that holds `width` values. When there are 500 points, neighbours are merged
    and `width` doubles; so the memory and the page do not grow with the length of a run.
    """

    def __init__(self, points: int = POINTS) -> None:
        self._most = points
        self._width = 1
        self._points: list[Point] = []

    def add(self, step: float, value: float) -> None:
        """Append a value; one that is not finite or beyond `LARGEST` is left out.

        A step at or before the last one rewinds the curve: a resumed run logs those steps again.
        """
        if not abs(value) < LARGEST:
            return
        points = self._points
        while points and points[-1].last >= step:
            points.pop()
        if points and points[-1].values < self._width:
            points[-1] = _merged(points[-1], Point(step, step, value, value, value, 1))
            return
        if len(points) >= self._most:
            self._points = points = [_merged(*points[i : i + 2]) for i in range(0, len(points), 2)]
            self._width *= 2
        points.append(Point(step, step, value, value, value, 1))

    def points(self) -> list[Point]:
        """The points so far, in order of step."""
        return list(self._points)


def _merged(a: Point, b: Point | None = None) -> Point:
    if b is None:
        return a
    values = a.values + b.values
    mean = a.mean + (b.mean - a.mean) * b.values / values
    return Point(a.first, b.last, mean, min(a.low, b.low), max(a.high, b.high), values)


def started_with(words: Sequence[str]) -> list[str]:
    """The command line a person would type for `words` (sys.argv): `python -m main …`, `diffusion-forcing …`."""
    program = Path(words[0] if words else "")
    if program.parts[-2:] == ("diffusion_forcing", "__main__.py"):
        return ["python", "-m", "diffusion_forcing", *words[1:]]
    if program.name in ("main.py", "__main__.py", "-m", "-c", ""):
        return ["python", "-m", "main", *words[1:]]
    return ["python", *words] if program.suffix == ".py" else [program.name, *words[1:]]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as its files describe it. `step` is the last one logged, None before the first."""

    folder: Path
    id: str
    name: str
    status: str
    metadata: dict[str, Any]
    """The known keys of run.json."""
    metrics: dict[str, str | int | float | None]
    """metrics.json: finite numbers, texts and null."""
    media: tuple[dict[str, str], ...]
    """kind, name, file, caption and poster of the entries of media.json whose files exist."""
    step: int | None

    @property
    def started(self) -> str:
        """When it started, to the minute: 2026-11-23 14:15; empty where that is not known."""
        return str(self.metadata.get("started", ""))[:16].replace("T", " ")

    def curves(self) -> dict[str, Curve]:
        """The logged metrics by name, in order of appearance."""
        curves: dict[str, Curve] = {}
        for record in read_log(self.folder / "metrics.jsonl"):
            step = record["step"]
            for name, value in record.items():
                if name not in ("step", "time") and (name in curves or len(curves) < ENTRIES):
                    curves.setdefault(name, Curve()).add(step, value)
        return curves

    def path(self, entry: Mapping[str, str]) -> Path:
        """The file of one of `media`."""
        return media_path(self.folder, entry)


class Ranked(NamedTuple):
    """A run's value of a metric; `step` is where a curve has its best value, None for a headline number."""

    run: RunRecord
    value: float
    step: int | None


def find_run(outputs: Path, run_id: str) -> Path:
    """The folder in `outputs` of the run with this id; UserError with the nearest id if there is none."""
    found = run_folders(outputs)
    if run_id not in found:
        near = did_you_mean(run_id, found)
        where = f"the {len(found)} runs in {str(outputs)!r}"
        raise UserError(f"no run '{run_id}' among {where}{near}; runs ls lists them")
    return found[run_id]


def read_runs(outputs: Path) -> list[RunRecord]:
    """The runs in `outputs`, newest first."""
    found = [read_run(folder) for day in folders(outputs) for folder in folders(day)]
    return sorted((run for run in found if run), key=lambda run: (_start(run), run.folder.name), reverse=True)


def read_run(folder: Path) -> RunRecord | None:
    """The run in `folder`; None if there is none that can be read."""
    metadata = read_metadata(folder)
    if metadata is None:
        return None
    steps = [int(record["step"]) for record in read_log(folder / "metrics.jsonl", LAST_BYTES)]
    return RunRecord(
        folder=folder,
        id=metadata["id"],
        name=metadata["name"],
        status=_status(metadata),
        metadata=metadata,
        metrics=read_results(folder),
        media=tuple(read_media(folder)),
        step=steps[-1] if steps else None,
    )


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """The known keys of run.json whose values are of their types; None without an id and a name."""
    found = read_json(folder / "run.json", {})
    metadata = {key: value for key, read in _KEYS.items() if (value := read(found.get(key))) is not None}
    return metadata if {"id", "name"} <= set(metadata) else None


def read_results(folder: Path) -> dict[str, str | int | float | None]:
    """The entries of metrics.json that are numbers, texts or null; a number that is not finite is null."""
    results: dict[str, str | int | float | None] = {}
    for name, value in islice(read_json(folder / "metrics.json", {}).items(), ENTRIES):
        if value is None or isinstance(value, (str, int, float)):
            results[clean(name, NAME)] = clean(value, NAME) if isinstance(value, str) else _number(value)
    return results


def read_config(folder: Path) -> str:
    """The text of config.yaml. OSError if it cannot be read."""
    return read_bytes(folder / "config.yaml", CONFIG_BYTES).decode("utf-8", "replace")


def read_log(path: Path, most: int | None = None) -> Iterator[dict[str, float]]:
    """The lines in the last `most` bytes of a metrics.jsonl: its "step" and the finite numbers.

    most: the limit RUN_LOG_BYTES where it is None. A damaged line is left out; without the file there is none.
    """
    try:
        file = open_file(path)
    except OSError:
        return
    with file:
        begin = max(0, file.seek(0, os.SEEK_END) - (most or limit("RUN_LOG_BYTES")))
        file.seek(begin)
        if begin:
            file.readline(LINE_BYTES)  # probably a part of one
        while line := file.readline(LINE_BYTES):
            record = parse_line(line)
            if record is not None:
                yield record


def parse_line(line: bytes) -> dict[str, float] | None:
    """One line of a metrics.jsonl: its step, time and finite numbers; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.pop("step", None) if isinstance(record, dict) else None
    if type(step) is not int or abs(step) >= LARGEST_STEP:
        return None
    entries = ((clean(name, NAME), _number(value)) for name, value in islice(record.items(), ENTRIES))
    return {"step": step} | {name: value for name, value in entries if value is not None and name != "step"}


def read_media(folder: Path) -> Iterator[dict[str, str]]:
    """The entries of media.json that are complete and whose files are in the run's folder."""
    here = {path.name for path in folders(folder)}
    for entry in islice(read_json(folder / "pictures" / "media.json", {}).values(), ENTRIES):
        fields = entry if isinstance(entry, dict) else {}
        kind, name, file, poster = (fields.get(key) for key in ("kind", "name", "file", "poster"))
        if not (isinstance(kind, str) and isinstance(name, str) and is_plain(file) and _place(kind) in here):
            continue
        place = folder / _place(kind)
        if Path(file).suffix.lower() in SUFFIXES.get(kind, ()) and is_regular(place / file):
            shown = is_plain(poster) and poster.endswith(".png") and is_regular(place / poster)
            yield {
                "kind": kind,
                "name": clean(name, NAME),
                "file": file,
                "caption": _text(fields.get("caption")) or "",
                "poster": str(poster) if shown else "",
            }


def rank(runs: Sequence[RunRecord], metric: str, *, highest: bool) -> list[Ranked]:
    """The runs that have `metric`, best first: by the headline number, else by the best logged value.

    UserError for a metric that no run has.
    """
    found, known = [], set()
    for run in runs:
        value = run.metrics.get(metric)
        curves = {} if isinstance(value, (int, float)) else run.curves()
        known |= {*run.metrics, *curves}
        if isinstance(value, (int, float)):
            found.append(Ranked(run, float(value), None))
        elif points := curves[metric].points() if metric in curves else []:
            best = max(points, key=lambda p: p.high) if highest else min(points, key=lambda p: p.low)
            found.append(Ranked(run, best.high if highest else best.low, int(best.last)))
    shown = ", ".join(sorted(known)[:20]) or "none yet"
    require(bool(found), f"no run has the metric '{metric}'{did_you_mean(metric, known)}; available: {shown}")
    return sorted(found, key=lambda entry: entry.value, reverse=highest)


def remove(run: RunRecord, outputs: Path) -> None:
    """Delete the run's folder and point `latest-run` to the newest that is left. UserError while the run is running.

    The folder is first renamed to a hidden one, so a kill leaves the whole run or none of it.
    """
    outputs = Path(outputs)
    if run.status == "running":
        where = f"pid {run.metadata.get('pid')} on {run.metadata.get('host')}"
        raise UserError(f"run {run.id} is running ({where}): stop it first")
    if run.folder.is_symlink() or run.folder.resolve().parent.parent != outputs.resolve():
        raise UserError(f"run {run.id} lies outside {str(outputs)!r} (a link): remove it by hand")
    day, hidden = run.folder.parent, outputs / f".removed-{run.id}-{secrets.token_hex(4)}"
    with explaining_os_errors(f"run {run.id} could not be removed", "remove its folder by hand"):
        run.folder.rename(hidden)
        shutil.rmtree(hidden)
        if not any(day.iterdir()):
            day.rmdir()
    link = outputs / "latest-run"
    if link.is_symlink() and not link.exists():
        link.unlink()
        if left := read_runs(outputs):
            point_to(link, left[0].folder)


def media_path(folder: Path, entry: Mapping[str, str]) -> Path:
    """The file of an entry of `read_media`."""
    return folder / _place(entry["kind"]) / entry["file"]


def _place(kind: str) -> str:
    return "tables" if kind == "table" else "pictures"


def _status(metadata: dict[str, Any]) -> str:
    status, pid = str(metadata.get("status", "?")), metadata.get("pid")
    if status != "running" or metadata.get("host") != socket.gethostname() or pid is None:
        return status
    return status if is_alive(pid) else KILLED


def _start(run: RunRecord) -> float:
    started = run.metadata.get("started")
    return datetime.fromisoformat(started).timestamp() if started else 0.0


def _number(value: Any) -> int | float | None:
    """A number that is finite and can be drawn; one that is nearly zero is zero."""
    if isinstance(value, float):
        return None if not math.isfinite(value) else value if abs(value) > 1e-100 else 0.0
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _text(value: Any) -> str | None:
    return clean(value, TEXT) if isinstance(value, str) else None


def _time(value: Any) -> str | None:
    """A time in ISO 8601, with its zone, as text; None for another text."""
    try:
        moment = datetime.fromisoformat(value)
        moment = moment if moment.tzinfo else moment.astimezone()
        moment.timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="seconds")


def _words(value: Any) -> list[str] | None:
    texts = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return [clean(word, TEXT) for word in value[:ENTRIES]] if texts else None


def _resumes(value: Any) -> list[dict[str, Any]] | None:
    """When and how the run was resumed."""
    keys: dict[str, Callable[[Any], Any]] = {"time": _time, "command": _words, "commit": _text}
    entries = value[:ENTRIES] if isinstance(value, list) else []
    return [{key: read(one.get(key)) for key, read in keys.items()} for one in entries if isinstance(one, dict)]


_KEYS: dict[str, Callable[[Any], Any]] = {
    "id": lambda value: value if is_run_id(value) else None,
    "name": lambda value: clean(value, NAME) if isinstance(value, str) else None,
    "started": _time,
    "ended": _time,
    "command": _words,
    "tasks": _words,
    "resumed": _resumes,
    "pid": lambda value: value if type(value) is int and 0 < value < 2**31 else None,
    **dict.fromkeys(("status", "error", "load", "directory", "host", "python", "commit"), _text),
}
"""The keys of run.json, and how each is read: None where it is of another type."""
