"""The v1.5 3-D U-Net for tokens that are images (docs/method.md §8): video.

7×7 convolution, temporal attention; down, middle and up stages of two residual blocks (the token's noise level enters by FiLM), spatial
attention and temporal attention; skips. Convolutions and spatial attention see one frame at a time, so frames are folded into the batch,
(b·t, c, h, w) with channels last in memory, and only temporal attention knows of time. Convolutions keep the released shape
(out, in, 1, k, k) and are viewed as 2-D in the call. Causal with `norm: frame`, it keeps the keys and values of temporal attention as memory: a call
on the last frames with the memory of the earlier ones equals a call on all. `norm: clip` is the released behaviour, which sees the future.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.attention import LevelEmbedding, SpatialAttention, TemporalAttention, Turn, rotation
from diffusion_forcing.networks.memory import FrameCache, check_inputs

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


GROUPS = 8
RELEASED_WRAPPERS = re.compile(r"(?<![^.])(?:module|wrapper|attn_block)\.")
"""Words of the released parameter names that stand for nothing but a change of layout."""


class UNet3D(nn.Module):
    """x: (b, t, c, h, w) at levels k: (b, t) → (b, t, c, h, w).

    resolution: h and w. attn_resolutions: the feature maps' resolutions that have attention; the middle always has. conditions:
    (b, t, external_cond_dim), by FiLM beside the noise level, needed exactly when external_cond_dim > 0; all zeros say nothing. memory:
    a FrameCache of earlier frames, for networks that are really causal. patch_size: pixels a side that make one position of the feature
    map (1: the released network).
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        *,
        network_size: int = 64,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        attn_resolutions: Sequence[int] = (16, 32, 64, 128),
        attn_heads: int = 4,
        attn_dim_head: int = 64,
        use_init_temporal_attn: bool = True,
        use_linear_attn: bool = True,
        time_emb_type: Literal["rotary", "sinusoidal"] = "rotary",
        causal: bool = True,
        norm: Norm = "frame",
        external_cond_dim: int = 0,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        halvings = 2 ** (len(dim_mults) - 1) * patch_size
        if resolution % halvings:
            raise UserError(
                f"a resolution of {resolution} cannot be divided by {halvings} (patch_size {patch_size}, {len(dim_mults) - 1} halvings); "
                "choose another dataset.resolution or fewer dim_mults"
            )
        self.channels = channels
        self.resolution = resolution
        self.external_cond_dim = external_cond_dim
        self.causal = causal
        self.norm = norm
        self.patch_size = patch_size
        self.rotary = time_emb_type == "rotary"
        sizes = [network_size, *(network_size * mult for mult in dim_mults)]
        for size in sizes:
            check_groups(size, GROUPS)
        embedding = 4 * network_size
        inside = channels * patch_size**2

        def block(channels_in: int, channels_out: int) -> ResnetBlock:
            return ResnetBlock(channels_in, channels_out, embedding=embedding, groups=GROUPS, norm=norm)

        def spatial(size: int, linear: bool) -> nn.Module:
            return SpatialAttention(size, attn_heads, attn_dim_head, linear=linear and use_linear_attn)

        def temporal(size: int) -> nn.Module:
            return TemporalAttention(size, attn_heads, attn_dim_head, causal=causal, rotary=self.rotary)

        def attentions(size: int, stage_resolution: int, linear: bool) -> list[nn.Module]:
            if stage_resolution in attn_resolutions:
                return [spatial(size, linear), temporal(size)]
            return [nn.Identity(), nn.Identity()]

        # registered in the order of the released optimiser states
        self.noise_level_pos_embedding = LevelEmbedding(network_size, embedding, embedding)
        self.init_conv = FrameConv(inside, network_size, 7)
        self.init_temporal_attn = temporal(network_size) if use_init_temporal_attn else nn.Identity()
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        deepest = len(dim_mults) - 1
        resolutions = [resolution // patch_size // 2**stage for stage in range(len(dim_mults))]
        for stage, (size_in, size_out) in enumerate(pairwise(sizes)):
            layers: list[nn.Module] = [block(size_in, size_out), block(size_out, size_out)]
            layers += attentions(size_out, resolutions[stage], linear=stage < deepest)
            further = Downsample(size_out) if stage < deepest else nn.Identity()
            self.down_blocks.append(nn.ModuleList([nn.ModuleList(layers), further]))
        middle = sizes[-1]
        self.mid_block = nn.ModuleList(
            [block(middle, middle), spatial(middle, linear=False), temporal(middle), block(middle, middle)]
        )
        for stage in reversed(range(len(dim_mults))):
            size_in, size_out = sizes[stage], sizes[stage + 1]
            layers = [block(2 * size_out, size_in), block(size_in, size_in)]
            layers += attentions(size_in, resolutions[stage], linear=stage < deepest)
            layers.append(Upsample(size_in) if stage > 0 else nn.Identity())
            self.up_blocks.append(nn.ModuleList(layers))
        plain = ResnetBlock(2 * network_size, network_size, embedding=None, groups=GROUPS, norm=norm)
        self.out = nn.ModuleList([plain, FrameConv(network_size, inside, 1)])
        if external_cond_dim:
            last = nn.Linear(embedding, embedding, bias=False)
            nn.init.zeros_(last.weight)
            self.condition_embedding = nn.Sequential(
                nn.Linear(external_cond_dim, embedding, bias=False), nn.SiLU(), last
            )
        self.register_load_state_dict_pre_hook(_from_released_names)

    @property
    def keeps_memory(self) -> bool:
        """Whether it can be called with a memory: no frame's output depends on a later frame."""
        return self.causal and self.norm == "frame"

    @property
    def memory_slides(self) -> bool:
        """Whether a memory that lost its oldest frames still serves: rotary positions are relative, sinusoidal ones are added to a frame."""
        return self.rotary

    @property
    def why_no_memory(self) -> str:
        """What stands in the way of a memory, for a message; empty where nothing does."""
        if not self.causal:
            return "the network was built with causal=False: its frames see the future"
        if self.norm == "clip":
            return (
                "norm=clip (the released network's) normalises each frame by the frames after it too, so that the past is never finished; "
                "only norm=frame keeps a cache exact"
            )
        return ""

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: FrameCache | None = None
    ) -> tuple[Tensor, FrameCache | None]:
        check_inputs(conditions, self.external_cond_dim, x, (self.channels, self.resolution, self.resolution))
        if memory is not None and not self.keeps_memory:
            raise UserError(f"{self.why_no_memory}; sample it with algorithm.cache=none")
        batch, time = x.shape[:2]
        embedding = self.noise_level_pos_embedding(k)
        if conditions is not None:
            embedding = embedding + self.condition_embedding(conditions.to(embedding.dtype))
        embedding = embedding.flatten(0, 1)
        walk = _Walk(embedding, time, memory, x.device)

        h = x.flatten(0, 1)  # (b, t, c, h, w) → (b·t, c, h, w)
        if self.patch_size > 1:
            h = F.pixel_unshuffle(h, self.patch_size)
        h = first = walk(self.init_temporal_attn, self.init_conv(h.contiguous(memory_format=torch.channels_last)))
        # Down: two blocks and two attentions a stage.
        skips = []
        for layers, further in cast(list[tuple[nn.ModuleList, nn.Module]], self.down_blocks):
            for layer in layers:
                h = walk(layer, h)
            skips.append(h)
            h = further(h)
        # Middle.
        for layer in self.mid_block:
            h = walk(layer, h)
        # Up, each stage joined to what went down.
        for layers in cast(list[nn.ModuleList], self.up_blocks):
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in layers:
                h = walk(layer, h)
        plain, to_x = self.out
        h = to_x(plain(torch.cat([h, first], dim=1), None, time))
        if self.patch_size > 1:
            h = F.pixel_shuffle(h, self.patch_size)
        return h.unflatten(0, (batch, time)).contiguous(), walk.memory(self.rotary) if self.keeps_memory else None


class _Walk:
    """One pass through the network: what every layer may need, and the keys and values gathered on the way."""

    def __init__(self, embedding: Tensor, time: int, memory: FrameCache | None, device: torch.device) -> None:
        self.embedding = embedding
        self.time = time
        self.past = memory
        self.start = 0 if memory is None else memory.position
        self.positions = torch.arange(self.start, self.start + time, device=device)
        self.turn: Turn | None = None
        self.present: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: nn.Module, h: Tensor) -> Tensor:
        if isinstance(layer, ResnetBlock):
            return layer(h, self.embedding, self.time)
        if not isinstance(layer, TemporalAttention):
            return layer(h)
        index = len(self.present)
        past = None if self.past is None else self.past.layers[index]
        if self.turn is None and layer.time_pos_embedding is None:
            self.turn = rotation(self.positions, layer.attn.dim_head)  # of all layers
        h, present = layer(h, self.time, self.positions, past, self.turn)
        self.present.append(present)
        return h

    def memory(self, rotary: bool) -> FrameCache:
        return FrameCache(self.present, position=self.start + self.time, rotary=rotary, before=self.past)


def _from_released_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the entries of a released checkpoint in place, and leave out its copies of the rotary frequencies, which are constants."""
    for key in [key for key in state if key.startswith(prefix)]:
        name = key[len(prefix) :]
        if name.endswith(("rotary_emb.freqs", "rotary_time_pos_embedding.freqs")):
            del state[key]
        elif (ours := RELEASED_WRAPPERS.sub("", name)) != name:
            state[prefix + ours] = state.pop(key)
