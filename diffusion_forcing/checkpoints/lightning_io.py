"""Lightning saves and resumes in our format with `Trainer(plugins=[SafetensorsCheckpointIO()])`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.errors import UserError

SAMPLING = "sampling"
"""Key, in the dict that Lightning saves, of `{"metadata": …, "model": …, "resumable": bool}`, which a callback puts there:
what goes into checkpoint.json and model.safetensors. Without it the module's whole state is saved."""
_NEEDED: dict[str, type] = {"state_dict": dict, "global_step": int, "loops": dict, "optimizer_states": list}
"""What a Lightning checkpoint has if it can be resumed from."""
_NOT_KEPT = {
    *(SAMPLING, "hyper_parameters", "hparams_name", "hparams_type"),
    *("datamodule_hyper_parameters", "datamodule_hparams_name"),
}


class SafetensorsCheckpointIO(CheckpointIO):
    """Reads and writes Lightning checkpoints as our folders."""

    def __init__(self) -> None:
        super().__init__()
        self._preloaded: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` as the folder `path`; UserError, an older one untouched, if the disk refuses."""
        kept = {key: value for key, value in checkpoint.items() if key not in _NOT_KEPT}
        sampling = checkpoint.get(SAMPLING) or {"metadata": {}, "model": kept["state_dict"], "resumable": True}
        native.save(
            Path(path),
            kept if sampling["resumable"] else None,
            metadata=sampling["metadata"],
            model=sampling["model"],
            step=int(kept.get("global_step", 0)),
        )

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The dict that was saved, its tensors on the CPU, its weights on the device `map_location` if that is one."""
        state = self.preload(Path(path))
        self._preloaded.clear()
        if isinstance(map_location, (str, torch.device)) and torch.device(map_location).type != "cpu":
            state["state_dict"] = {key: value.to(map_location) for key, value in state["state_dict"].items()}
        return state

    def preload(self, path: Path) -> dict[str, Any]:
        """Read the checkpoint `path` now, for inspection; Lightning's next load gets the same. UserError if it cannot."""
        if path not in self._preloaded:
            state: Any = native.load(path, training=True).training
            for key, kind in _NEEDED.items():
                if not isinstance(state, dict) or not isinstance(state.get(key), kind):
                    raise UserError(
                        f"cannot resume from {path}: its {native.TRAINING} has no {key}; take another checkpoint"
                    )
            self._preloaded = {path: state}
        return self._preloaded[path]

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the folder `path` if it is one of ours."""
        if native.is_checkpoint(Path(path)):
            shutil.rmtree(path, ignore_errors=True)
