"""The robot's demo is the ordinary experiment with whatever policy is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("gymnasium_robotics", reason="the robot's arm comes with gymnasium-robotics")

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.launch import demo_robot
from diffusion_forcing.launch.run import plan

SMALL = [
    "dataset=robot_swap",
    "dataset.resolution=16",
    "algorithm=df_robot_small",
    "algorithm.diffusion.transformer.network_size=16",
    "algorithm.diffusion.transformer.num_layers=1",
    "algorithm.diffusion.eyes.width=8",
]


def test_the_demo_plays_and_says_where_its_films_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ready = plan(SMALL)
    robot = ready.classes["algorithm"](ready.options["algorithm"])
    facts = {**robot.describe(), "sampling": {"algorithm": {"diffusion": {"sampling_timesteps": 1}}}}
    native.save(tmp_path / "pretrained" / "robot_swap_small", None, facts=facts, model=robot.sampling_weights(), step=1)
    monkeypatch.setattr(demo_robot, "WORDS", [*demo_robot.WORDS, "dataset.resolution=16", "experiment.films=1"])
    assert demo_robot.main() == 0
    said = capsys.readouterr().out
    folder = Path("outputs/latest-run").resolve()
    for name in ("index.html", "pictures/test_0.mp4"):
        assert f"{folder.relative_to(tmp_path)}/{name}" in said
        assert (folder / name).is_file()
    assert json.loads((folder / "metrics.json").read_text())["robot/episodes"] == 4


def test_the_shipped_policy_is_what_its_card_says() -> None:
    ready = plan(demo_robot.WORDS)
    options = ready.options["algorithm"]
    assert (options.network, options.action_packing, options.part_noise) == ("attention", "vector", 0.2)
    robot = ready.classes["algorithm"](options)
    robot.load_weights(native.load(ready.checkpoint))
    assert sum(weight.numel() for weight in robot.sampling_weights().values()) == 3_777_113


def test_a_demo_without_its_checkpoint_is_one_error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_robot, "WORDS", ["dataset=robot_swap", "load=no_such_policy"])
    assert demo_robot.main() == 2
    assert [line.startswith("error: ") for line in capsys.readouterr().err.splitlines()] == [True]
