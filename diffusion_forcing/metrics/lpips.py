"""LPIPS (Zhang et al. 2018, arXiv:1801.03924), version 0.1 on AlexNet: how different two frames look to a network.

    d(x, y) = sum over layers l of mean over positions of w_l · (u_l(x) - u_l(y))^2,   u_l unit vectors over channels

0 for equal frames, larger is worse, no upper bound that is reached in practice. The linear weights w_l come with
torchmetrics; AlexNet's are a file of torchvision's that the user fetches (`ALEXNET`). torchmetrics' own LPIPS gives the
same numbers and needs torchvision; a test holds the two together. Frames are compared in their own resolution (at
least 31 pixels a side), as torchmetrics does; a value depends on it.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
import torchmetrics
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics.video import checked_pair, chunks
from diffusion_forcing.metrics.weights import Pinned, Unavailable

ALEXNET = Pinned(
    metric="LPIPS",
    network="AlexNet",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    megabytes=244,
    variable="DIFFUSION_FORCING_ALEXNET",
)
HEADS = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
HEADS_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
"""Of version 0.1 of the linear weights, the same file in the authors' package."""
SMALLEST = 31
"""Pixels a side below which the third layer would have nothing to look at."""
WIDTHS = (64, 192, 384, 256, 256)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation, of values in [-1, 1]."""


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
        total = torch.zeros(len(x), device=x.device)
        for weight, one, other in zip(self.weights, self._layers(x), self._layers(y), strict=True):
            total = total + ((one - other).square() * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return total

    def _layers(self, x: Tensor) -> list[Tensor]:
        x = (x.expand(-1, 3, -1, -1) * 2 - 1 - self.shift) / self.scale
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        return found


def lpips(prediction: Tensor, truth: Tensor, network: LPIPS) -> Tensor:
    """LPIPS of each frame, (b, t) on the CPU, of `prediction` and `truth: (b, t, 1 or 3, h, w)` in [0, 1]."""
    prediction, truth = checked_pair(prediction, truth)
    b, t, c, height, width = truth.shape
    if min(height, width) < SMALLEST:
        raise UserError(f"lpips needs frames of at least {SMALLEST}x{SMALLEST} pixels, got {height}x{width}")
    if c not in (1, 3):
        raise UserError(f"lpips needs frames of 1 or 3 channels, got {c}")
    where = network.shift.device
    with torch.inference_mode():
        found = [network(one.to(where), other.to(where)).cpu() for one, other in chunks(prediction, truth)]
    return torch.cat(found).view(b, t)


def load_lpips() -> LPIPS | Unavailable:
    """The network with AlexNet's and LPIPS 0.1's weights, or why there is none."""
    trunk = ALEXNET.read()
    if isinstance(trunk, Unavailable):
        return trunk
    how = "installing a torchmetrics that carries version 0.1 of LPIPS, such as 1.9.0"
    try:
        data = HEADS.read_bytes()
    except OSError:
        return Unavailable("LPIPS", f"torchmetrics has no {HEADS.name}", how)
    if hashlib.sha256(data).hexdigest() != HEADS_SHA256:
        return Unavailable("LPIPS", f"{HEADS} is not of version 0.1", how)
    heads = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    network = LPIPS()
    state = {name: trunk[name] for name in network.state_dict() if name.startswith("features.")}
    state |= {f"weights.{layer}": heads[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(WIDTHS))}
    network.load_state_dict(state)
    return network.eval()
