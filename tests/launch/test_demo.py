"""The demos' command lines, as the Makefile has them, on untrained checkpoints of tiny sizes."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.run import plan

ROOT = Path(__file__).resolve().parents[2]
FEW_STEPS = {"sampling": {"algorithm": {"diffusion": {"sampling_timesteps": 2}}}}


def command_lines(target: str) -> list[list[str]]:
    """The arguments of each `python -m main` that `make target` would run."""
    made = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = made.replace("\\\n", " ").splitlines()
    return [shlex.split(line.split("-m main", 1)[1]) for line in lines if "-m main" in line]


def save_untrained(name: str, words: list[str], more: dict[str, Any], *, fit_to_data: bool = False) -> None:
    """An untrained network of the sizes in `words`, where `load=name` finds it."""
    ready = plan(words)
    algorithm = ready.classes["algorithm"](ready.options["algorithm"])
    if fit_to_data:
        algorithm.adapt(ready.classes["dataset"](ready.options["dataset"]).spec)
    facts = algorithm.describe() | more
    native.save(Path("pretrained") / name, None, metadata=facts, model=algorithm.sampling_weights(), step=1)


def run_demo(target: str, overrides: list[str], output: pytest.CaptureFixture[str]) -> list[Path]:
    """Run each command line of the demo with `overrides`; their runs' folders, which the last lines name."""
    folders = []
    for words in command_lines(target):
        output.readouterr()
        assert main([*words, *overrides]) == 0
        folders.append(Path("outputs/latest-run").resolve())
        last = output.readouterr().out
        assert str(folders[-1].relative_to(Path.cwd())) in last
        assert "index.html" in last and "pictures" in last
    return folders


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_demo_plans_in_mazes_of_four_sizes(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        f"algorithm.diffusion.architecture.{key}" for key in ("num_layers=1", "network_size=16", "dim_feedforward=16")
    ]
    for maze in ("umaze", "medium", "large"):
        words = [f"dataset=maze2d_{maze}", "experiment=exp_planning", "algorithm=df_planning", *sizes]
        save_untrained(f"maze2d_{maze}_x", [*words, "dataset.action_mean=[]", "dataset.action_std=[]"], FEW_STEPS)
    folders = run_demo("demo", ["experiment.episodes=1", "dataset.episode_len=60"], capsys)
    assert [re.sub(r"^[\d-]*demo_", "", folder.name) for folder in folders] == ["umaze", "medium", "large", "giant"]
    for folder in folders:
        assert json.loads((folder / "metrics.json").read_text())["planning/episodes"] == 1
        assert (folder / "pictures" / "validation_plans.png").is_file()


@pytest.mark.slow
def test_demo_video_rolls_out_48_frames_with_the_window_of_the_checkpoint(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vizdoom")
    pytest.importorskip("labmaze")
    (words,) = command_lines("demo-video")
    options = plan([*words, f"load={ROOT / 'pretrained' / 'labmaze64_world_student'}"]).options
    frames, context = options["dataset"].validation_frames, options["algorithm"].context_frames
    assert (frames - context, options["algorithm"].n_frames) == (48, 24)
    small_world = ["dataset.resolution=8", "algorithm.diffusion.architecture.window=4"]
    save_untrained("labmaze64_world_student", ["dataset=video_labmaze", "algorithm=df_world", *small_world], FEW_STEPS)
    small = ["dataset.n_frames=12", "dataset.num_test_episodes=2", "experiment.films=2", "experiment.test.batch_size=2"]
    (folder,) = run_demo("demo-video", small, capsys)
    results = json.loads((folder / "metrics.json").read_text())
    assert (results["test/clips"], results["test/frames_predicted"]) == (2, 2 * (12 - context))
    for name in ("test_clip_1.mp4", "test_clip_2.mp4", "test_sheet.png"):
        assert (folder / "pictures" / name).is_file()


@pytest.mark.slow
def test_demo_forecast_draws_fans_and_writes_the_forecast(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gluonts")
    if importlib.util.find_spec("simbench") is None:
        pytest.skip("simbench is not installed")
    sizes = ["algorithm.z_shape=[8]", "algorithm.diffusion.network_size=4", "algorithm.diffusion.num_gru_layers=1"]
    few = {"algorithm": {"calc_crps_sum": 3, "diffusion": {"sampling_timesteps": 2}}}
    words = ["dataset=ts_load", "dataset.variates=3", *sizes]
    save_untrained("ts_load_small", words, {"sampling": few}, fit_to_data=True)
    (folder,) = run_demo("demo-forecast", ["dataset.variates=3"], capsys)
    assert json.loads((folder / "metrics.json").read_text())["forecast/paths"] == 3
    assert (folder / "pictures" / "test_fans.png").is_file()
    assert (folder / "tables" / "forecast.csv").is_file()


@pytest.mark.slow
def test_demo_robot_plays_and_is_filmed(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gymnasium_robotics")
    sizes = ["transformer.network_size=16", "transformer.num_layers=1", "eyes.width=8"]
    words = ["dataset=robot_swap", "dataset.resolution=16", "algorithm=df_robot_small"]
    save_untrained("robot_swap_small", [*words, *(f"algorithm.diffusion.{size}" for size in sizes)], FEW_STEPS)
    small = ["dataset.resolution=16", "experiment.films=1", "experiment.episodes=2"]
    (folder,) = run_demo("demo-robot", small, capsys)
    assert json.loads((folder / "metrics.json").read_text())["robot/episodes"] == 2
    assert (folder / "pictures" / "test_0.mp4").is_file()


@pytest.mark.parametrize("target", ["demo", "demo-video", "demo-forecast", "demo-robot"])
def test_the_command_lines_of_a_demo_fit_the_shipped_checkpoints(
    target: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in command_lines(target):
        assert plan(words).checkpoint is not None


@pytest.mark.parametrize(
    ("target", "extras"),
    [
        ("demo", {"planning"}),
        ("play", {"play"}),
        ("demo-video", {"video"}),
        ("demo-forecast", {"forecasting"}),
        ("demo-robot", {"robot"}),
        (
            "test",
            {"planning", "ogbench", "video", "forecasting", "robot", "play", "wandb", "tensorboard", "docs", "dev"}
            | {"benchmarks", "hub", "minari"},
        ),
    ],
)
def test_a_target_installs_the_extras_that_it_needs_and_no_others(
    target: str, extras: set[str], tmp_path: Path
) -> None:
    def steps() -> str:
        return subprocess.run(
            ["make", "-n", target, f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    first = steps()
    (installed,) = re.findall(r"-e '\.\[(.+)\]'", first)
    assert set(installed.split(",")) == extras
    assert ("tools/need_slurm" in first) == (target == "test")
    assert ("tools/need_gl" in first) == (target in ("test", "play", "demo-robot"))
    assert ("simbench" in first) == (target in ("test", "play", "demo-forecast"))
    (tmp_path / ".installed").touch()  # what `make setup` leaves
    assert "-m pip" not in steps()
