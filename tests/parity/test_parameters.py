"""Full-size networks have the names, shapes, order and count of the released checkpoints' parameters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diffusion_forcing.networks import Transformer
from tests.parity.recorded import DATA, NETWORK

RELEASED: dict[str, Any] = json.loads((DATA / "keys_planning.json").read_text())
FRAME_STACK = 10
WIDTHS = {"x": 2, "xv": 4, "xva": 6}


@pytest.fixture(scope="module", params=sorted(RELEASED))
def pair(request: pytest.FixtureRequest) -> tuple[Transformer, dict[str, Any]]:
    return Transformer(FRAME_STACK * WIDTHS[request.param.rpartition("_")[2]]), RELEASED[request.param]


def test_the_default_sizes_are_the_released_ones(pair: tuple[Transformer, dict[str, Any]]) -> None:
    network, released = pair
    assert sum(p.numel() for p in network.parameters()) == released["n_params"]


def test_names_and_shapes_are_the_released_ones(pair: tuple[Transformer, dict[str, Any]]) -> None:
    network, released = pair
    theirs = {name.removeprefix(NETWORK): shape for name, shape, _ in released["keys"] if name.startswith(NETWORK)}
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == theirs


def test_parameters_stand_in_the_order_of_the_released_optimiser(pair: tuple[Transformer, dict[str, Any]]) -> None:
    network, released = pair
    assert [NETWORK + name for name, _ in network.named_parameters()] == released["optimizer_param_names"]
