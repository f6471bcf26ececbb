"""All that is asked of the package wandb while a run goes on: is W&B there, open a run, add a row, close it.

Only the mirror imports this; a training has no wandb in its process.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from diffusion_forcing.files import read_json

REACH_SECONDS = 20.0  # for W&B to answer at all
INIT_SECONDS = 60.0  # for it to take a new run
FINISH_SECONDS = 120.0  # for the last rows, once the run has ended; checkpoints are waited for before
STEP = "trainer/global_step"
"""The x axis of every curve, named as Lightning's logger names it."""
LINE = "line"
"""The number of the line of metrics.jsonl that a row stands for; the newest is in W&B's summary of the run."""
_PATIENT = ("x_file_stream_retry_max", "x_file_transfer_retry_max", "x_graphql_retry_max")
_FOREVER = 1_000_000
SLOW = "did not respond in time"  # what an AuthenticationError of W&B's says where it is the network


class Session:
    """One stretch of a run on W&B, online or offline."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], settings: Mapping[str, Any], *, online: bool) -> None:
        """Raises whatever wandb does where it cannot."""
        self.online = online
        command = [str(word) for word in facts.get("command", [])]
        wanted: dict[str, Any] = {
            "console": "off",
            "silent": True,
            "init_timeout": INIT_SECONDS,
            "finish_timeout": FINISH_SECONDS,
            "finish_timeout_raises": True,
            "program": " ".join(command),
            "x_stats_pid": os.getppid(),  # the training, not the mirror, is what one wants to see at work
            "x_stats_track_process_tree": True,
            "disable_git": True,
            "save_code": False,
            **dict.fromkeys(_PATIENT, _FOREVER),
        }
        known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        try:
            self._run = wandb.init(
                entity=settings["entity"],
                project=settings["project"],
                id=facts["id"],
                name=facts["name"],
                config=settings["config"],
                resume="allow",
                mode="online" if online else "offline",
                dir=str(folder),
                settings=wandb.Settings(**known),
            )
        except BaseException:
            wandb.teardown()  # or the run's id would be taken until the process ends
            raise
        self._run.define_metric(STEP)
        self._run.define_metric(LINE, hidden=True)
        self._run.define_metric("*", step_metric=STEP)
        self._run.config.update(
            {"run": {key: facts.get(key) for key in ("commit", "host", "started", "command")}}, allow_val_change=True
        )

    @property
    def url(self) -> str:
        return str(self._run.url)

    @property
    def path(self) -> str:
        """entity/project, as W&B knows it."""
        return f"{self._run.entity}/{self._run.project}"

    @property
    def folder(self) -> Path:
        """W&B's folder of this stretch."""
        return Path(self._run.dir).parent

    @property
    def lines(self) -> int:
        """Lines of metrics.jsonl that W&B had when the session began."""
        return int(self._run.summary.get(LINE) or 0)

    def arrived(self) -> int:
        """Lines of metrics.jsonl that W&B says it has now."""
        found = wandb.Api(timeout=int(REACH_SECONDS)).run(f"{self.path}/{self._run.id}")
        return int(found.summary.get(LINE) or 0)

    def row(self, values: Mapping[str, Any], *, step: int, line: int, time: float | None = None) -> None:
        """`values` of the optimiser's `step`; `line` says up to where metrics.jsonl has been passed on with it."""
        moment = {} if time is None else {"_timestamp": time}
        self._run.log({STEP: step, LINE: line, **values, **moment})

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def media(self, entry: Mapping[str, Any], path: Path) -> Any:
        """The picture, film or table at `path` as W&B shows it."""
        caption = str(entry.get("caption") or "")
        if entry["kind"] == "table":
            rows = read_json(path.with_suffix(".json"), {}).get("rows", [])
            columns = list(dict.fromkeys(key for row in rows for key in row))
            return wandb.Table(
                columns=columns, data=[[row.get(key) for key in columns] for row in rows], allow_mixed_types=True
            )
        if entry["kind"] == "film":
            return wandb.Video(str(path), caption=caption, format="mp4")
        if path.suffix == ".svg":
            return wandb.Html(path.read_text("utf-8"))
        return wandb.Image(str(path), caption=caption)

    def log_artifact(self, artifact: Any) -> Any:
        return self._run.log_artifact(artifact, aliases=["latest"])

    def finish(self, status: str) -> bool:
        """End it: "finished" is W&B's finished, any other word its failed. False if W&B did not take the rest in time."""
        with contextlib.suppress(Exception):
            self._run.summary["status"] = status
        try:
            self._run.finish(exit_code=0 if status == "finished" else 1)
            return True
        except Exception as failure:
            print(f"finish: {failure}", file=sys.stderr, flush=True)
            return False

    def abandon(self) -> None:
        """Give the session up: W&B does not take it."""
        self.finish("lost")
        wandb.teardown()


@dataclass(frozen=True)
class Away:
    """Why nothing can be sent to W&B now, in a line."""

    why: str
    login: bool
    """Whether it is there, and does not know us; else the network is gone."""


def away() -> Away | None:
    """None where W&B answers and knows who we are."""
    url = str(wandb.setup().settings.base_url)
    try:
        urllib.request.urlopen(url, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError, http.client.HTTPException) as failure:
        return Away(f"W&B at {url} cannot be reached ({getattr(failure, 'reason', None) or failure})", login=False)
    try:
        wandb.Api(timeout=int(REACH_SECONDS)).viewer  # noqa: B018  asked for what it raises
        return None
    except Exception as failure:
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        if not isinstance(failure, (wandb.errors.AuthenticationError, wandb.errors.UsageError)) or SLOW in reason:
            return Away(f"W&B at {url} does not answer ({reason})", login=False)
    return Away(
        f"W&B at {url} takes no login from here ({reason}); wandb login, or WANDB_API_KEY, gives it one", login=True
    )


def close() -> None:
    """End W&B's own process beside this one; what it was given is on the disk then."""
    wandb.teardown()


def supersede_offline(folder: Path) -> None:
    """Offline runs of the run in `folder` that nobody synced: a session sends what they hold, so `wandb sync` is not to find them."""
    for file in (folder / "wandb").glob("offline-run-*/*.wandb"):
        if not file.with_name(f"{file.name}.synced").exists():
            file.rename(file.with_suffix(".superseded"))
