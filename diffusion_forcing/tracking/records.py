"""The runs that lie in `outputs/`, read from their files: what lists, compares, ranks and removes them.

Nothing here is written, but for `remove`. A folder whose run.json cannot be read is no run and is left alone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.files import point_to, read_json
from diffusion_forcing.tracking.charts import Curve, read_curves

LAST_BYTES = 2**16  # of a log, looked through for its last line
KILLED = "killed"
"""The status of a run that says "running" while its process, on this machine, is no more."""
LOWER = ("loss", "mse", "mae", "rmse", "fvd", "fid", "lpips", "crps", "nll", "error", "distance", "seconds")
HIGHER = ("psnr", "ssim", "uiqi", "reward", "score", "rate", "return", "success", "accuracy", "ratio")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as its files tell it. `step` is the last one logged, None before the first."""

    folder: Path
    id: str
    name: str
    status: str
    facts: dict[str, Any]
    metrics: dict[str, Any]
    media: tuple[dict[str, Any], ...]
    step: int | None

    @property
    def started(self) -> str:
        """When it started, to the minute: 2026-11-23 14:15."""
        return str(self.facts.get("started", ""))[:16].replace("T", " ")

    def curves(self) -> dict[str, Curve]:
        """What it logged, by metric; reads all of metrics.jsonl."""
        return read_curves(self.folder / "metrics.jsonl")


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A run's value of a metric; `step` where it is the best of a curve, None where it is the headline number."""

    run: RunRecord
    value: float
    step: int | None


def read_runs(outputs: Path) -> list[RunRecord]:
    """The runs in `outputs`, newest first."""
    found = [read_run(path.parent) for path in Path(outputs).glob("*/*/run.json")]
    return sorted((run for run in found if run), key=lambda run: (_moment(run), run.folder.name), reverse=True)


def read_run(folder: Path) -> RunRecord | None:
    """The run in `folder`; None if there is none that can be read."""
    facts = read_json(folder / "run.json", {})
    if not (isinstance(facts.get("id"), str) and isinstance(facts.get("name"), str)):
        return None
    media = read_json(folder / "pictures" / "media.json", {}).values()
    return RunRecord(
        folder=folder,
        id=facts["id"],
        name=facts["name"],
        status=_status(facts),
        facts=facts,
        metrics=read_json(folder / "metrics.json", {}),
        media=tuple(entry for entry in media if isinstance(entry, dict) and {"kind", "file", "name"} <= set(entry)),
        step=_last_step(folder / "metrics.jsonl"),
    )


def rank(runs: list[RunRecord], metric: str, *, highest: bool | None = None) -> list[Ranked]:
    """The runs that have `metric`, best first: by the headline number, else by the best value they logged.

    `highest`: whether more is better; None: what the metric's name says. UserError for a name that does not say, and
    for a metric that no run has.
    """
    highest = _more_is_better(metric) if highest is None else highest
    found, known = [], set()
    for run in runs:
        known |= set(run.metrics)
        value = run.metrics.get(metric)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(Ranked(run=run, value=float(value), step=None))
            continue
        curves = run.curves()
        known |= set(curves)
        points = curves[metric].points() if metric in curves else []
        if points:
            best = max(points, key=lambda p: p.high) if highest else min(points, key=lambda p: p.low)
            found.append(Ranked(run=run, value=best.high if highest else best.low, step=int(best.last)))
    if not found:
        shown = ", ".join(sorted(known)[:20]) or "none yet"
        raise UserError(f"no run has the metric '{metric}'{did_you_mean(metric, known)}; there are: {shown}")
    return sorted(found, key=lambda entry: entry.value, reverse=highest)


def remove(run: RunRecord, outputs: Path) -> None:
    """Delete the run's folder; `latest-run` goes to the newest that is left. UserError while the run is running.

    The folder is renamed to a hidden one first, so a kill leaves a run or none, never half of one.
    """
    outputs = Path(outputs)
    if run.status == "running":
        raise UserError(
            f"run {run.id} is running (pid {run.facts.get('pid')} on {run.facts.get('host')}): stop it first"
        )
    if run.folder.is_symlink() or run.folder.resolve().parent.parent != outputs.resolve():
        raise UserError(f"run {run.id} lies outside {str(outputs)!r} (a link): remove it by hand")
    day, hidden = run.folder.parent, outputs / f".removed-{run.id}-{secrets.token_hex(4)}"
    try:
        os.replace(run.folder, hidden)
        shutil.rmtree(hidden)
        if not any(day.iterdir()):
            day.rmdir()
    except OSError as error:
        raise UserError(f"run {run.id} could not be removed: {error.strerror or error}") from error
    link = outputs / "latest-run"
    if link.is_symlink() and not link.exists():
        left = read_runs(outputs)
        if left:
            point_to(link, left[0].folder)
        else:
            link.unlink()


def _more_is_better(metric: str) -> bool:
    last = metric.rpartition("/")[2].lower()
    for words, answer in ((LOWER, False), (HIGHER, True)):
        if any(word in last.split("_") or last.endswith(word) for word in words):
            return answer
    raise UserError(
        f"'{metric}' does not say whether more is better: add lowest or highest, as in `runs best {metric} lowest`"
    )


def _status(facts: dict[str, Any]) -> str:
    status, pid = str(facts.get("status", "?")), facts.get("pid")
    if status != "running" or facts.get("host") != socket.gethostname() or not isinstance(pid, int):
        return status
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return KILLED
    except OSError:  # another user's process: alive
        pass
    return status


def _moment(run: RunRecord) -> float:
    try:
        return datetime.fromisoformat(str(run.facts.get("started"))).timestamp()
    except ValueError:
        return 0.0


def _last_step(log: Path) -> int | None:
    """The step of the last whole line of a metrics.jsonl."""
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
