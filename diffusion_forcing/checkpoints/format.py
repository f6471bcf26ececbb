"""Our checkpoint: a folder of tensors (safetensors) and facts (json), written whole or not at all, read without running
anything.

    step-00010000/
        checkpoint.json       format and version, step, what it is for (the algorithm's facts), libraries, size and
        sha256 of each file model.safetensors     the network one samples with (averaged weights where the run keeps an
        average) training.safetensors  for resuming: raw weights, average, optimiser, random states … training.json
        … and the tree that names them (see codec)

A shipped checkpoint is the same folder with the first two files and a card, README.md. Everything is written into a
hidden sibling folder, flushed to the disk and renamed; a kill leaves the old checkpoint or the new one. Reading checks
sizes and sha256 first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_forcing import __version__
from diffusion_forcing.checkpoints.codec import decode, encode
from diffusion_forcing.checkpoints.loaded import LoadedCheckpoint
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import replacing
from diffusion_forcing.released import importer as released

FORMAT = "diffusion-forcing checkpoint"
VERSION = 1
FACTS, MODEL, TRAINING, TREE = "checkpoint.json", "model.safetensors", "training.safetensors", "training.json"
CARD = "README.md"
_DAMAGES = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,  # torch's, of what no device or size can be; RecursionError is one
)
_LIBRARIES = ("torch", "lightning", "numpy", "safetensors")


def save(
    path: Path,
    lightning_checkpoint: Mapping[str, Any] | None,
    *,
    facts: Mapping[str, Any],
    model: Mapping[str, Tensor],
    step: int | None = None,
    card: str | None = None,
) -> Path:
    """Write a checkpoint folder at `path`, replacing one that is there; UserError, the old one untouched, if the disk
    refuses.

    `lightning_checkpoint`: all that resuming needs, or None for a checkpoint to sample with. `facts`: JSON-able, the
    algorithm's `describe()`. `model`: the network's tensors. `step`: optimiser steps; read from the Lightning
    checkpoint by default. `card`: text of a README.md beside them.
    """
    path = Path(path)
    if step is None:
        step = int((lightning_checkpoint or {}).get("global_step", 0))
    own = {key: value.detach().cpu().contiguous().clone() for key, value in model.items()}  # none shares memory
    with _written_whole(path) as folder:
        save_file(own, folder / MODEL)
        if lightning_checkpoint is not None:
            tree, state = encode(dict(lightning_checkpoint))
            save_file(state, folder / TRAINING)
            (folder / TREE).write_text(json.dumps(tree), "utf-8")
        header = {
            "format": FORMAT,
            "version": VERSION,
            "step": step,
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "facts": dict(facts),
            "libraries": _libraries(),
            "files": {file.name: _fingerprint(file) for file in sorted(folder.iterdir()) if file.name != CARD},
        }
        if card is not None:
            (folder / CARD).write_text(card, "utf-8")
        (folder / FACTS).write_text(json.dumps(header, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def load(path: Path, *, training: bool = False) -> LoadedCheckpoint:
    """Read a checkpoint: one of our folders, or a released `.ckpt` file. With `training`, also what resuming needs.

    UserError, one line, for anything else: missing, truncated, changed, of another format or version, of a task that is
    not ours.
    """
    path = Path(path)
    if path.is_file():
        if training:
            raise UserError(
                f"cannot resume from {path}: it is a single file; load={path} starts a new run from its weights"
            )
        return released.load(path)
    header = read_header(path)
    weights = _tensors(path, header, MODEL)
    state = None
    if training:
        if TRAINING not in header["files"] or TREE not in header["files"]:
            raise UserError(f"cannot resume from {path}: it keeps weights only; load={path} starts a new run from them")
        tensors = _tensors(path, header, TRAINING)
        _check(path, header, TREE)
        with _told_as_damaged(path / TREE):
            state = decode(json.loads((path / TREE).read_text("utf-8")), tensors)
    facts = dict(header["facts"])
    with _told_as_damaged(path / FACTS):
        statistics = {name: torch.tensor(values, dtype=torch.float32) for name, values in _statistics(facts).items()}
    return LoadedCheckpoint(
        path=path,
        kind="native",
        facts=facts,
        weights=weights,
        statistics=statistics,
        step=header["step"],
        training=state,
    )


def verify(path: Path) -> None:
    """UserError, one line, unless `path` is a checkpoint folder of ours with every file as it was written."""
    header = read_header(path)
    for name in header["files"]:
        _check(Path(path), header, name)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder with our facts file in it."""
    return (Path(path) / FACTS).is_file()


def read_header(path: Path) -> dict[str, Any]:
    """checkpoint.json of the checkpoint folder `path`; UserError if it is not ours or a later version's."""
    file = Path(path) / FACTS
    try:
        header = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is not a checkpoint: it has no {FACTS}; pass a checkpoint folder or a .ckpt file"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as a checkpoint's facts ({error}); take another checkpoint") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f'{file} was not written by this project (no "format": "{FORMAT}"); take another checkpoint')
    if header.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint format version {header.get('version')!r}, this program reads {VERSION}; "
            "use the version of diffusion-forcing that wrote it "
            f"({_writer(header)})"
        )
    files, facts, step = header.get("files"), header.get("facts"), header.get("step")
    whole = isinstance(files, dict) and MODEL in files and isinstance(facts, dict)
    if not whole or not isinstance(step, int) or not 0 <= step < 2**63:
        raise UserError(f"{file} is incomplete (needs step, facts and files with {MODEL}); take another checkpoint")
    for key in ("task", "line"):
        if not isinstance(facts.get(key, ""), str):  # type: ignore[union-attr]
            raise UserError(f"{file} is damaged (facts.{key} is no word); take another checkpoint")
    return header


def _writer(header: Mapping[str, Any]) -> str:
    libraries = header.get("libraries")
    return str(libraries.get("diffusion-forcing", "unknown")) if isinstance(libraries, dict) else "unknown"


def _statistics(facts: Mapping[str, Any]) -> dict[str, Any]:
    found = facts.get("statistics") or {key: facts[key] for key in ("data_mean", "data_std") if key in facts}
    return dict(found)


def _tensors(path: Path, header: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    _check(path, header, name)
    with _told_as_damaged(path / name):
        return load_file(path / name)


def _check(path: Path, header: Mapping[str, Any], name: str) -> None:
    """The file is the one that was written: its size first, then its sha256."""
    with _told_as_damaged(path / name):
        expected = header["files"][name]
        found = {"bytes": (path / name).stat().st_size}
        if found["bytes"] != expected["bytes"]:
            raise ValueError(f"{found['bytes']} bytes, {expected['bytes']} were written")
        if _fingerprint(path / name)["sha256"] != expected["sha256"]:
            raise ValueError("its sha256 is not the one that was written")


@contextlib.contextmanager
def _told_as_damaged(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"checkpoint {file.parent} is incomplete: {file.name} is missing; copy the whole folder"
        ) from None
    except (*_DAMAGES, SafetensorError) as error:
        raise UserError(f"{file} is damaged ({error}); copy it again or take another checkpoint") from None


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """A new hidden folder beside `path`, renamed to `path` when the block ends well and removed when it does not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=True) as temporary:
            temporary.mkdir()
            yield temporary
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot save the checkpoint {path}: {reason}; older checkpoints are untouched, "
            "make room or pass outputs=<a folder you may write to>"
        ) from error


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _libraries() -> dict[str, str]:
    found = {"diffusion-forcing": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
