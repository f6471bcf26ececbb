"""The paper's RNN line through the command line at toy size: both tasks, and its released checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.run import plan
from diffusion_forcing.released.importer import RNN_PREFIX
from tests.datasets.video_makers import moving_pattern, write_npz
from tests.parity.recorded import recording

MAZE = [
    "experiment=exp_planning",
    "algorithm=df_planning_rnn",
    "dataset=maze2d_umaze",
    "dataset.num_steps=2500",
    "dataset.episode_len=40",
    "algorithm.diffusion.network_size=4",
    "algorithm.diffusion.num_mlp_layers=1",
    "algorithm.z_shape=[16]",
    "algorithm.diffusion.sampling_timesteps=3",
    "experiment.training.batch_size=4",
    "experiment.training.max_steps=4",
    "experiment.training.log_every_n_steps=1",
    "experiment.episodes=2",
]
VIDEO = [
    "algorithm=df_video_rnn",
    "dataset=video_folder",
    "dataset.path=clips",
    "dataset.resolution=8",
    "dataset.frame_skip=1",
    "dataset.external_cond_dim=3",
    "algorithm.metrics=[]",
    "algorithm.diffusion.sampling_timesteps=2",
    "experiment.training.batch_size=2",
    "experiment.training.max_steps=2",
    "experiment.training.log_every_n_steps=1",
    "experiment.validation.batch_size=2",
    "experiment.validation.val_every_n_step=2",
    "experiment.films=1",
]
SIZES = ["algorithm.frame_stack=2", "algorithm.diffusion.network_size=8", "algorithm.z_shape=[4,8,8]"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clips(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        actions = np.random.default_rng(0).integers(3, size=48)
        write_npz(tmp_path / "clips" / split / "0.npz", moving_pattern(48, 8, seed=len(split)), actions)


def run(*words: str) -> tuple[Path, dict[str, float]]:
    """Run the command line; the run's folder and its numbers."""
    assert main(list(words)) == 0
    folder = Path("outputs/latest-run").resolve()
    return folder, json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_a_recurrent_planner_is_trained_played_with_a_past_loaded_and_resumed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, metrics = run(*MAZE, "+name=toy", "experiment.tasks=[training,validation]")
    assert metrics["planning/episodes"] == 2
    assert "validation_plan_from_noise.mp4" in {path.name for path in (folder / "pictures").iterdir()}
    identity = json.loads((folder / "run.json").read_text())["id"]
    _, metrics = run(
        *(word for word in MAZE if "network_size" not in word and "z_shape" not in word and "mlp" not in word),
        f"load={identity}",
        "experiment.tasks=[test]",
        "algorithm.context_frames=20",
        "algorithm.ddim_repeats=2",
        "algorithm.open_loop_horizon=30",
        "algorithm.warm_start=0.5",
        "algorithm.refine=0.4",
    )
    assert metrics["planning/episodes"] == 2
    assert main([f"resume={identity}", "experiment.tasks=[training]", "experiment.training.max_steps=6"]) == 0
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    capfd.readouterr()
    assert main([*MAZE[:3], "algorithm=df_planning", f"load={identity}", "experiment.tasks=[validation]"]) == 2
    assert "choose algorithm=df_planning_rnn" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("clips")
def test_a_recurrent_world_model_is_trained_and_rolled_out_far_beyond_its_clips() -> None:
    folder, metrics = run(*VIDEO, *SIZES, "dataset.n_frames=8", "experiment.tasks=[training,validation]")
    assert np.isfinite(list(metrics.values())).all()
    identity = json.loads((folder / "run.json").read_text())["id"]
    _, metrics = run(*VIDEO, f"load={identity}", "experiment.tasks=[validation]", "dataset.n_frames=40")
    assert np.isfinite(list(metrics.values())).all()
    frames = (Path("outputs/latest-run") / "tables" / "validation_frames.csv").read_text().splitlines()
    assert len(frames) == 1 + 40 - 2


@pytest.mark.slow
@pytest.mark.usefixtures("clips")
def test_a_released_video_checkpoint_of_the_rnn_line_brings_its_sizes_and_goes_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ready = plan([*VIDEO, *SIZES, "dataset.n_frames=8", "algorithm.ema_decay=0"])
    algorithm = ready.classes["algorithm"](ready.options["algorithm"])
    network = algorithm.network.state_dict()
    state = {("" if key == "init_z" else RNN_PREFIX) + key: value for key, value in network.items()}
    state |= {"data_mean": torch.tensor(0.5), "data_std": torch.tensor(0.5)}
    state[f"{RNN_PREFIX}alphas_cumprod"] = algorithm.forcing.schedule.alphas_cumprod
    trained = [key for key in state if ".model." in key or ".x_from_z." in key] + ["init_z"]
    moments = {
        number: {"step": torch.tensor(7.0), "exp_avg": 0 * state[key], "exp_avg_sq": 0 * state[key] + 1}
        for number, key in enumerate(trained)
    }
    torch.save({"state_dict": state, "global_step": 7, "optimizer_states": [{"state": moments}]}, "released.ckpt")
    ready = plan([*VIDEO, "load=released.ckpt", "dataset.n_frames=8"])
    options = ready.options["algorithm"]
    assert (options.frame_stack, options.z_shape, options.diffusion.network_size) == (2, (4, 8, 8), 8)
    assert "algorithm.z_shape=[4,8,8]" in ready.adopted
    run(*VIDEO, "load=released.ckpt", "dataset.n_frames=8", "experiment.tasks=[training,validation]")
    assert "its optimiser state is used too" in capfd.readouterr().err


@pytest.mark.slow
def test_a_released_maze_checkpoint_of_the_rnn_line_is_planned_with() -> None:
    r = recording("rnn_maze_medium_training_step")
    state = {
        **r.below("w."),
        f"{RNN_PREFIX}alphas_cumprod": plan(MAZE)
        .classes["algorithm"](plan(MAZE).options["algorithm"])
        .forcing.schedule.alphas_cumprod,
    }
    torch.save({"state_dict": state, "global_step": 1}, "maze.ckpt")
    words = ["experiment=exp_planning", "algorithm=df_planning_rnn", "dataset=maze2d_medium", "load=maze.ckpt"]
    words += ["experiment.tasks=[validation]", "experiment.episodes=1", "algorithm.diffusion.sampling_timesteps=2"]
    words += ["algorithm.scheduling_matrix=full_sequence"]
    ready = plan(words)
    assert ready.options["algorithm"].z_shape == (16,)
    assert ready.options["algorithm"].diffusion.num_mlp_layers == 2
    _, metrics = run(*words, "algorithm.open_loop_horizon=300")
    assert metrics["planning/episodes"] == 1
