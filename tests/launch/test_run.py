"""A user's own project runs on the installed package, and a run is composed, checked, built and reported in that order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import diffusion_forcing
from diffusion_forcing.launch import run as launch_run
from diffusion_forcing.launch.cli import main
from tests.launch.conftest import MINE

ROOT = Path(__file__).resolve().parents[2]


def events() -> list[Any]:
    return sys.modules["my_parts"].EVENTS


def only_run(project: Path) -> Path:
    folders = [file.parent for file in project.glob("outputs/*/*/run.json")]
    assert len(folders) == 1
    return folders[0]


def status(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["status"])


def test_a_tilde_in_outputs_is_the_home_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the one in outputs=~/runs as it is."""
    monkeypatch.setenv("HOME", str(project / "home"))
    assert main([*MINE, "outputs=~/runs"]) == 0
    (folder,) = (file.parent for file in project.glob("home/runs/*/*/run.json"))
    assert not (project / "~").exists()
    run_id = json.loads((folder / "run.json").read_text())["id"]
    for name in (run_id, f"~/{folder.relative_to(project / 'home')}"):
        assert launch_run._local_run(name, Path("~/runs").expanduser()) == folder


def test_a_users_own_parts_run_with_their_own_yaml(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MINE, "+name=first", "dataset.mean=[3,4]", "seed=7"]) == 0
    assert events()[:3] == ["data", "model", "study"]
    task, _, facts = events()[3]
    assert (task, facts) == ("training", {"seed": 7, "debug": False, "load": None, "resume": None, "mean": (3.0, 4.0)})
    folder = only_run(project)
    assert folder.name.endswith("-first")
    assert status(folder) == "finished"
    assert json.loads((folder / "metrics.json").read_text()) == {"loss": 0.5}
    said = capsys.readouterr().out
    assert "index.html" in said
    assert "metrics.json" in said
    assert str(folder.relative_to(project)) in said


def test_the_saved_config_keeps_interpolations_so_that_a_resume_can_change_the_source(project: Path) -> None:
    main([*MINE, "dataset.mean=[3,4]"])
    saved = OmegaConf.load(only_run(project) / "config.yaml")
    assert OmegaConf.to_container(saved, resolve=False)["algorithm"]["mean"] == "${dataset.mean}"
    assert saved.dataset.mean == [3, 4]
    assert saved.choices.dataset == "mine"


def test_tasks_run_in_the_order_given_and_users_add_their_own(project: Path) -> None:
    assert main([*MINE, "experiment.tasks=[my_task,training,my_task]"]) == 0
    assert [event if isinstance(event, str) else event[0] for event in events()[3:]] == [
        "my_task",
        "training",
        "my_task",
    ]


def test_results_json_says_what_was_measured_and_on_what(project: Path) -> None:
    assert main([*MINE, "seed=4"]) == 0
    found = json.loads((only_run(project) / "results.json").read_text())
    assert (found["format"], found["format_version"], found["seed"]) == ("diffusion-forcing/results", 2, 4)
    assert (found["dataset"], found["tasks"]) == ({"name": "mine", "id": None}, ["training"])
    assert found["metrics"] == [{"name": "loss", "value": 0.5, "stderr": None, "interval": None}]
    assert found["version"] == f"diffusion-forcing {diffusion_forcing.__version__}"


def test_the_seed_decides_what_is_drawn(project: Path) -> None:
    for seed in (1, 1, 2):
        main([*MINE, f"seed={seed}"])
    first, again, other = [event[1] for event in events() if isinstance(event, tuple)]
    assert first == again != other


def test_debug_turns_anomaly_detection_on_and_shows_tracebacks(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*MINE, "debug=True", "experiment.tasks=[training,broken]"]) == 2
    assert torch.is_anomaly_enabled()
    assert "Traceback" in capsys.readouterr().err
    main(MINE)
    assert not torch.is_anomaly_enabled()


def test_an_unknown_task_is_refused_before_anything_is_built(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MINE, "experiment.tasks=[training,my_tsak]"]) == 2
    error = capsys.readouterr().err
    assert "experiment.tasks 'my_tsak'" in error and "did you mean 'my_task'?" in error
    assert events() == []
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("task", "code", "state", "reason"),
    [("broken", 2, "failed", "the loss is not finite at step 3"), ("stopped", 130, "interrupted", None)],
)
def test_a_run_that_ends_early_says_so_in_its_folder(
    project: Path, capsys: pytest.CaptureFixture[str], task: str, code: int, state: str, reason: str | None
) -> None:
    assert main([*MINE, f"experiment.tasks=[{task}]"]) == code
    folder = only_run(project)
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record.get("error")) == (state, reason)
    capsys.readouterr()
    assert main(["runs", "show", record["id"]]) == 0
    for text in (capsys.readouterr().out, (folder / "index.html").read_text()):
        assert (f"error: {reason}" in text) == bool(reason)


def test_a_run_that_trained_nothing_cannot_be_resumed_and_says_why(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*MINE, "experiment.tasks=[my_task]"]) == 0
    run_id = json.loads((only_run(project) / "run.json").read_text())["id"]
    capsys.readouterr()
    for words in ([f"resume={run_id}"], ["inspect", run_id], [*MINE, f"load={run_id}"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: run {run_id} (") and "it trained nothing (tasks: my_task)" in error


def test_a_mistake_of_the_code_keeps_its_traceback(project: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        main([*MINE, "experiment.tasks=[mistaken]"])
    assert status(only_run(project)) == "failed"
    assert json.loads((only_run(project) / "run.json").read_text())["error"] == "ZeroDivisionError: ours"


def test_resume_goes_on_in_the_same_folder_with_the_saved_config_and_words_on_top(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main([*MINE, "dataset.mean=[3,4]", "algorithm.lr=0.5", "seed=5", "+name=first"])
    folder = only_run(project)
    identity = json.loads((folder / "run.json").read_text())["id"]
    monkeypatch.setattr(launch_run, "_local_checkpoint", lambda spec, outputs: folder / "checkpoints" / "latest")
    (project / "configurations" / "dataset" / "mine.yaml").unlink()
    typed = "dataset._target_=my_parts.Data"  # no yaml file here names it any more
    assert main([f"resume={identity}", typed, "dataset.mean=[9]", "experiment.tasks=[training]"]) == 0
    facts = events()[-1][2]
    assert facts == {
        "seed": 5,
        "debug": False,
        "load": None,
        "resume": folder / "checkpoints" / "latest",
        "mean": (9.0,),
    }
    assert only_run(project) == folder
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_resume_accepts_the_same_groups_again_and_refuses_others(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(MINE)
    monkeypatch.setattr(launch_run, "_local_checkpoint", lambda spec, outputs: project)
    folder = str(only_run(project))
    assert main([*MINE, f"resume={folder}"]) == 0
    assert main([f"resume={folder}", "dataset=maze2d_large"]) == 2
    assert "keeps dataset=mine, got 'dataset=maze2d_large'" in capsys.readouterr().err


def test_load_and_resume_together_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(MINE)
    assert main([*MINE, f"resume={only_run(project)}", "load=x"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_further_rank_keeps_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(MINE) == 0
    assert not (project / "outputs").exists()
    assert capsys.readouterr().out == ""


def test_the_users_config_comes_before_ours(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "configurations" / "algorithm" / "df_video.yaml").write_text("_target_: my_parts.Model\nmean: [5]\n")
    assert main(["dataset=mine", "experiment=mine", "--cfg", "--resolve"]) == 0
    assert OmegaConf.create(capsys.readouterr().out).algorithm == {"_target_": "my_parts.Model", "mean": [5]}


def test_a_users_yaml_builds_on_ours(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "defaults:\n  - df_planning\n  - _self_\nguidance_scale: 7\n"
    (project / "configurations" / "algorithm" / "mine.yaml").write_text(text)
    assert main(["algorithm=mine", "dataset=maze2d_medium", "--cfg", "job"]) == 0
    algorithm = OmegaConf.create(capsys.readouterr().out)["algorithm"]
    assert (algorithm.guidance_scale, algorithm.diffusion.architecture.num_layers) == (7, 12)


@pytest.mark.slow
def test_a_project_elsewhere_runs_from_the_command_line_in_its_own_process(project: Path) -> None:
    path = f"import sys; sys.path.append({str(ROOT)!r})"
    word = f"{path}; from diffusion_forcing.launch.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-I", "-c", word, *MINE, "experiment.tasks=[my_task]"],
        capture_output=True,
        text=True,
        cwd=project,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert status(only_run(project)) == "finished"
