"""A run's folder: what is written, that it survives kills and crowds, and that nothing in it stops a training."""

from __future__ import annotations

import csv
import inspect
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from diffusion_forcing.errors import UserError
from diffusion_forcing.tracking import run as run_module
from diffusion_forcing.tracking.records import TEXT, find_run
from diffusion_forcing.tracking.run import NullRun, Run

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def lines(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_has_its_folder_id_metadata_and_link(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "maze", command=["main.py", "+name=maze"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-maze", str(run.folder.relative_to(tmp_path)))
    assert re.fullmatch(r"[a-z][a-z0-9]{7}", run.id)
    facts = json.loads((run.folder / "run.json").read_text())
    assert (facts["id"], facts["name"], facts["status"]) == (run.id, "maze", "running")
    assert facts["command"] == ["main.py", "+name=maze"]
    assert run.checkpoints.is_dir() and run.pictures.is_dir() and (run.folder / "index.html").is_file()
    assert (tmp_path / "latest-run").resolve() == run.folder.resolve()
    assert not os.path.isabs(os.readlink(tmp_path / "latest-run"))  # outputs may be moved


def test_two_runs_of_the_same_second_get_different_folders_and_ids(tmp_path: Path) -> None:
    runs = [Run.create(tmp_path, "same") for _ in range(5)]
    assert len({run.folder for run in runs}) == len({run.id for run in runs}) == 5
    assert (tmp_path / "latest-run").resolve() == runs[-1].folder.resolve()


def _create_some(outputs: str) -> list[str]:
    return [str(Run.create(Path(outputs), "crowd", command=[]).folder) for _ in range(5)]


def test_processes_that_create_runs_at_once_never_share_a_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        folders = [folder for some in pool.map(_create_some, [str(tmp_path)] * 4) for folder in some]
    assert len(set(folders)) == 20
    assert (tmp_path / "latest-run" / "run.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".latest")]


@pytest.mark.parametrize("name", ["../../escape", "a/b c", "", "..", "x" * 300, "<script>", "$(rm -rf)", "Größe"])
def test_any_name_makes_a_folder_inside_its_day_and_is_kept_as_it_is(tmp_path: Path, name: str) -> None:
    run = Run.create(tmp_path, name)
    assert run.folder.resolve().parent.parent == tmp_path.resolve()
    assert json.loads((run.folder / "run.json").read_text())["name"] == name


def test_a_run_is_found_by_its_id_and_another_id_is_a_user_error(tmp_path: Path) -> None:
    runs = [Run.create(tmp_path, "a"), Run.create(tmp_path, "b")]
    (tmp_path / "2020-01-01" / "broken").mkdir(parents=True)
    (tmp_path / "2020-01-01" / "broken" / "run.json").write_text("{")
    assert [find_run(tmp_path, run.id) for run in runs] == [run.folder for run in runs]
    nearly = runs[0].id[:-1] + "_"
    with pytest.raises(UserError, match=f"'{nearly}'.*did you mean '{runs[0].id}'"):
        find_run(tmp_path, nearly)
    with pytest.raises(UserError, match="no run"):
        find_run(tmp_path / "nowhere", "abc")


def test_logs_are_one_line_a_call_readable_at_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "log")
    run.log(1, {"loss": 0.5, "count": 3})
    run.log(2, {"loss": np.float32(0.25)})
    assert [{key: line[key] for key in line if key != "time"} for line in lines(run)] == [
        {"step": 1, "loss": 0.5, "count": 3},
        {"step": 2, "loss": 0.25},
    ]


def test_numbers_that_json_cannot_say_are_null(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "nan")
    run.log(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    run.summary({"a": float("nan"), "b": 2})
    assert lines(run)[0] | {"time": 0} == {"step": 1, "time": 0, "a": None, "b": None, "c": 1.0}
    assert json.loads((run.folder / "metrics.json").read_text()) == {"a": None, "b": 2}
    run.finish()


def test_summaries_merge(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "summary")
    run.summary({"planning/episodes": 100, "planning/score": 1.0})
    run.summary({"planning/score": 2.0, "note": "as released"})
    expected = {"planning/episodes": 100, "planning/score": 2.0, "note": "as released"}
    assert json.loads((run.folder / "metrics.json").read_text()) == expected


def test_a_reopened_run_goes_on_in_the_same_files(tmp_path: Path) -> None:
    first = Run.create(tmp_path, "resume")
    first.log(1, {"loss": 1.0})
    first.summary({"a": 1.0})
    first.image("p", PICTURE, "a caption")
    first.finish("failed", "line one\n" + "x" * 9999)
    kept = json.loads((first.folder / "run.json").read_text())["error"]
    assert kept.startswith("line one x") and len(kept) == TEXT
    with (first.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')  # killed in the middle of a line
    again = Run.open(first.folder, command=["main.py", "resume=x"])
    again.log(2, {"loss": 0.5})
    again.summary({"b": 2.0})
    again.finish("finished")
    assert again.id == first.id
    assert [line["step"] for line in lines(again)] == [1, 2]
    assert json.loads((again.folder / "metrics.json").read_text()) == {"a": 1.0, "b": 2.0}
    facts = json.loads((again.folder / "run.json").read_text())
    assert (
        facts["status"] == "finished"
        and "error" not in facts
        and facts["resumed"][0]["command"] == ["main.py", "resume=x"]
    )
    assert "a caption" in (again.folder / "index.html").read_text()


def test_opening_what_is_not_a_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no run"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        Run.open(tmp_path)


def test_outputs_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="outputs=") as caught:
        Run.create(tmp_path / "file", "x")
    assert "\n" not in str(caught.value)


def test_a_full_disk_when_creating_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "write_json", _disk_full)
    with pytest.raises(UserError, match="No space left on device"):
        Run.create(tmp_path, "x")


def _disk_full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_fails_later_warns_once_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path, "full")
    with pytest.warns(RuntimeWarning, match="image 'p'"):
        run.image("p", np.zeros((2, 2, 7)))
    monkeypatch.setattr(run_module, "write_json", _disk_full)
    monkeypatch.setattr(run_module, "write_atomic", _disk_full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            run.image("p", np.zeros((2, 2, 7)))
            run.video("f", np.zeros((3, 8, 8, 3), np.uint8))
            run.table("t", [{"a": 1}])
            run.config("a: 1")
            run.summary({"a": 1.0})
        run.finish("failed")
    said = sorted(re.match(r"[\w.]+( '\w')?", str(one.message)).group() for one in caught)  # type: ignore[union-attr]
    assert said == ["config.yaml", "index.html", "metrics.json", "run.json", "table 't'", "video 'f'"]
    assert [*run.pictures.glob(".*"), *run.folder.glob(".*")] == []


def test_images_come_from_arrays_files_and_figures(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "pictures")
    run.image("array", PICTURE)
    run.image("from/file", run.pictures / "array.png", "a copy")

    class Figure:
        def savefig(self, target, format):
            target.write(b"\x89PNG figure")

    run.image("figure", Figure())
    assert (run.pictures / "from-file.png").read_bytes() == (run.pictures / "array.png").read_bytes()
    assert (run.pictures / "figure.png").read_bytes() == b"\x89PNG figure"
    media = json.loads((run.pictures / "media.json").read_text())
    assert media["image:from/file"]["caption"] == "a copy"


def test_tables_are_csv(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "tables")
    run.table("episodes", [{"episode": 0, "reward": 1.5}, {"episode": 1, "note": "lost, badly"}])
    with (run.folder / "tables" / "episodes.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"episode": "0", "reward": "1.5", "note": ""},
            {"episode": "1", "reward": "", "note": "lost, badly"},
        ]


def test_a_killed_writer_leaves_json_that_can_be_read(tmp_path: Path) -> None:
    """SIGKILL at a random moment of a process that does nothing but write."""
    script = (
        "import sys, pathlib\n"
        "from diffusion_forcing.tracking.run import Run\n"
        "run = Run.create(pathlib.Path(sys.argv[1]), 'killed')\n"
        "print('ready', flush=True)\n"
        "for step in range(10**9):\n"
        "    run.log(step, {'loss': 1.0 / (step + 1)})\n"
        "    run.summary({f'metric {i}': step for i in range(200)})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.25)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    folder = (tmp_path / "latest-run").resolve()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(set(metrics.values())) == 1  # all of one moment
    run = Run.open(folder)
    assert [line["step"] for line in lines(run)] == list(range(len(lines(run))))
    run.finish()


def test_null_run_takes_every_call_that_run_takes() -> None:
    for name, member in inspect.getmembers(Run, callable):
        if not name.startswith("_") and name not in ("create", "open"):
            arguments = {parameter: None for parameter in inspect.signature(member).parameters if parameter != "self"}
            null = inspect.signature(getattr(NullRun(Path("none")), name))
            null.bind(**arguments)
            null.bind(*arguments)


def test_null_run_has_the_attributes_of_run_and_writes_nothing(tmp_path: Path) -> None:
    null = NullRun(tmp_path / "null")
    real = Run.create(tmp_path / "real", "x")
    assert {key for key in vars(real) if not key.startswith("_")} <= set(vars(null))
    null.log(1, {"a": 1.0})
    null.summary({"a": 1.0})
    null.image("p", PICTURE)
    null.video("f", np.zeros((2, 4, 4, 3), np.uint8), 5)
    null.table("t", [{"a": 1}])
    null.config("a: 1")
    null.finish("finished")
    assert [path.name for path in tmp_path.iterdir()] == ["real"]


def test_the_page_is_not_written_more_often_than_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path, "often")
    pages: list[int] = []
    monkeypatch.setattr(run_module, "run_page", lambda *_, **__: pages.append(1) or "page")
    for step in range(200):
        run.log(step, {"loss": 1.0})
    run.image("p", PICTURE)
    assert pages == []
    run._next_page = 0.0  # thirty seconds later
    run.log(200, {"loss": 1.0})
    run.log(201, {"loss": 1.0})
    assert pages == [1]
    run.finish()
    assert pages == [1, 1]
