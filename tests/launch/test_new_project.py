"""`diffusion-forcing new`: the project runs on the package as it is written, passes its own tests, and never overwrites anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_forcing.launch import commands
from diffusion_forcing.launch.cli import main

ROOT = Path(__file__).resolve().parents[2]
MINE = ["dataset=my_dataset", "algorithm=my_algorithm", "experiment=my_experiment"]
SMALL = ["experiment.training.max_steps=2", "dataset.count=16", "experiment.training.batch_size=4"]


def python(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_new_project_of_another_name_runs_its_task_and_passes_its_own_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my_waves"]) == 0
    said = capsys.readouterr().out
    assert "cd my_waves" in said and "experiment.tasks=[training,my_task]" in said
    folder = tmp_path / "my_waves"
    assert {"my_waves/dataset.py", "tests/test_my_waves.py", "pyproject.toml", ".gitignore"} <= files(folder)
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if "my_project" in text]
    done = python("-m", "diffusion_forcing", *MINE, *SMALL, "experiment.tasks=[training,my_task]", folder=folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "outputs" / "latest-run" / "metrics.json").read_text())
    assert metrics["my_task/rmse"] > 0
    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", folder=folder)
    assert tested.returncode == 0, tested.stdout
    assert "7 passed" in tested.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "takes NAME, got 0"),
        (["one", "two"], "takes NAME, got 2"),
        (["--force"], "has no option '--force'"),
        (["My Project"], "'My Project'"),
        (["my-project"], "write my_project"),
        (["1st"], "'1st'"),
        (["class"], "'class'"),
        (["torch"], "write my_torch"),
        (["json"], "write my_json"),
        (["full"], "full exists already"),
        (["file"], "file exists already"),
        (["file/inside"], "cannot write file/inside"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    assert main(["new", *words]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert files(tmp_path) == {"full/mine.txt", "file"}
    assert len(list(tmp_path.iterdir())) == 2


def test_an_empty_folder_where_one_stands_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_thing").mkdir()
    monkeypatch.chdir(tmp_path / "my_thing")
    assert main(["new", "."]) == 0
    assert (tmp_path / "my_thing" / "my_thing" / "experiment.py").is_file()


def test_half_a_project_is_taken_away_when_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write = Path.write_text

    def full(self: Path, *words: object) -> int:
        if self.name == "pyproject.toml":
            raise OSError(28, "No space left on device")
        return write(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["new", "my_thing"]) == 2
    assert "cannot write my_thing: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_template_ships_in_the_wheel_and_in_the_source_archive() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '"template" = "diffusion_forcing/template"' in text.partition("wheel.force-include]")[2]
    assert '"/template"' in text.partition("targets.sdist]")[2]


def test_the_template_is_found_in_an_installed_package_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages" / "diffusion_forcing"
    (installed / "launch").mkdir(parents=True)
    (installed / "template" / "my_project").mkdir(parents=True)
    (installed / "template" / "my_project" / "pyproject.toml").touch()
    monkeypatch.setattr(commands, "__file__", str(installed / "launch" / "commands.py"))
    assert commands.template() == installed / "template" / "my_project"
