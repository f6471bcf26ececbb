"""The runs in `outputs/`, to list, compare, rank and remove them; a folder without a readable run.json is ignored."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError, did_you_mean, explaining_os_errors
from diffusion_forcing.files import is_alive, point_to, read_json, run_folders
from diffusion_forcing.tracking.charts import Curve, read_curves

LAST_BYTES = 2**16  # at the end of a log, searched for its last line
KILLED = "killed"
"""The status of a run that is "running" by its file, while its process on this machine has ended."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as its files describe it. `step` is the last one logged, None before the first."""

    folder: Path
    id: str
    name: str
    status: str
    metadata: dict[str, Any]
    """run.json"""
    metrics: dict[str, Any]
    """metrics.json"""
    media: tuple[dict[str, Any], ...]
    """Entries of media.json whose files exist."""
    step: int | None

    @property
    def started(self) -> str:
        """When it started, to the minute: 2026-11-23 14:15."""
        return str(self.metadata.get("started", ""))[:16].replace("T", " ")

    def curves(self) -> dict[str, Curve]:
        """The logged metrics; reads all of metrics.jsonl."""
        return read_curves(self.folder / "metrics.jsonl")


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A run's value of a metric; `step` is where a curve has its best value, None for a headline number."""

    run: RunRecord
    value: float
    step: int | None


def find_run(outputs: Path, run_id: str) -> Path:
    """The folder in `outputs` of the run with this id; UserError with the nearest id if there is none."""
    folders = run_folders(outputs)
    if run_id not in folders:
        near = did_you_mean(run_id, folders)
        where = f"the {len(folders)} runs in {str(outputs)!r}"
        raise UserError(f"no run '{run_id}' among {where}{near}; runs ls lists them")
    return folders[run_id]


def read_runs(outputs: Path) -> list[RunRecord]:
    """The runs in `outputs`, newest first."""
    found = [read_run(path.parent) for path in Path(outputs).glob("*/*/run.json")]
    return sorted((run for run in found if run), key=lambda run: (_start(run), run.folder.name), reverse=True)


def read_run(folder: Path) -> RunRecord | None:
    """The run in `folder`; None if there is none that can be read."""
    metadata = read_json(folder / "run.json", {})
    if not (isinstance(metadata.get("id"), str) and isinstance(metadata.get("name"), str)):
        return None
    media = [entry for entry in read_json(folder / "pictures" / "media.json", {}).values() if _is_shown(folder, entry)]
    return RunRecord(
        folder=folder,
        id=metadata["id"],
        name=metadata["name"],
        status=_status(metadata),
        metadata=metadata,
        metrics=read_json(folder / "metrics.json", {}),
        media=tuple(media),
        step=_last_step(folder / "metrics.jsonl"),
    )


def rank(runs: Sequence[RunRecord], metric: str, *, highest: bool) -> list[Ranked]:
    """The runs that have `metric`, best first: by the headline number, else by the best logged value.

    UserError for a metric that no run has.
    """
    found, known = [], set()
    for run in runs:
        known |= set(run.metrics)
        value = run.metrics.get(metric)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(Ranked(run=run, value=float(value), step=None))
            continue
        curves = run.curves()
        known |= set(curves)
        if points := curves[metric].points() if metric in curves else []:
            best = max(points, key=lambda p: p.high) if highest else min(points, key=lambda p: p.low)
            found.append(Ranked(run=run, value=best.high if highest else best.low, step=int(best.last)))
    if not found:
        shown = ", ".join(sorted(known)[:20]) or "none yet"
        raise UserError(f"no run has the metric '{metric}'{did_you_mean(metric, known)}; available: {shown}")
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
        left = read_runs(outputs)
        if left:
            point_to(link, left[0].folder)
        else:
            link.unlink()


def _is_shown(folder: Path, entry: Any) -> bool:
    """Whether an entry of media.json is complete and its file exists."""
    if not (isinstance(entry, dict) and {"kind", "file", "name"} <= set(entry)):
        return False
    return (folder / ("tables" if entry["kind"] == "table" else "pictures") / str(entry["file"])).is_file()


def _status(metadata: dict[str, Any]) -> str:
    status, pid = str(metadata.get("status", "?")), metadata.get("pid")
    if status != "running" or metadata.get("host") != socket.gethostname() or not isinstance(pid, int):
        return status
    return status if is_alive(pid) else KILLED


def _start(run: RunRecord) -> float:
    try:
        return datetime.fromisoformat(str(run.metadata.get("started"))).timestamp()
    except ValueError:
        return 0.0


def _last_step(log: Path) -> int | None:
    """The step of the last complete line of a metrics.jsonl."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            continue
    return None
