"""LPIPS (Zhang et al. 2018, arXiv:1801.03924), version 0.1 on AlexNet: how different two frames look to a network.

    d(x, y) = sum over layers l of mean over positions of w_l · (u_l(x) - u_l(y))^2,   u_l unit vectors over channels

0 for equal frames, larger is worse; no upper bound is reached in practice. The linear weights w_l come with
torchmetrics; AlexNet's are a file of torchvision's that the user fetches. torchmetrics' own LPIPS needs torchvision and
gives the same numbers, as a test checks. Frames are compared at their own resolution (at least 31 pixels a side); a
value depends on it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_forcing.metrics.video import compare_frames
from diffusion_forcing.metrics.weights import Unavailable, WeightFile

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
