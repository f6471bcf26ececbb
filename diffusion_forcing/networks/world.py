"""A 2-D U-Net over frames with a direct path from the last frames to the next one: the network of a world model (docs/world_model.md).

Each frame sees, at full resolution, itself, the frames just before it as noisy as they are shown, and those frames warped into its own view.
The warp is a coarse optical flow that is read from the past frames and the actions alone, so it is computed once a frame and not once a
denoising step; the output starts from the warped frame. Attention at the lowest resolution runs over space and time together: the pixels of a
frame attend to all pixels of the last `window` frames. Everything else treats each frame by itself, so time is mixed in the encoder and the
bottleneck only, and remembering a finished frame costs no decoder.

The network is strictly causal. Attention has a sliding window in training too, so a rollout that keeps a ring buffer of `window` − 1 frames
(`WorldMemory`) computes exactly what training computed, however long it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError, check_choice, check_minimum, check_range, require
from diffusion_forcing.networks.attention import KeysAndValues
from diffusion_forcing.networks.memory import check_inputs
from diffusion_forcing.networks.world_layers import (
    FilmNorm,
    FilmWidths,
    Flow,
    FrameEmbedding,
    ResidualBlock,
    SpaceTimeBlock,
    Warped,
    Window,
    level_features,
    space_angles,
)


@dataclass(frozen=True, kw_only=True)
class WorldSize:
    """widths: channels at full resolution and after each halving; attention runs at the last. blocks: residual blocks at each resolution."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    layers: int
    embedding: int


SIZES = {
    "A": WorldSize(widths=(16, 32, 64, 128), blocks=(0, 1, 2, 1), layers=4, embedding=128),
    "B": WorldSize(widths=(16, 48, 96, 192), blocks=(0, 1, 2, 1), layers=4, embedding=192),
    "C": WorldSize(widths=(24, 64, 128, 256), blocks=(0, 1, 2, 1), layers=6, embedding=256),
}
"""Sizes by name, for frames of 64 pixels; parameters and operations of each are in docs/world_model.md."""


class WorldNetwork(nn.Module):
    """x: (b, t, c, h, w) at levels k: (b, t) in 0…K−1 → (b, t, c, h, w), and a `WorldMemory`.

    sigmas: (K,), noise over signal of each level; the network is given ln σ/4 and inputs of unit variance. start_weights: (K,), by how much
    the output moves with the clean frame (the target of a clean frame of ones without noise), so that it can start from the warped frame.
    size: A, B or C (`SIZES`). window: frames that attention spans, the frame itself included. past_frames: frames beside the frame itself in
    the first convolution. registers: learned tokens that every query may attend to. warp: False leaves the warp out, for data without a moving
    camera. external_cond_dim: width of the conditions (b, t, d), needed exactly when it is above 0; all zeros mean unknown.
    """

    sigmas: Tensor
    start_weights: Tensor
    rotations: Tensor

    recurrent = False
    keeps_memory = True
    memory_slides = True
    static_outputs = False
    why_no_memory = ""

    def __init__(
        self,
        channels: int,
        resolution: int,
        *,
        sigmas: Tensor,
        start_weights: Tensor,
        size: str = "A",
        window: int = 16,
        past_frames: int = 2,
        registers: int = 4,
        warp: bool = True,
        dim_head: int = 32,
        external_cond_dim: int = 0,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("size", size, SIZES)
        sizes = SIZES[size]
        widths, bottom = sizes.widths, sizes.widths[-1]
        halvings = 2 ** (len(widths) - 1)
        require(
            resolution % halvings == 0, f"a resolution of {resolution} cannot be divided by {halvings}; choose another"
        )
        check_minimum("window", window, 2)
        check_range("past_frames", past_frames, 1, window - 1)
        self.channels = channels
        self.resolution = resolution
        self.window = window
        self.past_frames = past_frames
        self.external_cond_dim = external_cond_dim
        self.sigma_data = sigma_data
        self.register_buffer("sigmas", sigmas.float(), persistent=False)
        self.register_buffer("start_weights", start_weights.float(), persistent=False)
        self.pixels = (resolution // halvings) ** 2
        self.heads = bottom // dim_head

        seen = 1 + past_frames
        self.embed = FrameEmbedding(seen, external_cond_dim, sizes.embedding)
        self.flow = Flow(channels, past_frames, external_cond_dim) if warp else None

        # Encoder: full resolution, then a residual stage after each halving.
        inputs = seen * channels + (past_frames * (channels + 1) if warp else 0)
        film = FilmWidths()
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 4, stride=2, padding=1) for fine, coarse in pairwise(widths))
        self.encoder = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width, width, film) for _ in range(count))
            for width, count in zip(widths, sizes.blocks, strict=True)
        )

        # Bottleneck: attention over space and time.
        self.position = nn.Parameter(0.02 * torch.randn(1, bottom, *(resolution // halvings,) * 2))
        self.layers = nn.ModuleList(
            SpaceTimeBlock(bottom, self.heads, registers=registers, film=film) for _ in range(sizes.layers)
        )
        self.register_buffer("rotations", space_angles(resolution // halvings, dim_head), persistent=False)

        # Decoder: each frame by itself, coarse to fine.
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in reversed(list(pairwise(widths))))
        self.decoder = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width if block else 2 * width, width, film) for block in range(max(1, count)))
            for width, count in reversed(list(zip(widths[:-1], sizes.blocks[:-1], strict=True)))
        )
        self.out_norm = FilmNorm(widths[0])
        self.out = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

        self.film = nn.Linear(sizes.embedding, film.total)
        self.film_widths = tuple(film.widths)

    # ------------------------------------------------------------------------------------------------ calls

    def forward(
        self,
        x: Tensor,
        k: Tensor,
        conditions: Tensor | None = None,
        memory: WorldMemory | None = None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, WorldMemory]:
        """past: other frames (b, t, c, h, w) and their levels (b, t) that stand before those of x, as in `behind`."""
        if past is not None:
            return self.behind(*past, x, k, conditions, memory)
        memory = self._checked(x, conditions, memory)
        before = self._past(x, k, conditions, memory)
        warped = self._warp(before, memory)
        h, skips, film, present = self._encode(x, k, before, warped, memory)
        output = self._decode(h, skips, film, k, warped)
        return output, memory.then(x, k, conditions, present, warped)

    def remember(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: WorldMemory | None = None
    ) -> WorldMemory:
        """The memory that `forward` returns, without its output: the decoder is not run."""
        memory = self._checked(x, conditions, memory)
        past = self._past(x, k, conditions, memory)
        warped = self._warp(past, memory)
        present = self._encode(x, k, past, warped, memory, keys_only=True)[-1]
        return memory.then(x, k, conditions, present, warped)

    def behind(
        self,
        past_x: Tensor,
        past_k: Tensor,
        x: Tensor,
        k: Tensor,
        conditions: Tensor | None = None,
        memory: WorldMemory | None = None,
    ) -> tuple[Tensor, WorldMemory]:
        """Each frame of x: (b, t, c, h, w) at its level behind the frames of `past_x` before it, all in one call: the output for x, and the
        memory after `past_x`.

        Equal to t calls with x[:, t] and the memory of past_x[:, :t]. `past_x` runs through the encoder only, and one flow serves both.
        """
        memory = self._checked(x, conditions, memory)
        past = self._past(past_x, past_k, conditions, memory)
        warped = self._warp(past, memory)
        present = self._encode(past_x, past_k, past, warped, memory, keys_only=True)[-1]
        h, skips, film, _ = self._encode(x, k, past, warped, memory, history=present)
        return self._decode(h, skips, film, k, warped), memory.then(past_x, past_k, conditions, present, warped)

    def teacher_forced(self, *inputs: Any) -> Tensor:
        """The output of `behind`: the protocol of next-token prediction (`memory.py`)."""
        return self.behind(*inputs)[0]

    def empty_memory(self, batch: int, like: Tensor) -> WorldMemory:
        """What stands before the first frame of a video: nothing."""
        shape = (batch, self.heads, self.window - 1, self.pixels, self.rotations.shape[-1] * 2)
        return WorldMemory(
            lambda: tuple((like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers),
            slots=self.window - 1,
            frames=like.new_zeros(batch, self.past_frames, *like.shape[2:]),
            levels=torch.full((batch, self.past_frames), MISSING, device=like.device),
            conditions=like.new_zeros(batch, self.past_frames, self.external_cond_dim),
            count=0,
            position=0,
        )

    def _checked(self, x: Tensor, conditions: Tensor | None, memory: WorldMemory | None) -> WorldMemory:
        """`memory`, or that of no frames; UserError where frames or conditions have another shape than the network takes."""
        check_inputs(conditions, self.external_cond_dim, x, (self.channels, self.resolution, self.resolution))
        if memory is None:
            return self.empty_memory(len(x), x)
        if not isinstance(memory, WorldMemory):
            raise UserError(f"the memory is a {type(memory).__name__} of another network; start without a memory")
        return memory

    # ------------------------------------------------------------------------------------------------ parts

    def _past(self, x: Tensor, k: Tensor, conditions: Tensor | None, memory: WorldMemory) -> Past:
        """What each of x's frames has just before it; a frame before the first is 0, with level −1 and no action."""
        frames = torch.cat([memory.frames, x], dim=1)
        levels = torch.cat([memory.levels, k], dim=1)
        if conditions is not None:
            conditions = _windows(torch.cat([memory.conditions, conditions], dim=1), self.past_frames + 1)
        return Past(_windows(frames[:, :-1], self.past_frames), _windows(levels[:, :-1], self.past_frames), conditions)

    def _warp(self, past: Past, memory: WorldMemory) -> Warped | None:
        """The past frames seen from the new view. For one frame it is computed once for each memory: no step of denoising changes it."""
        if self.flow is None:
            return None
        reusable = past.frames.shape[1] == 1 and not torch.is_grad_enabled()
        # A compiled graph cannot ask whether conditions are the same.
        reusable = reusable and not (self.static_outputs or torch.compiler.is_compiling())
        if reusable and memory.next_warp is not None:
            conditions, warped = memory.next_warp
            now = past.conditions
            if conditions is now or (conditions is not None and now is not None and torch.equal(conditions, now)):
                return warped
        sigma = self._sigma(past.levels)
        # The best linear guess of each clean frame, σ_d²/(σ² + σ_d²)·x_σ: a noisy frame enters by as much as it says.
        shrunk = past.frames * ((1 + sigma**2).sqrt() * self.sigma_data**2 / (sigma**2 + self.sigma_data**2))
        warped = self.flow(shrunk, level_features(past.levels, self.sigmas), past.conditions)
        if reusable:
            memory.next_warp = (past.conditions, warped)
        return warped

    def _sigma(self, k: Tensor) -> Tensor:
        """σ of levels k: (…) → (…, 1, 1, 1); 1 for frames that are not there."""
        return torch.where(k < 0, 1.0, self.sigmas[k.clamp(min=0)])[..., None, None, None]

    def _unit(self, sigma: Tensor) -> Tensor:
        """What gives variance 1 to frames x_k = √ᾱ·x + √(1−ᾱ)·ε with data of deviation sigma_data: c_in·√(1 + σ²)."""
        return ((1 + sigma**2) / (sigma**2 + self.sigma_data**2)).sqrt()

    def _encode(
        self,
        x: Tensor,
        k: Tensor,
        past: Past,
        warped: Warped | None,
        memory: WorldMemory,
        *,
        history: Sequence[KeysAndValues] | None = None,
        keys_only: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[KeysAndValues]]:
        """Frames to features at the lowest resolution: (b·t, c, h', w'), the features of each resolution on the way, the scales and shifts
        of every layer, and keys and values of each attention.

        history: keys and values of the frames before each of x's, where those are not x's own. keys_only: stop when the last attention has
        its keys and values.
        """
        batch, time = x.shape[:2]
        inputs = [x * self._unit(self._sigma(k)), (past.frames * self._unit(self._sigma(past.levels))).flatten(2, 3)]
        if warped is not None:
            inputs += [warped.frames.flatten(2, 3) / self.sigma_data, warped.inside.flatten(2, 3)]
        levels = torch.cat([past.levels, k[..., None]], dim=-1)
        embedding = self.embed(level_features(levels, self.sigmas), past.conditions).flatten(0, 1)
        film = list(self.film(F.silu(embedding))[..., None, None].split(self.film_widths, dim=1))
        scales = iter(film)

        h = self.stem(torch.cat(inputs, dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last))
        skips = [h]
        for down, blocks in zip(self.down, list(self.encoder)[1:], strict=True):
            h = down(h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, next(scales))
            skips.append(h)

        # To one row a pixel: (b, t, pixels, c).
        image = h.shape[-2:]
        h = (h + self.position).permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (batch, time))
        turn = self._turn(memory.position, time, h.device)
        window = Window(self.window, memory.slots if memory.count else 0, memory.count, present=history is None)
        present: list[KeysAndValues] = []
        for number, layer in enumerate(self.layers):
            query, key, value = layer.project(h, self._rows(next(scales), batch), turn)  # type: ignore[operator]
            present.append((key, value))
            if keys_only and number + 1 == len(self.layers):
                break
            own = (key, value)
            seen = _behind(memory, number, own if history is None else history[number])
            film_mlp = self._rows(next(scales), batch)
            h = layer.attend(h, query, seen, None if history is None else own, window, film_mlp)  # type: ignore[operator]
        h = h.flatten(0, 1).unflatten(1, image).permute(0, 3, 1, 2)
        return h, skips, list(scales), present

    @staticmethod
    def _rows(film: Tensor, batch: int) -> Tensor:
        """Scales and shifts (b·t, 2·c, 1, 1) as (b, t, 1, 2·c)."""
        return film.flatten(1).unflatten(0, (batch, -1))[:, :, None]

    def _decode(self, h: Tensor, skips: list[Tensor], film: list[Tensor], k: Tensor, warped: Warped | None) -> Tensor:
        scales = iter(film)
        for up, blocks, skip in zip(self.up, self.decoder, reversed(skips[:-1]), strict=True):
            h = F.interpolate(up(h), scale_factor=2.0, mode="nearest")
            h = torch.cat([h, skip], dim=1)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, next(scales))
        output = self.out(F.silu(self.out_norm(h))).unflatten(0, k.shape)
        if warped is not None:
            output = output + self.start_weights[k][..., None, None, None] * warped.start
        return output.contiguous()

    def _turn(self, position: int, time: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary angles of frames `position` …, (t, pixels, dim_head/2): by time, row and column."""
        half = self.rotations.shape[-1] // 2
        where = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        frequencies = 100.0 ** (-torch.arange(half, device=where, dtype=torch.float64) / half)
        steps = torch.arange(position, position + time, device=where, dtype=torch.float64)
        angles = (steps[:, None] * frequencies).float().to(device)[:, None].expand(-1, self.pixels, -1)
        angles = torch.cat([angles, self.rotations[:, half:].expand(time, -1, -1)], dim=-1)
        return angles.cos(), angles.sin()


class Past(NamedTuple):
    """What stands just before each frame. frames: (b, t, p, c, h, w), oldest first, as noisy as shown; levels: (b, t, p), −1 where there is no
    frame; conditions: (b, t, p + 1, d), those of the past frames and of the frame itself."""

    frames: Tensor
    levels: Tensor
    conditions: Tensor | None


MISSING = -1
"""Level of a frame before the first."""


class WorldMemory:
    """What the network keeps of earlier frames, of one size for ever. A value: no call changes what it stands for.

    layers: makes the keys and values (b, heads, slots, pixels, d) of each attention, when they are first read; slots: frames they have room
    for; count: how many of those are there; frames: (b, p, c, h, w) the last ones as noisy as they were shown, their levels (b, p) and
    conditions (b, p, d); position: of the next frame. warped: what the past said of the frames of the last call, for a loss of its own.
    """

    def __init__(
        self,
        layers: Callable[[], tuple[KeysAndValues, ...]],
        *,
        slots: int,
        frames: Tensor,
        levels: Tensor,
        conditions: Tensor,
        count: int,
        position: int,
        warped: Warped | None = None,
    ) -> None:
        self._layers: Callable[[], tuple[KeysAndValues, ...]] | None = layers
        self._joined: tuple[KeysAndValues, ...] = ()
        self.slots = slots
        self.frames = frames
        self.levels = levels
        self.conditions = conditions
        self.count = count
        self.position = position
        self.warped = warped
        self.next_warp: tuple[Tensor | None, Warped] | None = None
        """What this memory says of the next frame under these conditions, kept so that only the first step of denoising computes it."""

    @property
    def layers(self) -> tuple[KeysAndValues, ...]:
        """Keys and values of each attention, joined when they are first read."""
        if self._layers is not None:
            self._joined = self._layers()
            self._layers = None  # and with it the older memory
        return self._joined

    def then(
        self, x: Tensor, k: Tensor, conditions: Tensor | None, present: Sequence[KeysAndValues], warped: Warped | None
    ) -> WorldMemory:
        """This memory with frames x behind it, whose keys and values are `present`. Those are joined on first use: denoising drops most
        memories unread."""

        def layers() -> tuple[KeysAndValues, ...]:
            return tuple(
                (_last(keys, new_keys, self.slots, 2), _last(values, new_values, self.slots, 2))
                for (keys, values), (new_keys, new_values) in zip(self.layers, present, strict=True)
            )

        past = self.frames.shape[1]
        return self._with(
            layers,
            frames=_last(self.frames, x, past, 1),
            levels=_last(self.levels, k, past, 1),
            conditions=self.conditions if conditions is None else _last(self.conditions, conditions, past, 1),
            count=min(self.count + x.shape[1], self.slots),
            position=self.position + x.shape[1],
            warped=warped,
        )

    def copied(self) -> WorldMemory:
        """A copy that shares no storage with it."""
        layers = tuple((key.clone(), value.clone()) for key, value in self.layers)
        return self._with(lambda: layers, **{name: getattr(self, name).clone() for name in self._OF_FRAMES})

    _OF_FRAMES = ("frames", "levels", "conditions")

    def _with(self, layers: Callable[[], tuple[KeysAndValues, ...]], **changes: Any) -> WorldMemory:
        """This memory with other keys and values and `changes`."""
        kept = ("slots", *self._OF_FRAMES, "count", "position", "warped")
        return WorldMemory(layers, **{**{name: getattr(self, name) for name in kept}, **changes})

    def trimmed(self, last: int, sinks: int = 0) -> WorldMemory:
        """The last `last` frames alone; itself where it holds no more. There are no sinks: registers take their place."""
        require(sinks == 0, f"algorithm.sink_frames={sinks}: this network has registers in place of sinks; pass 0")
        if self.count <= last:
            return self
        gone = max(0, self.levels.shape[1] - last)
        frames, levels, conditions = self.frames.clone(), self.levels.clone(), self.conditions.clone()
        frames[:, :gone], levels[:, :gone], conditions[:, :gone] = 0, MISSING, 0
        changes = {"frames": frames, "levels": levels, "conditions": conditions, "count": last, "warped": None}
        return self._with(lambda: self.layers, **changes)


def _windows(x: Tensor, length: int) -> Tensor:
    """x: (b, n, …) → (b, n − length + 1, length, …): every run of `length` neighbours along time."""
    return x.unfold(1, length, 1).movedim(-1, 2)


def _behind(memory: WorldMemory, layer: int, own: KeysAndValues) -> KeysAndValues:
    """Keys and values of a layer for the memory's frames, if there are any, and a clip's: (b, heads, frames, pixels, d)."""
    if not memory.count:
        return own
    key, value = memory.layers[layer]
    return torch.cat([key.to(own[0].dtype), own[0]], dim=2), torch.cat([value.to(own[1].dtype), own[1]], dim=2)


def _last(old: Tensor, new: Tensor, count: int, dim: int) -> Tensor:
    """The last `count` of `old` and `new` along axis `dim`, copied, so that nothing of what is dropped is kept."""
    missing = count - new.shape[dim]
    if missing <= 0:
        return new.narrow(dim, -missing, count).clone()
    return torch.cat([old.narrow(dim, old.shape[dim] - missing, missing).to(new.dtype), new], dim=dim)
