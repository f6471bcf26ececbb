"""Layers that treat every frame by itself: convolution, normalisation, residual block, change of resolution.

Frames are folded into the batch: x is (b·t, c, h, w), channels last in memory, so that a (1, k, k) convolution is a 2-D one. Weights keep
the released shape (out, in, 1, k, k) and are viewed as 2-D in the call.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError

Norm = Literal["frame", "clip"]


class FrameConv(nn.Conv3d):
    """A (1, k, k) convolution of frames (n, c, h, w)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__(
            channels_in, channels_out, (1, kernel, kernel), (1, stride, stride), (0, kernel // 2, kernel // 2)
        )
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.squeeze(2), self.bias, self.stride[1:], self.padding[1:])


class FrameNorm(nn.GroupNorm):
    """Group normalisation of frames (b·t, c, h, w): over a frame (`frame`: causal), or over all frames of a clip (`clip`: as released).

    With `clip` the statistics of a frame depend on the frames after it, so that nothing built on it is causal (docs/method.md §12).
    """

    def __init__(self, groups: int, channels: int, norm: Norm) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.norm = norm

    def forward(self, x: Tensor, time: int = 1) -> Tensor:
        """time: how many frames make a clip."""
        if self.norm == "frame" or time == 1:
            return super().forward(x)
        groups = x.unflatten(0, (-1, time)).unflatten(2, (self.num_groups, -1))
        variance, mean = torch.var_mean(groups, dim=(1, 3, 4, 5), correction=0, keepdim=True)
        # one scale and shift a clip and channel
        scale = (variance + self.eps).rsqrt() * self.weight.view(self.num_groups, -1, 1, 1)
        shift = self.bias.view(self.num_groups, -1, 1, 1) - mean * scale
        return torch.addcmul(shift, groups, scale).flatten(2, 3).flatten(0, 1)


class ResnetBlock(nn.Module):
    """GroupNorm → SiLU → 3×3 convolution, twice; between them the token's embedding scales and shifts (FiLM, Perez et al. 2018)."""

    def __init__(self, channels_in: int, channels_out: int, *, embedding: int | None, groups: int, norm: Norm) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            FrameNorm(groups, channels_in, norm), nn.SiLU(), FrameConv(channels_in, channels_out, 3)
        )
        self.out_layers = nn.Sequential(
            FrameNorm(groups, channels_out, norm), nn.SiLU(), FrameConv(channels_out, channels_out, 3)
        )
        if embedding is not None:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * channels_out))
        self.skip_conv = FrameConv(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None, time: int) -> Tensor:
        """x: (b·t, c, h, w), embedding: (b·t, e) → (b·t, c', h, w)."""
        h = self.in_layers[2](F.silu(self.in_layers[0](x, time), inplace=True))
        h = self.out_layers[0](h, time)
        if embedding is not None:
            scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, scale + 1)
        return self.out_layers[2](F.silu(h, inplace=True)) + self.skip_conv(x)


class Downsample(nn.Module):
    """Half the resolution, by a 3×3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the resolution: every pixel repeated, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def check_groups(channels: int, groups: int) -> None:
    """UserError where a normalisation of `groups` groups cannot divide the channels."""
    if channels % groups:
        raise UserError(
            f"a stage of {channels} channels cannot be normalised in {groups} groups; make algorithm.diffusion.architecture.network_size "
            f"times every dim_mults a multiple of {groups}"
        )
