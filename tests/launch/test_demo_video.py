"""The video demo is the ordinary experiment on a handful of freshly made episodes, with the window of whatever checkpoint is shipped."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.datasets.video import dataset as video_sources
from diffusion_forcing.launch import demo_video
from diffusion_forcing.launch.run import plan
from diffusion_forcing.tracking.run import Run
from tests.datasets.filming import Noise
from tests.datasets.video_makers import decode

WINDOW, GIVEN = 10, 8


def tiny_checkpoint(folder: Path) -> None:
    """An untrained world model of frames of 8x8, where `load=labmaze64` finds it."""
    sizes = "algorithm.diffusion.architecture"
    ready = plan(
        [
            "dataset=video_labmaze",
            "dataset.resolution=8",
            f"dataset.n_frames={WINDOW}",
            f"{sizes}.network_size=8",
            f"{sizes}.dim_mults=[1]",
            f"{sizes}.attn_resolutions=[8]",
            f"{sizes}.attn_heads=1",
            f"{sizes}.attn_dim_head=8",
        ]
    )
    video = ready.classes["algorithm"](ready.options["algorithm"])
    facts = {**video.describe(), "sampling": {"algorithm": {"diffusion": {"sampling_timesteps": 2}}}}
    native.save(folder / "labmaze64", None, facts=facts, model=video.sampling_weights(), step=1)


def test_the_demo_films_rolls_out_and_says_where_films_sheet_and_page_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_video, "CLIPS", 2)
    monkeypatch.setattr(demo_video, "PREDICTED", 5)
    simulator = Noise(diary=tmp_path / "diary", frames=20)
    monkeypatch.setattr(video_sources, "_simulator", lambda options: simulator)
    tiny_checkpoint(tmp_path / "pretrained")
    assert demo_video.main() == 0
    said = capsys.readouterr().out
    folder = Path("outputs/latest-run").resolve()
    for name in ("index.html", "pictures/test_clip_1.mp4", "pictures/test_sheet.png"):
        assert f"{folder.relative_to(tmp_path)}/{name}" in said
        assert (folder / name).is_file()
    assert len(decode(folder / "pictures" / "test_clip_2.mp4")) == GIVEN + 5
    sheet = np.asarray(Image.open(folder / "pictures" / "test_sheet.png"))
    assert sheet.ndim == 3 and sheet.std() > 10
    results = json.loads((folder / "metrics.json").read_text())
    assert results["test/clips"] == 2
    assert results["test/frames_predicted"] == 2 * 5
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert (
        sorted(path.parent.name for path in Path("data").rglob("*.npz") if path.parent.name != ".cache") == ["test"] * 2
    )


def test_the_demo_predicts_48_frames_of_4_clips_with_the_checkpoints_own_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "pretrained")
    ready = plan(demo_video.words())
    algorithm, dataset = ready.options["algorithm"], ready.options["dataset"]
    assert (algorithm.n_frames, algorithm.context_frames, dataset.validation_frames) == (WINDOW, GIVEN, GIVEN + 48)
    assert (dataset.num_episodes, dataset.num_validation_episodes, dataset.num_test_episodes) == (0, 0, 4)
    assert dataset.save_dir != plan(["dataset=video_labmaze"]).options["dataset"].save_dir
    assert dataset.validation_frames * dataset.frame_skip <= dataset.episode_frames


def test_the_shipped_checkpoint_is_taken_as_it_is() -> None:
    ready = plan(demo_video.words())
    assert ready.checkpoint is not None
    facts = native.read_header(ready.checkpoint)["facts"]["structure"]["algorithm"]
    assert ready.options["algorithm"].n_frames == facts["n_frames"]


@pytest.mark.parametrize("package", ["vizdoom", "labmaze"])
def test_a_demo_without_its_simulator_says_which_extra_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / f"{package}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "lacking"))  # workers get the same path
    tiny_checkpoint(tmp_path / "pretrained")
    assert demo_video.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert package in error and "diffusion-forcing[video]" in error
    assert not (tmp_path / "outputs").exists()


def test_a_demo_without_its_checkpoint_is_one_error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    resolve = importlib.import_module("diffusion_forcing.checkpoints.resolve")
    monkeypatch.setattr(resolve, "shipped_places", list)
    assert demo_video.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'labmaze64' is neither")
    assert error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_an_interrupted_demo_leaves_no_film_and_a_run_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_forcing.experiments.video.rollouts import Roller

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_video, "CLIPS", 2)
    monkeypatch.setattr(demo_video, "PREDICTED", 4)
    simulator = Noise(diary=tmp_path / "diary", frames=20)
    monkeypatch.setattr(video_sources, "_simulator", lambda options: simulator)
    tiny_checkpoint(tmp_path / "pretrained")
    whole = Roller.stream

    def stopped(self: Roller, *given: object) -> object:
        chunks = whole(self, *given)  # type: ignore[arg-type]
        yield next(chunks)
        raise KeyboardInterrupt

    monkeypatch.setattr(Roller, "stream", stopped)
    assert demo_video.main() == 130
    folder = Path("outputs/latest-run").resolve()
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert not list((folder / "pictures").iterdir())
    assert isinstance(Run.find(Path("outputs"), json.loads((folder / "run.json").read_text())["id"]), Path)
