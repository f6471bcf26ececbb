"""The demo is the ordinary experiment, one run for three mazes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.launch import demo
from diffusion_forcing.launch.run import plan
from diffusion_forcing.tracking.run import Run


def tiny_checkpoint(maze: str, folder: Path) -> None:
    """An untrained planner of one layer, where `load=maze2d_<maze>_x` finds it."""
    sizes = "algorithm.diffusion.architecture"
    ready = plan(
        [
            "experiment=exp_planning",
            "algorithm=df_planning",
            f"dataset=maze2d_{maze}",
            "dataset.action_mean=[]",
            "dataset.action_std=[]",
            f"{sizes}.num_layers=1",
            f"{sizes}.network_size=16",
            f"{sizes}.dim_feedforward=16",
        ]
    )
    planning = ready.classes["algorithm"](ready.options["algorithm"])
    native.save(folder / f"maze2d_{maze}_x", None, facts=planning.describe(), model=planning.sampling_weights(), step=1)


def test_the_demo_plays_plans_in_one_run_and_says_where_its_page_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "MAZES", ("umaze",))
    monkeypatch.setattr(demo, "EPISODES", 1)
    tiny_checkpoint("umaze", tmp_path / "pretrained")
    assert demo.main() == 0
    said = capsys.readouterr().out
    folder = Path("outputs/latest-run").resolve()
    assert f"{folder.relative_to(tmp_path)}/index.html" in said
    assert "1 mazes planned and played" in said
    results = json.loads((folder / "metrics.json").read_text())
    assert results["umaze/planning/episodes"] == 1
    assert (folder / "pictures" / "umaze_validation_plans.png").is_file()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_the_demo_plays_at_least_eight_mazes_of_three_sizes() -> None:
    assert set(demo.MAZES) == {"umaze", "medium", "large"}
    assert len(demo.MAZES) * demo.EPISODES >= 8


def test_a_demo_without_checkpoints_is_one_error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    resolve = importlib.import_module("diffusion_forcing.checkpoints.resolve")
    monkeypatch.setattr(resolve, "shipped_places", list)
    assert demo.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'maze2d_umaze_x' is neither")
    assert error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_section_writes_behind_its_name(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "demo")
    section = demo.Section(run, "large")
    section.log(1, {"loss": 0.5})
    section.summary({"planning/success_rate": 1.0})
    section.table("episodes", [{"a": 1}])
    run.finish()
    assert json.loads((run.folder / "metrics.jsonl").read_text())["large/loss"] == 0.5
    assert json.loads((run.folder / "metrics.json").read_text()) == {"large/planning/success_rate": 1.0}
    assert (run.folder / "tables" / "large_episodes.csv").is_file()
