"""The video task at toy size, through the command line: train, roll out, load, fill in, and every way of doing so."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.run import plan
from tests.datasets.video_makers import moving_pattern, write_npz

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
ROLL = [*TINY, "algorithm.metrics=[]", "experiment.tasks=[validation]"]
WHO = ("", "_copy_last", "_mean_frame")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of 8x8 pixels with three actions, split as TECO does."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    for split, count in (("training", 3), ("validation", 2), ("test", 2)):
        for number in range(count):
            seed = 10 * len(split) + number
            actions = np.random.default_rng(seed).integers(3, size=24)
            write_npz(folder / split / f"{number}.npz", moving_pattern(24, 8, seed=seed), actions)
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_with_clips(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").symlink_to(clips, target_is_directory=True)
    monkeypatch.chdir(tmp_path)


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


@pytest.mark.slow
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
    assert (
        main(
            [
                *loaded,
                "algorithm.metrics=[]",
                "algorithm.diffusion.sampling_timesteps=2",
                "dataset.validation_multiplier=2",
            ]
        )
        == 0
    )
    assert len(table(Path("outputs/latest-run"), "validation")) == 2 * FRAMES - GIVEN

    assert main([f"resume={identity}", "experiment.tasks=[training]", "experiment.training.max_steps=3"]) == 0
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 3


@pytest.mark.parametrize(
    ("words", "predicted"),
    [
        (["algorithm.chunk_size=-1"], 4),
        (["algorithm.chunk_size=2", "algorithm.scheduling_matrix=full_sequence"], 4),
        (["algorithm.chunk_size=2", "algorithm.scheduling_matrix=pyramid"], 4),
        (["algorithm.causal=False"], 4),
        (["algorithm.frame_stack=2"], 4),
        (["dataset.frame_skip=2"], 4),
        (["dataset.validation_multiplier=3", "algorithm.cache=streaming", "algorithm.sink_frames=1"], 16),
        (["algorithm.norm=clip", "algorithm.cache=none", "experiment.validation.precision=bf16-mixed"], 4),
        (["dataset.external_cond_dim=0", "experiment.films=0", "experiment.validation.precision=16-mixed"], 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.slow
def test_every_way_of_rolling_out_runs_and_leaves_a_row_a_frame(words: list[str], predicted: int) -> None:
    assert main([*ROLL, *words]) == 0
    folder = Path("outputs/latest-run").resolve()
    assert len(table(folder, "validation")) == predicted
    film_of_one = folder / "pictures" / "validation_clip_1.mp4"
    assert film_of_one.is_file() == ("experiment.films=0" not in words)
    if film_of_one.is_file():
        assert frames_of(film_of_one) == GIVEN + predicted
    metrics = json.loads((folder / "metrics.json").read_text())
    assert ("validation/actions_gain" in metrics) == ("dataset.external_cond_dim=0" not in words)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.slow
def test_the_middle_is_filled_in_and_a_causal_network_is_told_of(
    causal: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment.tasks=[interpolation]", f"algorithm.causal={causal}", "experiment.interpolation.end_frames=2"]
    assert main([*ROLL, *words]) == 0
    folder = Path("outputs/latest-run").resolve()
    rows = table(folder, "interpolation")
    assert len(rows) == FRAMES - GIVEN - 2
    assert {"psnr", "psnr_copy_last", "psnr_linear_blend"} <= set(rows[0]) and "psnr_mean_frame" not in rows[0]
    assert frames_of(folder / "pictures" / "interpolation_clip_1.mp4") == FRAMES
    assert (folder / "pictures" / "interpolation_sheet.png").is_file()
    said = [line for line in capfd.readouterr().err.splitlines() if "does not know the given end" in line]
    assert len(said) == causal


BAD = [
    (["dataset.external_cond_dim=0", "algorithm.external_cond_dim=3"], r"actions of 3 numbers.*the data has 0"),
    (["dataset.frame_skip=2", "algorithm.frame_skip=1"], r"actions of 3 numbers.*the data has 6"),
    (["dataset.external_cond_dim=2"], r"actions from 0 to 2, but dataset\.external_cond_dim=2 allows 0 to 1"),
    (["dataset.context_length=6"], r"context_length 6 leaves no room in the window of 6"),
    (["dataset.resolution=16"], r"frames of 8x8, smaller than dataset\.resolution=16"),
    (
        ["experiment.tasks=[interpolation]", "experiment.interpolation.end_frames=0"],
        r"end_frames must be at least 1, got 0",
    ),
    (["experiment.tasks=[interpolation]", "experiment.interpolation.end_frames=4"], r"leave nothing to fill in"),
    (["experiment.tasks=[interpolation]", "algorithm.frame_stack=2"], r"no multiple of algorithm\.frame_stack 2"),
    (["experiment.tasks=[interpolation]", "dataset.context_length=0"], r"needs frames at both ends"),
    (["experiment.films=-1"], r"experiment\.films .*got -1"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*ROLL, *words]) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert re.search(said, error[0]), error[0]


def test_data_without_actions_for_a_model_that_is_told_them_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write_npz(Path("silent") / "validation" / f"{number}.npz", moving_pattern(24, 8, seed=number))
        write_npz(Path("silent") / "training" / f"{number}.npz", moving_pattern(24, 8, seed=number))
    assert main([*ROLL, "dataset.path=silent"]) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "action" in error[0]


@pytest.mark.parametrize("frames", [1, GIVEN])
@pytest.mark.parametrize("task", ["validation", "test", "interpolation"])
def test_clips_no_longer_than_the_context_are_one_line(
    task: str, frames: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_npz(Path("short") / f"{number}.npz", moving_pattern(frames, 8, seed=number), np.arange(frames) % 3)
    assert main([*ROLL, f"experiment.tasks=[{task}]", "dataset.path=short", "dataset.save_dir=cache"]) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert task in error[0] and f"dataset.context_length (it is {GIVEN})" in error[0]


@pytest.mark.parametrize("word", ["dataset.resolution=16", "dataset.external_cond_dim=0", "dataset.frame_skip=2"])
def test_other_data_than_the_loaded_model_was_trained_with_is_one_line(
    word: str, clips: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        for split in ("training", "validation"):
            write_npz(Path("large") / split / f"{number}.npz", moving_pattern(24, 16, seed=number), np.arange(24) % 3)
    ready = plan(TINY)
    video = ready.classes["algorithm"](ready.options["algorithm"])
    native.save(Path("model"), None, metadata=video.describe(), model=video.sampling_weights(), step=1)
    assert main([*ROLL, "load=model", "dataset.path=large", word]) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert re.search(
        r"error: .*model: .*set dataset\.resolution, dataset\.external_cond_dim, .* as it was trained", error[0]
    )
