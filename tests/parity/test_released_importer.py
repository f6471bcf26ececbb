"""All 15 released configurations: a checkpoint with their keys and shapes is recognised, is the network that is built from it, and is told
apart from one that is not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_forcing.checkpoints import load
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.run import plan
from diffusion_forcing.released.options import check_released, released_network

DATA = Path(__file__).parent / "data"
LISTS: dict[str, Any] = {
    f"{line}/{name.removeprefix('paper/')}": facts
    for line, file in (("main", "keys_planning"), ("main", "keys_video"), ("paper", "keys_rnn"))
    for name, facts in json.loads((DATA / f"{file}.json").read_text()).items()
}
TASKS = {"ts": "prediction", "maze2d": "planning"}


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Tensors of the recorded shapes that hold one number each: light on the disk."""
    schedule = torch.linspace(0.99, 0.01, 1000)
    return {
        key: schedule if list(shape) == [1000] else torch.zeros(()).expand(shape)
        for key, shape, *_ in LISTS[name]["keys"]
    }


def written(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"state_dict": state, "global_step": 7}, folder / "released.ckpt")
    return folder / "released.ckpt"


def test_there_are_all_fifteen() -> None:
    assert len(LISTS) == 15


@pytest.mark.parametrize("name", sorted(LISTS))
def test_a_released_configuration_is_recognised_and_its_network_built(name: str, tmp_path: Path) -> None:
    found = load(written(tmp_path, state_of(name)))
    line, of = name.split("/")
    kind = of.split("_")[0]
    assert (found.metadata["line"], found.metadata["task"], found.step) == (
        {"main": "v1.5", "paper": "rnn"}[line],
        TASKS.get(kind, kind),
        7,
    )
    check_released(found)
    network = released_network(found.metadata)
    counted = LISTS[name].get("n_params_trainable", LISTS[name]["n_params"])  # without the rotary constants
    assert sum(parameter.numel() for parameter in network.parameters()) == counted


@pytest.mark.parametrize("name", ["paper/maze2d_medium_net16", "paper/robot_swap", "main/planning_medium_x"])
def test_the_first_key_that_differs_is_named(name: str, tmp_path: Path) -> None:
    network = list(released_network(load(written(tmp_path, state_of(name))).metadata).state_dict())
    state, spoilt = state_of(name), network[-1]
    (key,) = [key for key in state if key.endswith(f".{spoilt}") or key == spoilt]
    state[key] = torch.zeros(math.prod(state[key].shape) + 1)
    with pytest.raises(UserError, match=rf"'{spoilt}' is \[\d+\], not \[\d+\] as in the \w+ network of the .* line"):
        check_released(load(written(tmp_path, state)))
    del state[key]
    with pytest.raises(UserError, match=rf"lacks '{spoilt}'"):
        check_released(load(written(tmp_path, state)))
    state = state_of(name) | {f"{key}_more": torch.zeros(1)}
    with pytest.raises(UserError, match=rf"'{spoilt}_more' has no place"):
        check_released(load(written(tmp_path, state)))


def test_a_compiled_model_with_metrics_is_read_as_without(tmp_path: Path) -> None:
    state = state_of("paper/video_dmlab")
    plain = load(written(tmp_path, state))
    compiled = {
        key.replace("transition_model.model.", "transition_model.model._orig_mod."): state[key] for key in state
    }
    compiled["validation_fid_model.inception.weight"] = torch.zeros(3)
    found = load(written(tmp_path, compiled))
    assert found.metadata == plain.metadata
    assert list(found.weights) == list(plain.weights)
    check_released(found)


def test_a_released_robot_checkpoint_is_what_df_robot_is_by_default_and_brings_its_statistics(tmp_path: Path) -> None:
    state = state_of("paper/robot_swap")
    state["data_mean"], state["data_std"] = torch.rand(21, 32, 32), 1 + torch.rand(21, 32, 32)
    checkpoint = written(tmp_path, state)
    ready = plan(["dataset=robot_swap", f"load={checkpoint}"])
    robot = ready.classes["algorithm"](ready.options["algorithm"])
    robot.load_weights(load(checkpoint))
    assert torch.equal(robot.token_mean, state["data_mean"]) and torch.equal(robot.token_std, state["data_std"])
    frames, actions = torch.rand(1, 2, 2, 3, 32, 32), torch.rand(1, 2, 15, 8)
    back = robot.decode(robot.tokens(frames, actions))
    torch.testing.assert_close(back[0], frames, rtol=0, atol=1e-5)
    torch.testing.assert_close(back[1][..., :3], actions[..., :3], rtol=0, atol=1e-5)
