"""TensorBoard beside a run's folder, read back by TensorBoard's own reader."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.tracking.run import Run
from diffusion_forcing.tracking.tensorboard import Tensorboard, TensorboardOptions, markdown


def start(run: Any, **options: Any) -> Run:
    run.follow([Tensorboard(TensorboardOptions(**options))], {})
    return run


def read(run: Run) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(
        str(run.folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "tensors": 0}
    )
    found.Reload()
    return found


def scalars(run: Run, name: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 6)) for event in read(run).Scalars(name)]


def test_curves_images_videos_tables_and_results_are_in_its_event_files(tmp_path: Path) -> None:
    from PIL import Image

    run = start(Run.create(tmp_path, "toy"), video_frames=4, video_width=16)
    run.log(10, {"training/loss": 0.5, "training/lr": float("nan")})
    run.log(20, {"training/loss": 0.25})
    run.image("plan", np.full((6, 8, 3), 7, np.uint8))
    run.video("episode", np.arange(9, dtype=np.uint8).repeat(32 * 32 * 3).reshape(9, 32, 32, 3) * 25, fps=5)
    run.table("scores", [{"maze": "large", "score": 1.5}])
    run.summary({"planning/success_rate": 0.5})
    run.finish()

    found = read(run)
    assert scalars(run, "training/loss") == [(10, 0.5), (20, 0.25)]
    assert set(found.Tags()["scalars"]) == {"training/loss"}
    (plan,), (episode,) = found.Images("images/plan"), found.Images("videos/episode")
    assert (plan.width, plan.height, plan.step) == (8, 6, 20)
    film = Image.open(io.BytesIO(episode.encoded_image_string))
    assert (film.format, film.n_frames, film.size) == ("GIF", 3, (16, 16))  # every third of nine
    texts = {name: found.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in found.Tags()["tensors"]}
    assert "| large | 1.5 |" in texts["tables/scores/text_summary"]
    assert "| planning/success_rate | 0.5 |" in texts["results/text_summary"]


def test_a_resumed_run_overwrites_what_a_killed_one_logged_past_its_checkpoint(tmp_path: Path) -> None:
    run = start(Run.create(tmp_path, "toy"), flush_seconds=1)
    for step in (10, 20, 30):
        run.log(step, {"loss": 1.0})
    run._trackers[0]._writer.flush()  # type: ignore[attr-defined]
    again = start(Run.open(run.folder))
    for step in (20, 30, 40):
        again.log(step, {"loss": 2.0})
    again.finish()
    assert scalars(again, "loss") == [(10, 1), (20, 2), (30, 2), (40, 2)]


def test_without_tensorboard_there_is_one_warning_and_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = start(Run.create(tmp_path, "toy"))
    run.log(1, {"loss": 1.0})
    run.image("plan", np.zeros((6, 8, 3), np.uint8))
    run.finish()
    (warning,) = capsys.readouterr().err.splitlines()
    assert "tensorboard is not installed" in warning and "pip install 'diffusion-forcing[tensorboard]'" in warning
    assert not (run.folder / "tensorboard").exists()


def test_a_cell_cannot_break_out_of_its_table() -> None:
    assert markdown([{"a": "x|y", "b": None}, {"c": 0.1234567}]).splitlines() == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| x\\|y |  |  |",
        "|  |  | 0.123457 |",
    ]
