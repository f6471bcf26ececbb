"""A checkpoint brings what its weights depend on; the command line has the last word; it never chooses code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.compose import compose, resolved
from diffusion_forcing.launch.run import plan
from diffusion_forcing.launch.structure import adopt_

MAZES = ["experiment=exp_planning", "algorithm=df_planning", "dataset=maze2d_medium"]
STRUCTURE = {
    "dataset": {
        "observation_mean": [1.5, 2.5],
        "observation_std": [1.0, 2.0],
        "action_mean": [],
        "action_std": [],
        "episode_len": 600,
    },
    "algorithm": {
        "frame_stack": 20,
        "causal": False,
        "diffusion": {"schedule_fn_kwargs": {}, "architecture": {"num_layers": 6, "network_size": 128}},
    },
}


def checkpoint(folder: Path, facts: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    header = {"format": "diffusion-forcing checkpoint", "version": 1, "step": 1, "facts": facts}
    (folder / "checkpoint.json").write_text(json.dumps({**header, "files": {"model.safetensors": {}}}))
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "trained", {"env_id": "maze2d-medium-v1", "structure": STRUCTURE})


def test_sizes_and_statistics_come_with_the_checkpoint_and_are_named(trained: Path) -> None:
    ready = plan([*MAZES, f"load={trained}"])
    assert ready.options["algorithm"].frame_stack == 20
    assert ready.options["algorithm"].diffusion.architecture.num_layers == 6
    assert ready.options["dataset"].observation_mean == ready.options["algorithm"].observation_mean == (1.5, 2.5)
    assert ready.options["algorithm"].action_mean == ()
    assert set(ready.adopted) == {
        "algorithm.frame_stack=20",
        "algorithm.diffusion.architecture.num_layers=6",
        "dataset.observation_mean=[1.5,2.5]",
        "dataset.observation_std=[1.0,2.0]",
        "dataset.action_mean=[]",
        "dataset.action_std=[]",
    }


def test_what_was_taken_can_be_typed_again(trained: Path) -> None:
    ready = plan([*MAZES, f"load={trained}"])
    assert plan([*MAZES, *ready.adopted]).options == ready.options


@pytest.mark.parametrize(
    "word",
    [
        "algorithm.frame_stack=10",
        "algorithm.diffusion={timesteps:500}",
        "algorithm.diffusion.architecture.num_layers=3",
    ],
)
def test_the_command_line_has_the_last_word(trained: Path, word: str) -> None:
    key = word.partition("=")[0]
    ready = plan([*MAZES, f"load={trained}", word])
    assert not [taken for taken in ready.adopted if taken.startswith(key)]


def test_a_checkpoint_of_another_maze_gives_no_statistics(trained: Path) -> None:
    config = compose([*MAZES, "dataset=maze2d_large"])
    taken = adopt_(config, trained, [])
    assert taken == ["algorithm.frame_stack=20", "algorithm.diffusion.architecture.num_layers=6"]
    assert resolved(config)["dataset"]["episode_len"] == 800


def test_a_checkpoint_never_chooses_a_class_or_has_its_text_interpreted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "told")
    evil = {
        "algorithm": {"_target_": "os.system", "controller": "${oc.env:SECRET}", "unheard_of": 3},
        "experiment": {"tasks": ["test"]},
    }
    config = compose(MAZES)
    before = resolved(config)
    facts = {"env_id": "maze2d-medium-v1", "structure": evil}
    assert adopt_(config, checkpoint(tmp_path / "evil", facts), []) == []
    assert resolved(config) == before


def test_a_checkpoint_without_a_structure_changes_nothing(tmp_path: Path) -> None:
    config = compose(MAZES)
    assert adopt_(config, checkpoint(tmp_path / "bare", {}), []) == []
    (tmp_path / "released.ckpt").touch()
    assert adopt_(config, tmp_path / "released.ckpt", []) == []


def test_a_resumed_run_keeps_its_own_configuration(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_forcing.launch.compose import as_yaml
    from diffusion_forcing.tracking.run import Run

    run = Run.create(tmp_path / "outputs", "first")
    run.config(as_yaml(compose(MAZES)))
    monkeypatch.setattr("diffusion_forcing.launch.run._local_checkpoint", lambda spec, outputs: trained)
    ready = plan([f"resume={run.folder}"])
    assert ready.adopted == ()
    assert ready.options["algorithm"].frame_stack == 10


VIDEO = {
    "task": "video",
    "structure": {
        "dataset": {"resolution": 32, "n_frames": 12, "external_cond_dim": 3, "frame_skip": 1, "save_dir": "/secret"},
        "algorithm": {
            "n_frames": 12,
            "norm": "clip",
            "cache": "none",
            "diffusion": {"architecture": {"network_size": 16}},
        },
    },
}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "video", VIDEO)


def test_a_video_model_brings_its_window_its_resolution_and_the_width_of_its_actions(video: Path) -> None:
    ready = plan([f"load={video}", "dataset=video_folder"])
    algorithm = ready.options["algorithm"]
    assert (algorithm.n_frames, algorithm.observation_shape, algorithm.condition_width) == (12, (3, 32, 32), 4)
    assert (algorithm.norm, algorithm.cache) == ("clip", "none")
    assert ready.options["dataset"].save_dir == "data/videos"


def test_a_longer_rollout_keeps_the_window_the_model_was_trained_with(video: Path) -> None:
    ready = plan([f"load={video}", "dataset=video_folder", "dataset.n_frames=1000", "experiment.tasks=[validation]"])
    assert (ready.options["dataset"].n_frames, ready.options["algorithm"].n_frames) == (1000, 12)


def test_the_window_that_is_typed_is_trained_with_also_from_a_checkpoint(video: Path) -> None:
    typed = [f"load={video}", "dataset=video_folder", "dataset.n_frames=24"]
    assert plan([*typed, "experiment.tasks=[training,validation]"]).options["algorithm"].n_frames == 24
    rolled = plan([*typed, "experiment.tasks=[validation]"])
    assert rolled.options["algorithm"].n_frames == 12
    assert "algorithm.n_frames=12" in rolled.adopted  # and is printed
    assert plan([*typed, "experiment.tasks=[test]", "algorithm.n_frames=20"]).options["algorithm"].n_frames == 20


def test_a_checkpoint_of_another_task_is_named_with_what_to_choose(trained: Path, video: Path, tmp_path: Path) -> None:
    planner = checkpoint(tmp_path / "planner", {"task": "planning", "env_id": "maze2d-medium-v1"})
    with pytest.raises(UserError, match=r"is a checkpoint for planning.*choose experiment=exp_planning"):
        plan([f"load={planner}", "dataset=video_folder"])
    with pytest.raises(UserError, match=r"is a checkpoint for video.*choose experiment=exp_video"):
        plan([*MAZES, f"load={video}"])


@pytest.mark.parametrize("size", [10**9, 2**70, -(10**9)])
def test_a_size_that_no_network_has_is_refused(tmp_path: Path, size: int) -> None:
    structure = {"dataset": {"episode_len": size}, "algorithm": {"frame_stack": 20}}
    path = checkpoint(tmp_path / "trained", {"env_id": "maze2d-medium-v1", "structure": structure})
    with pytest.raises(UserError, match=r"episode_len.*above the limit DIFFUSION_FORCING_MAX_SIZE"):
        plan([*MAZES, f"load={path}"])
