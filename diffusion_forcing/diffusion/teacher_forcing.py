"""Teacher forcing of every token at once: each noised token sees a clean past, whatever the levels of the others.

Next-token prediction, a baseline of the paper, noises one token of a sequence. A network with `teacher_forced` can be shown the clean
sequence beside the noised one, so that all tokens train in one call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion.forcing import DiffusionForcing, Loss


class TeacherForcedNetwork(nn.Module):
    """A network that predicts each of its tokens from a clean past. past: (b, t, *c) at levels past_k: (b, t), as the network sees it."""

    def __init__(self, network: nn.Module, past: Tensor, past_k: Tensor) -> None:
        super().__init__()
        self.network, self.past, self.past_k = network, past, past_k

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None
    ) -> tuple[Tensor, None]:
        network: Any = self.network
        return network.teacher_forced(self.past, self.past_k, x, k, conditions, memory), None


def teacher_forcing_loss(forcing: DiffusionForcing, x: Tensor, k: Tensor, **options: Any) -> Loss:
    """`DiffusionForcing.loss` of clean tokens x: (b, t, *c) at levels k: (b, t), each predicted from the clean tokens before it."""
    past, past_k = forcing.stabilize(x, torch.full_like(k, -1))

    def loss_weight(k: Tensor) -> Tensor:
        """Weights (b, t): a weight that looks at the history sees a clean one."""
        token = torch.arange(k.shape[1], device=k.device)
        # (b, t, t): for each token, the levels of a sequence whose earlier tokens are clean.
        levels = torch.where(token < token[:, None], past_k[:, None], k[..., None])
        weights = forcing.loss_weight(levels.flatten(0, 1)).unflatten(0, k.shape)
        return weights.diagonal(dim1=-2, dim2=-1)

    network = TeacherForcedNetwork(forcing.network, past, past_k)
    return forcing.over(network, loss_weight=loss_weight).loss(x, k, **options)
