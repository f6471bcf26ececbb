"""The world model through the command line at toy size: trained, rolled out beyond its clips, resumed, and told from other networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_forcing.checkpoints import save
from diffusion_forcing.launch.cli import main
from diffusion_forcing.metrics.video import InverseDynamics
from tests.datasets.video_makers import moving_pattern, write_npz

pytestmark = pytest.mark.slow
DATA = [
    "dataset=video_folder",
    "dataset.path=clips",
    "dataset.resolution=16",
    "dataset.frame_skip=1",
    "dataset.external_cond_dim=3",
    "experiment.validation.batch_size=2",
    "experiment.films=1",
    "algorithm.metrics=[]",
]
WORLD = [
    "algorithm=df_world",
    *DATA,
    "algorithm.diffusion.architecture.window=4",
    "experiment.training.batch_size=1",
    "experiment.training.max_steps=2",
    "experiment.training.log_every_n_steps=1",
    "experiment.training.precision=bf16-mixed",
    "experiment.validation.val_every_n_step=2",
]


@pytest.fixture(autouse=True)
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("training", "validation"):
        actions = np.random.default_rng(0).integers(3, size=48)
        write_npz(tmp_path / "clips" / split / "0.npz", moving_pattern(48, 16, seed=len(split)), actions)


def run(*words: str) -> tuple[Path, dict[str, float]]:
    """Run the command line; the run's folder and its numbers, none where nothing was measured."""
    assert main(list(words)) == 0
    folder = Path("outputs/latest-run").resolve()
    numbers = folder / "metrics.json"
    return folder, json.loads(numbers.read_text()) if numbers.exists() else {}


def test_a_world_model_is_trained_rolled_out_far_beyond_its_clips_and_resumed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ("dataset.n_frames=6", "algorithm.second_ema_decay=0.9", "experiment.tasks=[training,validation]")
    folder, metrics = run(*WORLD, *words)
    assert np.isfinite(list(metrics.values())).all()
    identity = json.loads((folder / "run.json").read_text())["id"]
    assert main([f"resume={identity}", "experiment.tasks=[training]", "experiment.training.max_steps=3"]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "training/loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3]
    assert all(np.isfinite(row["training/warp"]) for row in losses)
    assert any("validation/psnr_other_average" in row for row in rows)

    _, metrics = run(
        "algorithm=df_world", *DATA, f"load={identity}", "experiment.tasks=[validation]", "dataset.n_frames=30"
    )
    assert np.isfinite(list(metrics.values())).all()
    frames = (Path("outputs/latest-run") / "tables" / "validation_frames.csv").read_text().splitlines()
    assert len(frames) == 1 + 30 - 2

    capfd.readouterr()
    assert main(["algorithm=df_video", *DATA, f"load={identity}", "experiment.tasks=[validation]"]) == 2
    assert "choose algorithm=df_world" in capfd.readouterr().err


def test_a_student_is_distilled_resumed_judged_and_refuses_more_steps_than_it_knows(
    capfd: pytest.CaptureFixture[str],
) -> None:
    teacher, _ = run(*WORLD, "dataset.n_frames=6", "experiment.tasks=[training]")
    distilling = [
        *(word for word in WORLD if "max_steps" not in word),
        f"load={json.loads((teacher / 'run.json').read_text())['id']}",
        "dataset.n_frames=6",
        "experiment.tasks=[distill]",
        "experiment.distillation.grid=4",
        "algorithm.self_rollout=0.5",
        "algorithm.self_rollout_start=0",
    ]
    folder, _ = run(*distilling, "experiment.training.max_steps=2")
    identity = json.loads((folder / "run.json").read_text())["id"]
    # A resumed run learns from the same teacher, which its checkpoints keep.
    assert main([f"resume={identity}", "experiment.training.max_steps=3"]) == 0
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses if "training/loss" in row] == [1, 2, 3]

    network = InverseDynamics(3, 16, 3, width=4)
    save(Path("actions"), None, metadata=network.describe(), model=network.state_dict(), step=1)
    capfd.readouterr()
    judged, metrics = run(
        *("algorithm=df_world", *DATA, f"load={identity}", "experiment=exp_judge", "dataset.n_frames=8"),
        *("experiment.judge.inverse_dynamics=actions", "experiment.judge.frames=40", "experiment.judge.turns=[2]"),
        *("experiment.judge.rollouts=2", "experiment.judge.speed_frames=3", "experiment.test.batch_size=2"),
    )
    assert "algorithm.diffusion.distilled_steps=2" in capfd.readouterr().out
    assert {
        *("test/sharpness_frame_4", "test/actions_relative_frame_1", "test/actions_gain", "test/long_alive"),
        *("test/long_sharpness_end", "test/long_actions_relative_end", "test/turn_2_back_psnr"),
        *("test/frames_per_second_p50", "test/peak_memory_megabytes_judge"),
    } <= metrics.keys()
    assert (judged / "pictures" / "test_drift.png").exists()

    roll = ["algorithm=df_world", *DATA, f"load={identity}", "experiment.tasks=[validation]"]
    for words, named in (
        (["algorithm.diffusion.sampling_timesteps=10"], "at most 2"),
        (["dataset.resolution=32"], "resolution"),
        (["dataset.external_cond_dim=5"], "external_cond_dim"),
        (["algorithm.diffusion.architecture.window=6"], "window of 4"),
        (["experiment.judge.inverse_dynamics=missing"], "missing"),
        (["experiment.tasks=[distill]", "dataset.resolution=32"], "resolution"),
    ):
        assert main([*roll, *words]) == 2
        said = capfd.readouterr().err.strip().splitlines()
        assert named in said[-1]
    assert main([*distilling[:1], *DATA, "experiment.tasks=[distill]"]) == 2
    assert "load=CHECKPOINT" in capfd.readouterr().err
