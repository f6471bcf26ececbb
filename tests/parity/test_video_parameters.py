"""Full-size U-Nets have the names, shapes, order and count of the released checkpoints' parameters."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from diffusion_forcing.networks.unet3d import UNet3D
from diffusion_forcing.released.importer import our_names
from tests.parity.recorded import DATA, NETWORK

RELEASED: dict[str, Any] = json.loads((DATA / "keys_video.json").read_text())
SIZES: dict[str, dict[str, Any]] = {
    "video_minecraft_default": {"resolution": 128},
    "video_dmlab_readme": {
        "resolution": 64,
        "network_size": 48,
        "attn_dim_head": 32,
        "attn_resolutions": (8, 16, 32, 64),
    },
}


@pytest.fixture(scope="module", params=sorted(RELEASED))
def pair(request: pytest.FixtureRequest) -> tuple[UNet3D, dict[str, Any]]:
    with torch.device("meta"):
        return UNet3D(3, **SIZES[request.param]), RELEASED[request.param]


def test_the_number_of_learnt_parameters_is_the_released_one(pair: tuple[UNet3D, dict[str, Any]]) -> None:
    network, released = pair
    assert sum(p.numel() for p in network.parameters()) == released["n_params_trainable"]


def test_names_and_shapes_are_the_released_ones_but_for_words_of_layout(pair: tuple[UNet3D, dict[str, Any]]) -> None:
    network, released = pair
    theirs = {
        name: torch.empty(shape, device="meta") for name, shape, _ in released["keys"] if name.startswith(NETWORK)
    }
    renamed = our_names({name.removeprefix(NETWORK): value for name, value in theirs.items()})
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in renamed.items()
    }


def test_parameters_stand_in_the_order_of_the_released_optimiser(pair: tuple[UNet3D, dict[str, Any]]) -> None:
    network, released = pair
    theirs = {name.removeprefix(NETWORK): torch.empty(0) for name in released["optimizer_param_names"]}
    assert [name for name, _ in network.named_parameters()] == list(our_names(theirs))
