"""The Inception-v3 behind FID: TensorFlow's network of 2015-12-05, as torch-fidelity and pytorch-fid carry it.

Layers are named as in the published file, so its tensors load unchanged. It differs from torchvision's
Inception-v3 as TensorFlow's does: average pooling does not count the padding, the last block pools by maximum, frames
are resized to 299 x 299 with pixel centres on the corners (`resized`). Inference only. A test compares it with
torch-fidelity 0.4.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_forcing.metrics.weights import Unavailable, WeightFile

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
