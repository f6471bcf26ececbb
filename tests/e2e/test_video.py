"""The video task at toy size, through the command line: train, roll out, load, fill in, and every way of doing so."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from diffusion_forcing.launch.cli import main
from tests.datasets.video_makers import film, write_npz

FRAMES, GIVEN = 6, 2
SIZES = "algorithm.diffusion.architecture"
TINY = [
    "dataset=video_folder",
    "dataset.path=clips",
    "dataset.resolution=8",
    f"dataset.n_frames={FRAMES}",
    "dataset.frame_skip=1",
    "dataset.external_cond_dim=3",
    f"{SIZES}.network_size=8",
    f"{SIZES}.dim_mults=[1]",
    f"{SIZES}.attn_resolutions=[8]",
    f"{SIZES}.attn_heads=1",
    f"{SIZES}.attn_dim_head=8",
    f"{SIZES}.use_init_temporal_attn=False",
    "algorithm.diffusion.sampling_timesteps=2",
    "experiment.training.batch_size=2",
    "experiment.training.max_steps=2",
    "experiment.training.log_every_n_steps=1",
    "experiment.training.checkpointing.every_n_train_steps=2",
    "experiment.validation.batch_size=2",
    "experiment.validation.val_every_n_step=2",
    "experiment.test.batch_size=2",
    "experiment.films=1",
]
WHO = ("", "_copy_last", "_mean_frame")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of 8x8 pixels with three actions, split as TECO does."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    for split, count in (("training", 3), ("validation", 2), ("test", 2)):
        for number in range(count):
            seed = 10 * len(split) + number
            actions = np.random.default_rng(seed).integers(3, size=24)
            write_npz(folder / split / f"{number}.npz", film(24, 8, seed=seed), actions)
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_with_clips(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "clips").symlink_to(clips, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    yield


def roll(*words: str) -> tuple[Path, dict[str, float]]:
    """Run the command line; the run's folder and its numbers."""
    assert main([*TINY, *words]) == 0
    folder = Path("outputs/latest-run").resolve()
    return folder, json.loads((folder / "metrics.json").read_text())


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def table(folder: Path, task: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{task}_frames.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_video_model_is_trained_rolled_out_loaded_and_resumed(capfd: pytest.CaptureFixture[str]) -> None:
    folder, metrics = roll(
        "+name=toy", "experiment.tasks=[training,validation,test]", "experiment.save_predictions=True"
    )
    for task in ("validation", "test"):
        assert metrics[f"{task}/clips"] == 2
        for who in WHO:
            assert isinstance(metrics[f"{task}/psnr{who}"], float)
            assert isinstance(metrics[f"{task}/mse{who}_frame_4"], float)
        assert isinstance(metrics[f"{task}/actions_gain"], float)
        assert isinstance(metrics[f"{task}/pixel_variance_truth_last"], float)
        rows = table(folder, task)
        assert [int(row["frame"]) for row in rows] == list(range(1, FRAMES - GIVEN + 1))
        assert json.loads((folder / "tables" / f"{task}_frames.json").read_text())["rows"][0]["psnr"] == pytest.approx(
            float(rows[0]["psnr"])
        )
        assert frames_of(folder / "pictures" / f"{task}_clip_1.mp4") == FRAMES
        kept = np.load(folder / "predictions" / f"{task}_0000.npy")
        assert (kept.shape, kept.dtype) == ((2, FRAMES - GIVEN, 8, 8, 3), np.uint8)
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    assert {"training_sheet.png", "test_sheet.png", "test_curves.png", "test_pixels.png"} <= pictures
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    page = (folder / "index.html").read_text()
    assert "validation_sheet" in page and "validation_frames" in page
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/psnr" in line and "validation/psnr_copy_last" in line for line in logged)
    last = capfd.readouterr().err.strip().splitlines()[-4:]
    assert [line.split()[1] for line in last] == ["numbers", "frames", "pictures", "pixels"]

    identity = json.loads((folder / "run.json").read_text())["id"]
    loaded = ["dataset=video_folder", "dataset.path=clips", f"load={identity}", "experiment.tasks=[validation]"]
    assert main([*loaded, "algorithm.diffusion.sampling_timesteps=2", "dataset.validation_multiplier=2"]) == 0
    assert len(table(Path("outputs/latest-run"), "validation")) == 2 * FRAMES - GIVEN

    assert main([f"resume={identity}", "experiment.tasks=[training]", "experiment.training.max_steps=3"]) == 0
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 3
