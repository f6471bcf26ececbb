"""Where `load=` and `resume=` look for a checkpoint: a path, a run's id, the name of a shipped one, the Hugging Face Hub."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints import hub
from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.files import folders, recover, run_folders

SHIPPED = "pretrained"
LATEST = "latest"


def resolve(spec: str, outputs: Path = Path("outputs")) -> Path:
    """The checkpoint that `spec` names: a checkpoint folder of ours, or a single file (a released `.ckpt`).

    `spec`: a path to either or to a file inside ours, a run's folder (its newest checkpoint), the id of a run below
    `outputs`, a shipped checkpoint's name (`maze2d_medium_goal` or `pretrained/maze2d_medium_goal`), or a place on the hub
    (`hf://user/repo[@revision][/folder]`), which is downloaded. UserError naming what is missing and how to get it.
    """
    if spec.startswith(hub.SCHEME):
        return hub.fetch(spec)
    path = Path(spec).expanduser()
    try:
        path.stat()
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.EACCES):
            raise UserError(f"cannot read the checkpoint {spec}: {os.strerror(error.errno)}") from None  # type: ignore[union-attr, arg-type]
    if path.is_dir():
        return _in_folder(path, f"load={spec}")
    if path.exists():
        return path.parent if path.name in (native.HEADER, native.MODEL) and native.is_checkpoint(path.parent) else path
    for place in shipped_places():
        candidate = place / str(spec).removeprefix(f"{SHIPPED}/")
        if native.is_checkpoint(candidate):
            return candidate
    runs = run_folders(outputs)
    if spec in runs:
        return _in_folder(runs[spec], f"run {spec}")
    raise UserError(_missing(spec, Path(outputs), runs))


def latest(run_folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's folder or in its `checkpoints` folder; None if there is none."""
    folder = Path(run_folder)
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    recover(folder)
    pointed = folder / LATEST
    if native.is_checkpoint(pointed):
        target = folder / os.readlink(pointed) if pointed.is_symlink() else pointed
        if target.resolve().parent == folder.resolve():  # a link out of the run is not followed
            return target
    found = [path for path in folders(folder) if native.is_checkpoint(path)]
    return max(found, key=_step, default=None)


def shipped() -> list[str]:
    """Names of the shipped checkpoints that can be found."""
    return sorted({path.name for place in shipped_places() for path in folders(place) if native.is_checkpoint(path)})


def shipped_places() -> list[Path]:
    """Where shipped checkpoints are looked for: the working directory, this checkout, the installed package's data."""
    package = Path(__file__).resolve().parents[1]
    data = Path(sys.prefix) / "share" / "diffusion-forcing"
    return [Path(SHIPPED), package.parent / SHIPPED, package / SHIPPED, data / SHIPPED]


def _in_folder(path: Path, what: str) -> Path:
    """The checkpoint folder `path`, or the newest checkpoint of the run `path`."""
    if native.is_checkpoint(path):
        return path
    found = latest(path)
    if found is None:
        raise UserError(
            f"{what}: no checkpoint in {path}; the run ended before its first one, or it is no run's folder"
        )
    return found


def _missing(spec: str, outputs: Path, runs: Iterable[str]) -> str:
    names = shipped()
    near = did_you_mean(str(spec).removeprefix(f"{SHIPPED}/"), [*names, *runs])
    here = (
        f"shipped here: {', '.join(names)} (the wheel has fewer than a checkout)" if names else "none are shipped here"
    )
    if os.sep in spec or Path(spec).suffix:
        return (
            f"the checkpoint {spec} does not exist (looked in {Path.cwd()}){near}: put a downloaded checkpoint at that "
            f"path, train one (leave load= out; it is saved in the run's folder), or use a shipped one ({here})"
        )
    return (
        f"'{spec}' is neither a path, nor the id of a run in {outputs}, nor a shipped checkpoint{near}; "
        f"{here}; or train one (leave load= out) and pass its run id"
    )


def _step(path: Path) -> int:
    try:
        return int(native.read_header(path)["step"])
    except UserError:
        return -1
