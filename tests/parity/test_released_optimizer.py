"""The optimiser's state of a released checkpoint goes to the weights it belongs to, and training goes on as the released code would."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import ForcingAlgorithm
from diffusion_forcing.algorithms.planning.algorithm import Planning
from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.checkpoints import load
from diffusion_forcing.released.importer import our_names, state_by_name, trained
from diffusion_forcing.released.options import planning_options_from_released, video_options_from_released
from tests.parity.recorded import DATA, NETWORK, recording

LISTS: dict[str, Any] = {
    name: entry
    for file in sorted(DATA.glob("keys_*.json"))
    for name, entry in json.loads(file.read_text()).items()
    if isinstance(entry, dict)
}


@pytest.mark.parametrize("name", sorted(LISTS))
def test_the_trained_weights_stand_in_the_order_of_the_released_optimiser(name: str) -> None:
    entry = LISTS[name]
    assert trained(key for key, *_ in entry["keys"]) == entry["optimizer_param_names"]


def built(task: str) -> ForcingAlgorithm:
    config = recording(f"ckpt_{task}_expect").meta["config"]
    if task == "video":
        return Video(video_options_from_released(config))
    return Planning(planning_options_from_released(config))


@pytest.mark.parametrize(("task", "fused"), [("video", False), ("planning", False), ("planning", True)])
def test_the_step_after_a_released_checkpoint_is_the_one_its_own_optimiser_takes(
    task: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:  # as on a GPU
        monkeypatch.setattr("diffusion_forcing.algorithms.base.FUSED_DEVICES", ("cpu",))
    algorithm, checkpoint = built(task), load(DATA / f"ckpt_{task}.ckpt")
    algorithm.load_weights(checkpoint)
    assert algorithm.carry_optimizer(checkpoint)
    configured = algorithm.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]  # type: ignore[index]
    warmup = algorithm.options.warmup_steps
    assert optimizer.param_groups[0]["lr"] == pytest.approx(
        algorithm.options.lr * 4 / warmup
    )  # three steps are behind it

    content = torch.load(DATA / f"ckpt_{task}.ckpt", weights_only=True)
    theirs = {key: value.clone() for key, value in content["state_dict"].items() if key.startswith(NETWORK)}
    names = [key for key in trained(content["state_dict"]) if key.startswith(NETWORK)]
    theirs_parameters = [nn.Parameter(theirs[name]) for name in names]
    reference = torch.optim.AdamW(theirs_parameters, lr=1.0)
    reference.load_state_dict(content["optimizer_states"][0])
    reference.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
    ours = dict(algorithm.network.named_parameters())
    generator = torch.Generator().manual_seed(0)
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
    for name, parameter in zip(names, theirs_parameters, strict=True):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient
        short = name.removeprefix(NETWORK)
        renamed = next(iter(our_names({short: torch.empty(0)})), None) if task == "video" else short
        if renamed is not None:
            mine = ours[renamed]
            mine.grad = gradient.reshape(mine.shape).clone()
            pairs.append((mine, parameter))
    assert len(pairs) == len(ours)
    optimizer.step()
    schedule.step()
    reference.step()
    for mine, parameter in pairs:
        assert torch.allclose(mine.reshape(parameter.shape), parameter, rtol=1e-6, atol=1e-9)


def test_a_state_of_other_weights_is_left_out() -> None:
    checkpoint = load(DATA / "ckpt_video.ckpt")
    assert not built("planning").carry_optimizer(checkpoint)


@pytest.mark.parametrize("damage", ["shape", "missing", "number", "none"])
def test_a_state_that_does_not_match_its_weights_is_no_state(damage: str) -> None:
    state = {f"transition_model.model.{n}": torch.zeros(n + 1) for n in range(3)}
    entries: dict[Any, dict[str, Tensor]] = {
        n: {"step": torch.tensor(1.0), "exp_avg": torch.full((n + 1,), float(n)), "exp_avg_sq": torch.zeros(n + 1)}
        for n in range(3)
    }
    content: dict[str, Any] = {"optimizer_states": [{"state": entries}]}
    found = state_by_name(content, state, lambda key: key)
    assert found is not None
    assert [entry["exp_avg"][0].item() for entry in found.values()] == [0, 1, 2]
    match damage:
        case "shape":
            entries[1]["exp_avg"] = torch.zeros(5)
        case "missing":
            del entries[1]["exp_avg_sq"]
        case "number":
            entries[7] = entries.pop(1)
        case "none":
            content = {}
    assert state_by_name(content, state, lambda key: key) is None
