"""The video task with the paper's own network: a latent carries the past, so a rollout has no window (METHOD §9).

All but the network, and the tokens that training shows clean, is `Video`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffusion_forcing.algorithms.video import Clips, Video, VideoDraws
from diffusion_forcing.algorithms.video_options import VideoOptions
from diffusion_forcing.algorithms.video_rnn_options import RecurrentVideoOptions
from diffusion_forcing.diffusion.rows import uniform
from diffusion_forcing.networks.recurrent import recurrent_unet


class RecurrentVideo(Video):
    """Recurrent Diffusion Forcing for video. `options` is a `RecurrentVideoOptions`."""

    Options = RecurrentVideoOptions
    line = "rnn"
    options: RecurrentVideoOptions

    @staticmethod
    def build_network(options: VideoOptions) -> nn.Module:
        assert isinstance(options, RecurrentVideoOptions)
        diffusion = options.diffusion
        return recurrent_unet(
            options.observation_shape[0] * options.frame_stack,
            options.z_shape,
            network_size=diffusion.network_size,
            num_gru_layers=diffusion.num_gru_layers,
            external_cond_dim=options.condition_width,
            learnable_init_z=options.learnable_init_z,
            self_condition=diffusion.self_condition,
        )

    def draw(self, clips: Clips, *, generator: torch.Generator | None = None) -> VideoDraws:
        """As for `Video`, and then which tokens are shown clean, at level 0."""
        draws, options = super().draw(clips, generator=generator), self.options
        if not options.gt_cond_prob and not options.gt_first_frame:
            return draws
        shape, device = draws.levels.shape, draws.levels.device
        clean = uniform(shape, generator=generator, device=device) < options.gt_cond_prob
        clean[:, 0] |= uniform((shape[0],), generator=generator, device=device) < options.gt_first_frame
        return draws._replace(levels=torch.where(clean, 0, draws.levels))

    @property
    def sizes(self) -> dict[str, dict[str, Any]]:
        options, diffusion = self.options, self.options.diffusion
        return {
            "algorithm": {"z_shape": list(options.z_shape), "learnable_init_z": options.learnable_init_z},
            "diffusion": {
                "network_size": diffusion.network_size,
                "num_gru_layers": diffusion.num_gru_layers,
                "self_condition": diffusion.self_condition,
            },
        }
