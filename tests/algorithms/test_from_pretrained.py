"""`from_pretrained` gives what `load=` gives, and refuses what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_forcing
from diffusion_forcing.algorithms.base import CLASSES
from diffusion_forcing.checkpoints import load, resolve, save, shipped
from diffusion_forcing.checkpoints.format import read_header
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.run import plan
from tests.algorithms.small import planning
from tests.algorithms.test_forecasting import spec

ENVIRONMENTS = {
    **{f"maze2d-{size}-v1": f"dataset=maze2d_{size}" for size in ("umaze", "medium", "large")},
    **{f"pointmaze-{size}-v0": f"dataset=ogbench_pointmaze_{size}" for size in ("medium", "large", "giant")},
}
DATASETS = {"video": "dataset=video_labmaze", "prediction": "dataset=ts_load", "robot": "dataset=robot_swap"}
ALGORITHMS = {"World": "algorithm=df_world", "RecurrentPlanning": "algorithm=df_planning_rnn"}
OF_THE_DATA = {"chunk_size", "context_frames", "lr"}
"""Options that a checkpoint does not say, and that yaml takes from the dataset or the training."""


def class_of(metadata: dict[str, Any]) -> str:
    task = metadata["task"]
    return CLASSES.get((task, metadata["line"])) or CLASSES[task, ""]


NO_ALGORITHMS = {"inverse_dynamics", "ant_executor"}
MODELS = [name for name in shipped() if read_header(resolve(name))["facts"]["task"] not in NO_ALGORITHMS]


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_has_the_options_and_weights_of_the_command_line(name: str) -> None:
    metadata = read_header(resolve(name))["facts"]
    owner = class_of(metadata)
    dataset = ENVIRONMENTS.get(metadata.get("env_id", "")) or DATASETS[metadata["task"]]
    words = [dataset, f"load={name}", *([ALGORITHMS[owner]] if owner in ALGORITHMS else [])]
    algorithm = getattr(diffusion_forcing, owner).from_pretrained(name)
    theirs, ours = plan(words).options["algorithm"], algorithm.options
    differ = {key for key, value in vars(theirs).items() if getattr(ours, key) != value}
    assert differ <= OF_THE_DATA
    if name == "universal":  # it waits for data, and takes any
        algorithm.adapt(spec(has_gaps=True, lags=(), date_features=0))
    weights = load(resolve(name)).weights
    assert all(torch.equal(value, weights[key].to(value.dtype)) for key, value in algorithm.sampling_weights().items())


def test_options_are_changed_by_keyword_the_rest_stays(tmp_path: Path) -> None:
    ours = planning("xv")
    path = save(tmp_path / "c", None, metadata=ours.metadata(), model=ours.sampling_weights())
    theirs = type(ours).from_pretrained(path, guidance_scale=4, diffusion={"sampling_timesteps": 2})
    assert (theirs.options.guidance_scale, theirs.options.diffusion.sampling_timesteps) == (4.0, 2)
    assert theirs.options.diffusion.architecture == ours.options.diffusion.architecture
    with pytest.raises(UserError, match=r"did you mean 'algorithm\.guidance_scale'"):
        type(ours).from_pretrained(path, guidance_scal=4)
    with pytest.raises(UserError, match=r"algorithm\.diffusion\.sampling_timesteps must be a whole number"):
        type(ours).from_pretrained(path, diffusion={"sampling_timesteps": "two"})


def test_the_settings_to_sample_with_stay_with_the_weights(tmp_path: Path) -> None:
    ours = planning()
    metadata = {**ours.metadata(), "sampling": {"algorithm": {"guidance_scale": 3.5}}}
    first = save(tmp_path / "1", None, metadata=metadata, model=ours.sampling_weights())
    loaded = type(ours).from_pretrained(first)
    second = save(tmp_path / "2", None, metadata=loaded.metadata(), model=loaded.sampling_weights())
    assert type(ours).from_pretrained(second).options.guidance_scale == 3.5


def test_a_baseline_is_sampled_as_it_was_trained(tmp_path: Path) -> None:
    ours = planning(noise_level="full_sequence", scheduling_matrix="full_sequence", guidance_scale=0.0)
    path = save(tmp_path / "c", None, metadata=ours.metadata(), model=ours.sampling_weights())
    assert type(ours).from_pretrained(path).options.scheduling_matrix == "full_sequence"


@pytest.mark.parametrize(
    ("asked", "name", "right"),
    [
        ("Video", "maze2d_medium_x", "Planning.from_pretrained"),
        ("Video", "labmaze64_world_student", "World.from_pretrained"),
        ("Planning", "maze2d_medium_x_rnn", "RecurrentPlanning.from_pretrained"),
        ("Planning", "ts_load_small", "Forecasting.from_pretrained"),
        ("Forecasting", "robot_swap_small", "Robot.from_pretrained"),
        ("Planning", "tests/parity/data/ckpt_planning.ckpt", "diffusion-forcing convert"),
        ("Planning", "maze2d_medum_x", "did you mean 'maze2d_medium_x'"),
    ],
)
def test_a_checkpoint_of_another_class_names_the_right_one(asked: str, name: str, right: str) -> None:
    with pytest.raises(UserError) as caught:
        getattr(diffusion_forcing, asked).from_pretrained(name)
    assert right in str(caught.value)


@pytest.mark.parametrize("structure", [None, {}, {"algorithm": 3}, {"algorithm": {}, "dataset": [1]}])
def test_metadata_without_options_is_one_line(structure: Any, tmp_path: Path) -> None:
    ours = planning()
    path = save(tmp_path / "c", None, metadata={**ours.metadata(), "structure": structure}, model={})
    with pytest.raises(UserError) as caught:
        type(ours).from_pretrained(path)
    assert "\n" not in str(caught.value)


def test_options_may_be_replaced_after_loading() -> None:
    algorithm = diffusion_forcing.Planning.from_pretrained("maze2d_umaze_x")
    algorithm.options = replace(algorithm.options, guidance_scale=1.0)
    assert algorithm.planner().options.guidance_scale == 1.0
