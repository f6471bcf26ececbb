"""Reading what the released code was recorded to do, and holding ours against it (shared/parity/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from diffusion_forcing.algorithms.planning.algorithm import Planning, PlanningOptions
from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.released.options import planning_options_from_released, video_options_from_released

DATA = Path(__file__).parent / "data"
NETWORK = "diffusion_model.model."


@dataclass(frozen=True)
class Recording:
    """One file: its tensors by name, time-first as recorded, and its facts."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def options(self) -> PlanningOptions:
        """Our options for the recorded configuration."""
        return planning_options_from_released(self.meta["config"])

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def planning(self, **changes: Any) -> Planning:
        """Our planner with the recorded options and weights; `changes` are options."""
        config = {**self.meta["config"], **changes}
        planning = Planning(planning_options_from_released(config))
        planning.network.load_state_dict(weights(Path(self.meta["weights"]).stem))
        return planning

    def video(self, *, diffusion: dict[str, Any] | None = None, **changes: Any) -> Video:
        """Our video model with the recorded options and weights; `changes` are options."""
        config = {**self.meta["config"], **changes}
        config["diffusion"] = {**config["diffusion"], **(diffusion or {})}
        video = Video(video_options_from_released(config))
        if "weights" in self.meta:
            video.network.load_state_dict(weights(Path(self.meta["weights"]).stem))
        return video

    def agrees(self, ours: Tensor, name: str, *, relative: float = 1e-5, known_error: str | None = None) -> None:
        """Fail unless |ours − recorded| ≤ relative·max|recorded|, or 10 times what float32 itself was measured to lose.

        known_error: under which name that measurement is, if not the tensor's own.
        """
        recorded = self.tensors[name].float()
        assert ours.shape == recorded.shape, f"{name}: {tuple(ours.shape)} for {tuple(recorded.shape)}"
        measured = self.meta.get("err_vs_f64", {}).get(known_error or name, 0.0)
        allowed = max(relative * recorded.abs().max().item(), 10 * measured)
        difference = (ours.detach().float() - recorded).abs().max().item()
        assert difference <= allowed, f"{name}: off by {difference:.2e}, allowed {allowed:.2e}"


@cache
def recording(name: str) -> Recording:
    """The file `name`.safetensors."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        return Recording({key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["meta"]))  # noqa: SIM118


def weights(name: str) -> dict[str, Tensor]:
    """The network's weights out of a recorded module state."""
    return {key: value.float() for key, value in recording(name).below(NETWORK).items()}


def flip(x: Tensor) -> Tensor:
    """(t, b, …) ⇄ (b, t, …)."""
    return x.transpose(0, 1)


def norm(parameters: list[Tensor]) -> Tensor:
    """Euclidean length of all gradients together."""
    return torch.stack([p.norm() for p in parameters]).norm()
