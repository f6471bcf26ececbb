"""Lightning's own saving and resuming, in our format: `Trainer(plugins=[SafetensorsCheckpointIO()])`.

What one samples with travels inside Lightning's checkpoint dict under the key `SAMPLING` (a callback puts it there) and
is written to model.safetensors; without it, the module's whole state is.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.errors import UserError

SAMPLING = "sampling"
"""Key of `{"facts": …, "model": …, "resumable": bool}` in the dict that Lightning saves; it is not in the dict that it
gets back."""
_NEEDED: dict[str, type] = {"state_dict": dict, "global_step": int, "loops": dict, "optimizer_states": list}
"""What Lightning's checkpoint has whenever one can resume from it."""
_NOT_KEPT = (
    "hyper_parameters",
    "hparams_name",
    "hparams_type",
    "datamodule_hyper_parameters",
    "datamodule_hparams_name",
)


class SafetensorsCheckpointIO(CheckpointIO):
    """Reads and writes Lightning checkpoints as folders of safetensors and json."""

    def __init__(self) -> None:
        super().__init__()
        self._preloaded: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` as the folder `path`; UserError, an older one untouched, if the disk refuses."""
        kept = {key: value for key, value in checkpoint.items() if key != SAMPLING and key not in _NOT_KEPT}
        sampling = checkpoint.get(SAMPLING) or {"facts": {}, "model": kept["state_dict"], "resumable": True}
        native.save(
            Path(path),
            kept if sampling.get("resumable", True) else None,
            facts=sampling["facts"],
            model=sampling["model"],
            step=int(kept.get("global_step", 0)),
        )

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The dict that was saved, its tensors on the CPU or where `map_location` (a device) says."""
        state = self.preload(Path(path))
        self._preloaded.clear()
        if isinstance(map_location, (str, torch.device)) and torch.device(map_location).type != "cpu":
            state["state_dict"] = {key: value.to(map_location) for key, value in state["state_dict"].items()}
        return state

    def preload(self, path: Path) -> dict[str, Any]:
        """Read the checkpoint `path` now, to look at it; Lightning's next load gets the same. UserError if it cannot be
        read."""
        if path not in self._preloaded:
            state = native.load(path, training=True).training
            for key, kind in _NEEDED.items():
                if not isinstance(state, dict) or not isinstance(state.get(key), kind):
                    raise UserError(
                        f"cannot resume from {path}: its {native.TRAINING} has no {key}; take another checkpoint"
                    )
            assert state is not None
            self._preloaded = {path: state}
        return self._preloaded[path]

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the folder `path` if it is one of ours."""
        if native.is_checkpoint(Path(path)):
            shutil.rmtree(path, ignore_errors=True)
