"""From a run's checkpoint to one to ship: weights to sample with, their metadata, and a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.errors import UserError, check_choice
from diffusion_forcing.options import merged

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
    if path_out.exists():
        raise UserError(f"{path_out} exists already; remove it or export to another folder")
    loaded = native.load(Path(path_in))
    weights = {
        key: value.to(_DTYPES[dtype]) if dtype and value.is_floating_point() else value
        for key, value in loaded.weights.items()
    }
    for key, value in weights.items():
        if not torch.isfinite(value).all():
            raise UserError(
                f"{path_in}: '{key}' is not finite{f' as {dtype}' if dtype else ''}; export as float32 or take another checkpoint"
            )
    metadata = loaded.metadata | {"exported_from": {"kind": loaded.kind, "name": loaded.path.name}}
    if sampling:
        metadata["sampling"] = merged(metadata.get("sampling") or {}, sampling)
    if loaded.kind == "released":
        metadata["statistics"] = {key: value.tolist() for key, value in loaded.statistics.items()}
    native.save(path_out, None, metadata=metadata, model=weights, step=loaded.step, card=card)
    return path_out
