"""`load=` and `resume=` of a run that is not on this machine: its newest checkpoint is on W&B, where a run tracked there has put it.

Here first: only what no path, no run in outputs/ and no shipped checkpoint is called is looked for there, and only where W&B is switched on
(tracking=wandb, wandb.mode=online) or this machine is logged in. What comes is checked file by file before anything uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError
from diffusion_forcing.files import file_name, new_folder, point_to, read_json, write_json
from diffusion_forcing.launch.report import say
from diffusion_forcing.tracking.wandb import WandbOptions, installed
from diffusion_forcing.tracking.wandb_download import fetch, is_run_id, logged_in

DOWNLOADS = "downloads"
"""Folder in outputs/ for what came from W&B, <run id>-<version> each."""
_RUN = "run"  # in an artifact: the run's own files, beside the checkpoint's


def asks_wandb(spec: str, options: WandbOptions, *, tracked: bool) -> bool:
    """Whether `spec` is to be looked for on W&B. `tracked`: tracking=wandb is chosen."""
    if not is_run_id(spec) or options.mode in ("disabled", "offline"):
        return False
    return tracked or options.mode == "online" or (installed() and logged_in())


def fetch_checkpoint(spec: str, outputs: Path, options: WandbOptions) -> Path:
    """The checkpoint of the run `spec` from W&B, for load=: a folder of ours, or a released .ckpt file."""
    say(f"{spec} is not here; looking for it on W&B")
    folder = fetch(spec, outputs / DOWNLOADS, entity=options.entity, project=options.project, check=_check)
    return _checkpoint_in(folder)


def fetch_run(spec: str, outputs: Path, options: WandbOptions) -> Path:
    """The run `spec` from W&B as a run's folder in `outputs`, for resume=: with its id, configuration, log and newest checkpoint."""
    source = fetch_checkpoint(spec, outputs, options)
    facts = read_json(source / _RUN / "run.json", {}) if source.is_dir() else {}
    started = str(facts.get("started", ""))
    if not (isinstance(facts.get("id"), str) and started and (source / _RUN / "config.yaml").is_file()):
        raise UserError(
            f"run {spec} on W&B has weights and nothing to go on with; load={spec} starts a new run from them"
        )
    if facts["id"] != spec.rpartition("/")[2]:
        raise UserError(f"run {spec} on W&B is not what it says: its run.json is that of {facts['id']!r}")
    step = json.loads((source / "checkpoint.json").read_text("utf-8"))["step"]
    try:
        folder = _whole_run(source, outputs / started[:10], started[11:19].replace(":", "-"), facts, f"step-{step:08d}")
    except OSError as failure:
        raise UserError(f"cannot write the run from W&B into {outputs}: {failure.strerror or failure}") from failure
    with contextlib.suppress(OSError):  # where there are no links
        point_to(outputs / "latest-run", folder)
    say(f"run {facts['id']} came from W&B: {folder}")
    return folder


def _whole_run(source: Path, day: Path, second: str, facts: dict[str, Any], checkpoint: str) -> Path:
    """A run's folder made of `source`, which takes its place by one rename."""
    temporary = new_folder(day, f".{facts['id']}.tmp")
    try:
        (temporary / "pictures").mkdir()
        (temporary / "checkpoints").mkdir()
        kept = shutil.ignore_patterns(_RUN)
        shutil.copytree(source, temporary / "checkpoints" / checkpoint, ignore=kept, copy_function=_link)
        (temporary / "checkpoints" / "latest").symlink_to(checkpoint, target_is_directory=True)
        for file in (source / _RUN).iterdir():
            shutil.copyfile(file, temporary / file.name)
        write_json(temporary / "run.json", facts | {"status": "interrupted"})
        folder = new_folder(day, f"{second}-{file_name(str(facts['name']))}")
        os.replace(temporary, folder)  # an empty folder gives way
        return folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _check(folder: Path) -> None:
    """Raises UserError unless the whole checkpoint in `folder` can be read."""
    from diffusion_forcing.checkpoints import format as native

    found = _checkpoint_in(folder)
    if found.is_dir():
        native.verify(found)
    else:
        native.load(found)


def _checkpoint_in(folder: Path) -> Path:
    if (folder / "checkpoint.json").is_file():
        return folder
    files = sorted(folder.glob("*.ckpt"))
    if len(files) != 1:
        raise UserError(
            "what W&B has of that run is no checkpoint of this project, nor one .ckpt file of the released code"
        )
    return files[0]
