"""Our checkpoint: a folder, written whole or not at all, and read without running anything that is in it.

    step-00010000/
    ├── checkpoint.json      format and version, step, metadata (what the weights are for, under "facts"),
    │                        library versions, size and sha256 of the files below
    ├── model.safetensors    weights to sample with: averaged ones where the run keeps an average
    ├── training.pt          what resuming needs: raw weights, average, optimiser, data position, random states
    └── README.md            a shipped checkpoint's card

A shipped checkpoint has no training.pt. The folder is written under a hidden name beside its place, flushed to the disk
and renamed; a kill leaves the old checkpoint or the new one. Reading compares sizes and sha256 first. training.pt is
read with `torch.load(weights_only=True)`: tensors, plain Python values and numpy arrays, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_forcing import __version__
from diffusion_forcing.arrays import load_torch
from diffusion_forcing.errors import UserError, check_choice, require
from diffusion_forcing.files import replacing
from diffusion_forcing.limits import Refused, load_json, reading
from diffusion_forcing.options import merged
from diffusion_forcing.released import importer as released

FORMAT = "diffusion-forcing checkpoint"
VERSION = 1
HEADER, MODEL, TRAINING, CARD = "checkpoint.json", "model.safetensors", "training.pt", "README.md"
_LIBRARIES = ("torch", "lightning", "numpy", "safetensors")
_NUMPY: Any = getattr(np, "_core", None) or np.core  # NumPy 2 and 1
_REMEDY = "copy the whole folder again, or take another checkpoint"
_EACH = 1000
"""Numbers that a parameter counts at least: millions of small ones take long to make."""
_SMALL_NETWORK = 1 << 24
"""Numbers that a network may have whatever its checkpoint holds: tables and masks are not stored."""
_PLAIN: list[Any] = [
    *(np.ndarray, np.dtype, _NUMPY.multiarray._reconstruct, _NUMPY.multiarray.scalar),
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},
    *(timedelta, type(Path())),
]
"""Besides what PyTorch allows: kinds of plain values that schedulers and callbacks keep."""


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """A checkpoint in memory, on the CPU. Nothing in it has been run; the algorithm decides whether it fits."""

    path: Path
    """The folder (native) or the `.ckpt` file (released)."""
    kind: str
    """`native` (our format) or `released` (a `.ckpt`)."""
    metadata: dict[str, Any]
    """What the weights are for: `task`, `line`, options, shapes. Released: what can be inferred from the tensors."""
    weights: dict[str, Tensor]
    """The network's, named as in `algorithm.network.state_dict()`; averaged ones where the run kept an average."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """`data_mean`, `data_std`: one number per feature, data units."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Released only: the tables of the noise schedule (`betas`, `alphas_cumprod`, …), each (K,)."""
    step: int = 0
    """Optimiser steps taken."""
    optimizer: dict[str, dict[str, Tensor]] | None = None
    """Released only: AdamW's state by the weight's name in `weights`; None where it does not match them."""
    training: dict[str, Any] | None = None
    """Lightning's whole checkpoint, for resuming; None unless asked for, and in a shipped checkpoint."""


def save(
    path: Path,
    lightning_checkpoint: Mapping[str, Any] | None,
    *,
    metadata: Mapping[str, Any],
    model: Mapping[str, Tensor],
    step: int | None = None,
    card: str | None = None,
) -> Path:
    """Write a checkpoint folder at `path`, replacing an existing one.

    `lightning_checkpoint`: all that resuming needs, or None for weights only. `metadata`: JSON-able, the algorithm's
    `describe()`. `model`: the network's tensors. `step`: optimiser steps; read from the Lightning checkpoint by
    default. `card`: text of a README.md beside them. UserError, the old checkpoint untouched, if the disk refuses;
    TypeError if `lightning_checkpoint` holds objects that could not be read back.
    """
    path = Path(path)
    if step is None:
        step = int((lightning_checkpoint or {}).get("global_step", 0))
    # safetensors refuses tensors that share memory
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=True) as folder:
            folder.mkdir()
            save_file(weights, folder / MODEL)
            if lightning_checkpoint is not None:
                _write_training(dict(lightning_checkpoint), folder / TRAINING)
            header = {
                "format": FORMAT,
                "version": VERSION,
                "step": step,
                "created": datetime.now().astimezone().isoformat(timespec="seconds"),
                "facts": dict(metadata),
                "libraries": _libraries(),
                "files": {file.name: fingerprint(file) for file in sorted(folder.iterdir())},
            }
            if card is not None:
                (folder / CARD).write_text(card, "utf-8")
            (folder / HEADER).write_text(json.dumps(header, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot save the checkpoint {path}: {getattr(error, 'strerror', None) or error}; older checkpoints are "
            "untouched, make room or pass outputs=<another folder>"
        ) from error
    return path


def load(path: Path, *, training: bool = False) -> LoadedCheckpoint:
    """Read a checkpoint: one of our folders, or a released `.ckpt` file. With `training`, also what resuming needs.

    UserError, one line, for anything else: missing, truncated, changed, of another format or version, of another task.
    """
    path = Path(path)
    if path.is_file():
        single = f"cannot resume from {path}, a single file; load={path} starts a new run from its weights"
        require(not training, single)
        return LoadedCheckpoint(**released.load(path))
    header = read_header(path)
    with _checked(path, header, MODEL) as file:
        weights = load_file(file)
    state = _load_training(path, header) if training else None
    metadata = header["facts"]
    numbers = metadata.get("statistics") or {key: metadata[key] for key in ("data_mean", "data_std") if key in metadata}
    with reading(path / HEADER, _REMEDY):
        statistics = {name: torch.tensor(values, dtype=torch.float32) for name, values in dict(numbers).items()}
    return LoadedCheckpoint(
        path=path,
        kind="native",
        metadata=metadata,
        weights=weights,
        statistics=statistics,
        step=header["step"],
        training=state,
    )


def verify(path: Path) -> None:
    """UserError, one line, unless `path` is a checkpoint folder of ours with every file as it was written."""
    header = read_header(path)
    for name in header["files"]:
        with _checked(Path(path), header, name):
            pass


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint folder of ours."""
    return (Path(path) / HEADER).is_file()


def read_header(path: Path) -> dict[str, Any]:
    """checkpoint.json of the checkpoint folder `path`; UserError if it is not ours or of another format version."""
    file = Path(path) / HEADER
    require(file.exists(), f"{path} is not a checkpoint: it has no {HEADER}; pass a checkpoint folder or a .ckpt file")
    with reading(file, _REMEDY):
        header = load_json(file)
    ours = f'{file} was not written by this project (no "format": "{FORMAT}"); take another checkpoint'
    require(header.get("format") == FORMAT, ours)
    if header.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint format version {header.get('version')!r}, this program reads {VERSION}; "
            f"use the version of diffusion-forcing that wrote it ({_writer(header)})"
        )
    files, metadata, step = header.get("files"), header.get("facts"), header.get("step")
    is_complete = isinstance(files, dict) and MODEL in files and isinstance(step, int) and 0 <= step < 2**63
    is_complete = is_complete and all(name == Path(name).name and name != ".." for name in dict(files or {}))
    is_named = isinstance(metadata, dict) and all(isinstance(metadata.get(key, ""), str) for key in ("task", "line"))
    damage = f"{file} is damaged (needs step, facts and files with {MODEL}); take another checkpoint"
    require(is_complete and is_named, damage)
    return header


def fingerprint(file: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of `file`."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _write_training(state: dict[str, Any], file: Path) -> None:
    """`state` as `file`. Nothing is kept that `load_torch` would refuse: that shows now, not when resuming."""
    try:
        with file.open("wb") as stream:
            torch.save(state, stream)
        load_torch(file, allowed=_PLAIN, mmap=True)  # reads no tensor
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise TypeError(
            f"a callback, scheduler or module keeps more than tensors and plain values in its state_dict(): {error}"
        ) from error
    except RuntimeError as error:
        # PyTorch hides the disk's error behind one of its own.
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _load_training(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    weights_only = f"cannot resume from {path}: it keeps weights only; load={path} starts a new run from them"
    require(TRAINING in header["files"], weights_only)
    with _checked(path, header, TRAINING) as file:
        state: dict[str, Any] = load_torch(file, allowed=_PLAIN)
        return state


def _writer(header: Mapping[str, Any]) -> str:
    libraries = header.get("libraries")
    return str(libraries.get("diffusion-forcing", "unknown")) if isinstance(libraries, dict) else "unknown"


@contextlib.contextmanager
def _checked(path: Path, header: Mapping[str, Any], name: str) -> Iterator[Path]:
    """The file `name` of a checkpoint, to be read inside the block, once its size and then its sha256 are right."""
    file = path / name
    with reading(file, _REMEDY):
        expected, size = header["files"][name], file.stat().st_size
        if size != expected["bytes"]:
            raise Refused(f"has {size} bytes, {expected['bytes']} were written")
        if fingerprint(file)["sha256"] != expected["sha256"]:
            raise Refused("has another sha256 than was written")
        yield file


@contextlib.contextmanager
def sized_by(checkpoint: Path | None) -> Iterator[None]:
    """Inside the block, UserError for a network that needs more numbers than `checkpoint` has bytes: the sizes in a
    checkpoint.json are believed only as far as the weights beside it reach. No bound where it is None."""
    if checkpoint is None:
        yield
        return
    file = checkpoint / MODEL if checkpoint.is_dir() else checkpoint
    most, counted = _SMALL_NETWORK + (file.stat().st_size if file.exists() else 0), 0

    def count(module: Any, name: str, value: Tensor | None) -> None:
        nonlocal counted
        counted += _EACH + (0 if value is None else value.numel())
        if counted > most:
            raise UserError(
                f"{checkpoint} does not hold the network that is asked for: its sizes need more than {most:,} numbers; "
                "use the configuration it was trained with, or take another checkpoint"
            )

    modules = torch.nn.modules.module
    hooks = modules.register_module_parameter_registration_hook, modules.register_module_buffer_registration_hook
    with contextlib.ExitStack() as registered:
        for hook in hooks:
            registered.callback(hook(count).remove)
        yield


def _libraries() -> dict[str, str]:
    found = {"diffusion-forcing": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(installed.PackageNotFoundError):
            found[name] = installed.version(name)
    return found


# ---------------------------------------------------------------------------------------------------- shipping

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def export(
    path_in: Path,
    path_out: Path,
    *,
    dtype: str | None = "float32",
    card: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Path:
    """Write the weights of the checkpoint `path_in` (ours or a released `.ckpt`) as a checkpoint `path_out` to ship.

    `dtype`: `float32`, `float16` for half the size (algorithms cast it back), or None for what the weights are. `card`: text of its README.md.
    `sampling`: nested options that loading it sets, such as `{"algorithm": {"guidance_scale": 3}}`, beside those it has. UserError if
    `path_out` exists, for another dtype, and for weights that float16 cannot hold.
    """
    path_out = Path(path_out)
    if dtype is not None:
        check_choice("dtype", dtype, _DTYPES)
    require(not path_out.exists(), f"{path_out} exists already; remove it or export to another folder")
    loaded = load(Path(path_in))
    weights = {}
    for key, value in loaded.weights.items():
        weights[key] = value.to(_DTYPES[dtype]) if dtype and value.is_floating_point() else value
        finite = bool(torch.isfinite(weights[key]).all())
        as_type = f" as {dtype}" if dtype else ""
        require(finite, f"{path_in}: '{key}' is not finite{as_type}; export as float32 or take another checkpoint")
    metadata = loaded.metadata | {"exported_from": {"kind": loaded.kind, "name": loaded.path.name}}
    if sampling:
        metadata["sampling"] = merged(metadata.get("sampling") or {}, sampling)
    if loaded.kind == "released":
        metadata["statistics"] = {key: value.tolist() for key, value in loaded.statistics.items()}
    save(path_out, None, metadata=metadata, model=weights, step=loaded.step, card=card)
    return path_out
