"""The world model through the command line at toy size: trained, rolled out beyond its clips, resumed, and told from other networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_forcing.launch.cli import main
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
    """Run the command line; the run's folder and its numbers."""
    assert main(list(words)) == 0
    folder = Path("outputs/latest-run").resolve()
    return folder, json.loads((folder / "metrics.json").read_text())


def test_a_world_model_is_trained_rolled_out_far_beyond_its_clips_and_resumed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, metrics = run(*WORLD, "dataset.n_frames=6", "experiment.tasks=[training,validation]")
    assert np.isfinite(list(metrics.values())).all()
    identity = json.loads((folder / "run.json").read_text())["id"]
    assert main([f"resume={identity}", "experiment.tasks=[training]", "experiment.training.max_steps=3"]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "training/loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3]
    assert all(np.isfinite(row["training/warp"]) for row in losses)

    _, metrics = run(
        "algorithm=df_world", *DATA, f"load={identity}", "experiment.tasks=[validation]", "dataset.n_frames=30"
    )
    assert np.isfinite(list(metrics.values())).all()
    frames = (Path("outputs/latest-run") / "tables" / "validation_frames.csv").read_text().splitlines()
    assert len(frames) == 1 + 30 - 2

    capfd.readouterr()
    assert main(["algorithm=df_video", *DATA, f"load={identity}", "experiment.tasks=[validation]"]) == 2
    assert "choose algorithm=df_world" in capfd.readouterr().err
