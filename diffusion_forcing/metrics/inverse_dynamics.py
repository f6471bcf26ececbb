"""Inverse dynamics: which action led from one frame to the next, recognised by a small network that was trained on real video.

Its accuracy on generated pairs of frames over that on real ones says whether a world model obeys its actions, whatever its frames look like
pixel by pixel. Actions are discrete; a pair is two neighbouring frames in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError, first_line, require
from diffusion_forcing.metrics.video import check_frames, full_precision

TASK = "inverse_dynamics"
"""What a checkpoint of such a network says it is for."""


class InverseDynamics(nn.Module):
    """Frames (n, 2, c, h, w) in [0, 1], the one before and the one after → (n, actions), logits of the action between them.

    Convolutions that halve the frames down to 4×4, over both frames and their difference.
    """

    def __init__(self, channels: int, resolution: int, actions: int, width: int = 24) -> None:
        super().__init__()
        self.channels, self.resolution, self.actions, self.width = channels, resolution, actions, width
        layers: list[nn.Module] = []
        size, now = resolution, 3 * channels
        while size > 4:
            wider = width * min(4, resolution // size)
            layers += [nn.Conv2d(now, wider, 3, stride=2, padding=1), nn.GroupNorm(4, wider), nn.SiLU()]
            size, now = (size + 1) // 2, wider
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(now * size * size, actions))

    def forward(self, pairs: Tensor) -> Tensor:
        before, after = (2 * pairs - 1).unbind(dim=1)
        logits: Tensor = self.layers(torch.cat([before, after, after - before], dim=1))
        return logits

    def describe(self) -> dict[str, Any]:
        """Metadata of its checkpoint."""
        sizes = {name: getattr(self, name) for name in ("channels", "resolution", "actions", "width")}
        return {"task": TASK, "line": "", "sizes": sizes}

    @classmethod
    def of(cls, metadata: Mapping[str, Any], weights: Mapping[str, Tensor]) -> InverseDynamics:
        """The network of a checkpoint's metadata and weights; UserError for another kind of checkpoint."""
        if metadata.get("task") != TASK or not isinstance(metadata.get("sizes"), Mapping):
            raise UserError(
                f"it is a checkpoint for {metadata.get('task') or 'an unknown task'}, not for {TASK}; train one with tools/train_inverse_dynamics.py"
            )
        try:
            network = cls(**{name: int(value) for name, value in metadata["sizes"].items()})
            network.load_state_dict({key: value.float() for key, value in weights.items()})
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"its sizes and weights do not fit ({first_line(error)}); take another checkpoint"
            ) from error
        return network.eval().requires_grad_(False)


def actions_recognised(frames: Tensor, actions: Tensor, network: InverseDynamics) -> Tensor:
    """(b, t): 1 where the action between frames t and t + 1 of `frames`: (b, t + 1, c, h, w) in [0, 1] is recognised, 0 where not, on the CPU.

    actions: (b, t, a) one-hot. UserError for frames or actions that the network was not trained for.
    """
    frames = check_frames(frames, metric="inverse dynamics", length=2)
    again = "train it on them with tools/train_inverse_dynamics.py"
    size, trained = tuple(frames.shape[2:]), (network.channels, network.resolution, network.resolution)
    require(size == trained, f"inverse dynamics was trained on frames {trained}, these are {size}; {again}")
    numbers = f"{actions.shape[-1]} numbers (with frame_skip the actions of all skipped frames)"
    is_known = actions.shape[-1] == network.actions
    require(is_known, f"inverse dynamics tells {network.actions} actions apart, these have {numbers}; {again}")
    pairs = torch.stack([frames[:, :-1], frames[:, 1:]], dim=2).flatten(0, 1)
    with torch.no_grad(), full_precision(frames.device):
        recognised = torch.cat([network(part).argmax(dim=-1) for part in pairs.split(256)])
    right = recognised == actions.flatten(0, 1).argmax(dim=-1)
    return right.unflatten(0, actions.shape[:2]).float().cpu()


def inverse_dynamics_loss(network: InverseDynamics, frames: Tensor, actions: Tensor) -> Tensor:
    """Cross-entropy of the actions (b, t, a), one-hot, between neighbouring `frames`: (b, t + 1, c, h, w) in [0, 1]; a scalar."""
    pairs = torch.stack([frames[:, :-1], frames[:, 1:]], dim=2).flatten(0, 1)
    return F.cross_entropy(network(pairs), actions.flatten(0, 1).argmax(dim=-1))
