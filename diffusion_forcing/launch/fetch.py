"""Find the run that `load=` or `resume=` names on W&B, where it is not on this machine, and download its newest
checkpoint.

Paths, runs in outputs/ and shipped checkpoints come first. W&B is asked only for what can be a run's id, and only if it
is switched on (tracking=wandb, wandb.mode=online) or this machine is logged in. Every file is checked before it is
used. Of an artifact only the known files are downloaded, and what they say is data: no word of theirs becomes a path.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.errors import UserError, explaining_os_errors, require
from diffusion_forcing.files import (
    file_name,
    is_plain,
    is_regular,
    make_folder,
    new_folder,
    point_to,
    replacing,
    write_json,
)
from diffusion_forcing.terminal import say
from diffusion_forcing.tracking.records import RUN, RUN_FILES, read_metadata
from diffusion_forcing.tracking.run import ID_LENGTH
from diffusion_forcing.tracking.wandb import EXTRA, WandbOptions, installed, logged_in

DOWNLOADS = "downloads"
"""Folder in outputs/ of checkpoints from W&B, named <run id>-<version>."""
_SPEC = re.compile(rf"(?:(?P<entity>\w[\w.-]*)/(?P<project>\w[\w.-]*)/)?(?P<id>[a-z0-9]{{{ID_LENGTH}}})")


def is_run_id(spec: str) -> bool:
    """Whether `spec` can be a run on W&B: `abcd1234`, or `entity/project/abcd1234`."""
    return _SPEC.fullmatch(spec) is not None


def asks_wandb(spec: str, options: WandbOptions, *, tracked: bool) -> bool:
    """Whether to look for `spec` on W&B. `tracked`: tracking=wandb is chosen."""
    if not is_run_id(spec) or options.mode in ("disabled", "offline"):
        return False
    return tracked or options.mode == "online" or (installed() and logged_in())


def fetch_checkpoint(spec: str, outputs: Path, options: WandbOptions) -> Path:
    """The newest checkpoint of the run `spec` on W&B, for load=: one of our folders, or a .ckpt of the released code.

    Downloaded into outputs/downloads. UserError without wandb, a network, a login or such a run, or if it is damaged.
    """
    say(f"{spec} is not on this machine; looking for it on W&B")
    require(installed(), f"wandb is not installed: {EXTRA}")
    require(logged_in(), "there is no W&B login on this machine; run wandb login or set WANDB_API_KEY")
    from diffusion_forcing.tracking.wandb_upload import download_newest_checkpoint

    found = _SPEC.fullmatch(spec)
    assert found is not None
    folder = outputs / DOWNLOADS
    with explaining_os_errors(f"cannot write the run from W&B into {folder}", "make room there"):
        make_folder(folder)
    files = (native.HEADER, native.MODEL, native.TRAINING, native.CARD)
    project, entity = found["project"] or options.project, found["entity"] or options.entity
    return _checkpoint_in(download_newest_checkpoint(found["id"], project, entity, folder, files=files, check=_check))


def fetch_run(spec: str, outputs: Path, options: WandbOptions) -> Path:
    """The run `spec` on W&B as a folder in `outputs`, for resume=, with its newest checkpoint."""
    source = fetch_checkpoint(spec, outputs, options)
    metadata = read_metadata(source / RUN) or {}
    is_whole = metadata.get("id") == spec.rpartition("/")[2] and is_regular(source / RUN / "config.yaml")
    if not is_whole or "started" not in metadata:
        raise UserError(
            f"run {spec} on W&B cannot be resumed, it has weights only; load={spec} starts a new run from them"
        )
    started = metadata["started"]
    place = outputs / started[:10] / f"{started[11:19].replace(':', '-')}-{file_name(metadata['name'])}"
    with explaining_os_errors(f"cannot write the run from W&B into {outputs}", "make room there"):
        folder = new_folder(place.parent, place.name)
        try:
            with replacing(folder) as temporary:
                _write_run(temporary, source, metadata)
        except BaseException:
            for empty in (folder, place.parent):
                with contextlib.suppress(OSError):
                    empty.rmdir()
            raise
    with contextlib.suppress(OSError):  # a file system without links
        point_to(outputs / "latest-run", folder)
    say(f"run {metadata['id']} was downloaded from W&B: {folder}")
    return folder


def _write_run(folder: Path, source: Path, metadata: dict[str, Any]) -> None:
    """Write a run's folder from its downloaded checkpoint."""
    header = native.read_header(source)
    name = f"step-{header['step']:08d}"
    checkpoint = folder / "checkpoints" / name
    checkpoint.mkdir(parents=True)
    (folder / "pictures").mkdir()
    for file in (native.HEADER, *header["files"], native.CARD):
        if is_plain(file) and is_regular(source / file):
            shutil.copyfile(source / file, checkpoint / file)
    (checkpoint.parent / "latest").symlink_to(name, target_is_directory=True)
    for file in RUN_FILES:
        if is_regular(source / RUN / file):
            shutil.copyfile(source / RUN / file, folder / file)
    write_json(folder / "run.json", metadata | {"status": "interrupted"})


def _check(folder: Path) -> None:
    """UserError unless the whole checkpoint in `folder` can be read."""
    found = _checkpoint_in(folder)
    if found.is_dir():
        native.verify(found)
    else:
        native.load(found)


def _checkpoint_in(folder: Path) -> Path:
    if (folder / "checkpoint.json").is_file():
        return folder
    files = sorted(folder.glob("*.ckpt"))
    require(len(files) == 1, "the run's artifact on W&B is neither a checkpoint of this project nor one .ckpt file")
    return files[0]
