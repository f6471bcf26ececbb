"""Weights of well-known networks, as files that the user fetches: found, compared with a pinned SHA-256, read as tensors.

Nothing here downloads. A file that is missing or of another content is never used: the metric is `Unavailable` then
and says why and how to get it.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion_forcing.metrics.i3d_weights import cache_folder
from diffusion_forcing.metrics.unavailable import Unavailable


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
