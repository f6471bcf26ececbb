"""The group `tracking`: one choice or several, wandb.mode, a user's own tracker, and none on a further rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.run import plan
from diffusion_forcing.tracking.tensorboard import Tensorboard
from diffusion_forcing.tracking.wandb import Wandb
from tests.launch.conftest import MINE

TRACKER = """
from dataclasses import dataclass
from diffusion_forcing.tracking.run import Tracker

HEARD = []

@dataclass(frozen=True, kw_only=True)
class Options:
    room: str = "lab"

class Diary(Tracker):
    Options = Options

    def start(self, run, config):
        HEARD.append(("start", run.name, config["algorithm"]["lr"], self.options.room))

    def log(self, step, metrics):
        HEARD.append(("log", step, metrics))

    def finish(self, status):
        HEARD.append(("finish", status))

class Broken(Diary):
    def log(self, step, metrics):
        raise OSError("the pencil is blunt")
"""


def trackers(*words: str) -> list[type]:
    return [cls for cls, _ in plan([*MINE, *words]).trackers]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["tracking=local"], []),
        (["tracking=null"], []),
        (["tracking=wandb"], [Wandb]),
        (["tracking=[wandb,tensorboard]"], [Wandb, Tensorboard]),
        (["+tracking=tensorboard"], [Tensorboard]),
        (["wandb.mode=online"], [Wandb]),
        (["wandb.mode=offline", "wandb.entity=me", "wandb.project=p"], [Wandb]),
        (["tracking=tensorboard", "wandb.mode=online"], [Tensorboard, Wandb]),
        (["tracking=[wandb,tensorboard]", "wandb.mode=disabled"], [Tensorboard]),
        (["wandb.mode=disabled"], []),
    ],
)
def test_a_command_says_who_is_told_of_the_run(words: list[str], expected: list[type], project: Path) -> None:
    assert trackers(*words) == expected


def test_wandbs_keys_reach_the_tracker(project: Path) -> None:
    words = ["wandb.mode=offline", "wandb.entity=me", "wandb.project=p", "wandb.expire_days=2"]
    ((_, options),) = plan([*MINE, *words]).trackers
    assert (options.mode, options.entity, options.project, options.expire_days) == ("offline", "me", "p", 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tracking=wand"], "tracking=wand does not exist (did you mean 'wandb'?)"),
        (["tracking=[local,tensorbord]"], "tracking=tensorbord does not exist (did you mean 'tensorboard'?)"),
        (["tracking=[1,2]"], "tracking must be the name of one yaml file"),
        (["wandb.mode=on"], "wandb.mode must be one of online, offline, disabled, got 'on'"),
        (["tracking=wandb", "wandb.expire_days=0"], "wandb.expire_days"),
        (["tracking=tensorboard", "tracking.tensorboard.video_frames=0"], "video_frames"),
        (["tracking=tensorboard", "tracking.tensorboard.frames=3"], "unknown key tracking.tensorboard.frames"),
        (
            ["+tracking.mine._target_=my_parts.Data", "+tracking.mine.path=x"],
            "no subclass of diffusion_forcing.tracking.run.Tracker",
        ),
    ],
)
def test_a_mistake_in_them_is_one_line(
    words: list[str], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*MINE, *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (project / "outputs").exists()


def test_a_users_own_tracker_is_one_class_and_one_yaml(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = diary(project)
    assert main([*MINE, "tracking=diary", "tracking.diary.room=attic", "+name=mine"]) == 0
    assert heard() == [("start", "mine", 0.01, "attic"), ("log", 1, {"loss": 0.5}), ("finish", "finished")]


def test_a_tracker_that_fails_is_a_warning_and_the_run_goes_on(project: Path) -> None:
    diary(project)
    with pytest.warns(RuntimeWarning, match="Broken of run .* the pencil is blunt"):
        assert main([*MINE, "tracking=diary", "tracking.diary._target_=my_diary.Broken"]) == 0
    (folder,) = (file.parent for file in project.glob("outputs/*/*/run.json"))
    assert json.loads((folder / "metrics.json").read_text()) == {"loss": 0.5}


def test_a_further_rank_tells_nobody(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = diary(project)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main([*MINE, "tracking=diary"]) == 0
    assert heard() == []


def test_a_resumed_run_keeps_its_trackers_unless_the_command_names_others(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_forcing.launch import run as launch_run

    monkeypatch.setattr(launch_run, "_local_checkpoint", lambda spec, outputs: project)
    diary(project)
    main([*MINE, "tracking=diary", "tracking.diary.room=attic"])
    folder = next(file.parent for file in project.glob("outputs/*/*/run.json"))

    def resumed(*words: str) -> list[str]:
        return [cls.__name__ for cls, _ in plan([f"resume={folder}", *words]).trackers]

    assert resumed() == ["Diary"]
    assert resumed("tracking=[diary,tensorboard]") == ["Diary", "Tensorboard"]
    assert plan([f"resume={folder}", "tracking=[diary,tensorboard]"]).trackers[0][1].room == "attic"
    assert resumed("tracking=local") == []
    assert resumed("wandb.mode=offline") == ["Diary", "Wandb"]


def test_a_run_of_an_older_version_can_be_resumed_with_wandb(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_forcing.launch import run as launch_run

    monkeypatch.setattr(launch_run, "_local_checkpoint", lambda spec, outputs: project)
    main(MINE)
    folder = next(file.parent for file in project.glob("outputs/*/*/run.json"))
    saved = OmegaConf.load(folder / "config.yaml")
    del saved["tracking"], saved["choices"]["tracking"]
    saved["wandb"] = {"entity": None, "project": "diffusion-forcing", "mode": "disabled"}
    OmegaConf.save(saved, folder / "config.yaml")
    assert plan([f"resume={folder}"]).trackers == ()
    for words in (["wandb.mode=online"], ["tracking=wandb"]):
        assert [cls for cls, _ in plan([f"resume={folder}", *words]).trackers] == [Wandb]


@pytest.mark.slow
def test_wandb_and_tensorboard_are_not_imported_to_plan_a_run_with_them(project: Path) -> None:
    code = (
        "import sys; from diffusion_forcing.launch.run import plan; plan(sys.argv[1:]); "
        "print([name for name in ('wandb', 'tensorboard') if name in sys.modules])"
    )
    words = [*MINE, "tracking=[wandb,tensorboard]"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=project)
    assert done.stdout == "[]\n", done.stderr


def diary(project: Path) -> Any:
    """A tracker of the user's own, in their project; returns what gives all it heard."""
    (project / "my_diary.py").write_text(TRACKER)
    yaml = project / "configurations" / "tracking" / "diary.yaml"
    yaml.parent.mkdir()
    yaml.write_text("# My diary.\ndiary:\n  _target_: my_diary.Diary\n  room: lab\n")
    return lambda: sys.modules["my_diary"].HEARD if "my_diary" in sys.modules else []
