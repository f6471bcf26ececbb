"""Runs read back from their files: listed, ranked, compared on a page, removed whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.cli import main
from diffusion_forcing.tracking.page import COMPARED, comparison_page
from diffusion_forcing.tracking.records import KILLED, rank, read_runs, remove
from diffusion_forcing.tracking.run import Run
from tests.tracking.test_page import HOSTILE, Reader


def make(outputs: Path, name: str, *, loss: float, score: float | None = None, status: str = "finished") -> Run:
    """A run that logged a falling loss down to `loss`."""
    run = Run.create(outputs, name)
    for step in range(30):
        run.log(10 * step, {"training/loss": loss + (20 - step) ** 2 / 100, f"only/{len(name)}": step})
    if score is not None:
        run.summary({"planning/success_rate": score, "data/steps": 5})
    run.image("plans", np.zeros((4, 4, 3), np.uint8), caption=name)
    run.video("episode", np.zeros((3, 16, 16, 3), np.uint8), fps=5)
    if status != "running":
        run.finish(status)
    return run


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("outputs")


def started(run: Run, when: str) -> None:
    facts = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**facts, "started": when}))


def test_runs_are_read_newest_first_with_what_became_of_them(outputs: Path) -> None:
    old, new, failed = (
        make(outputs, name, loss=1, status=end) for name, end in (("a", "finished"), ("b", "running"), ("c", "failed"))
    )
    for run, minute in ((old, "01"), (new, "03"), (failed, "02")):
        started(run, f"2026-11-24T10:{minute}:00+00:00")
    (outputs / "2026-01-01" / "broken").mkdir(parents=True)
    (outputs / "2026-01-01" / "broken" / "run.json").write_text("{")
    found = read_runs(outputs)
    assert [(run.name, run.status, run.step) for run in found] == [
        ("b", "running", 290),
        ("c", "failed", 290),
        ("a", "finished", 290),
    ]
    assert found[0].started == "2026-11-24 10:03"


def test_a_run_whose_process_is_gone_was_killed(outputs: Path) -> None:
    run = make(outputs, "a", loss=1, status="running")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    facts = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**facts, "pid": gone.pid}))
    assert read_runs(outputs)[0].status == KILLED
    (run.folder / "run.json").write_text(json.dumps({**facts, "pid": gone.pid, "host": "elsewhere"}))
    assert read_runs(outputs)[0].status == "running"  # of another machine nothing is known
    (run.folder / "run.json").write_text(json.dumps({**facts, "pid": os.getpid()}))
    assert read_runs(outputs)[0].status == "running"


def test_runs_are_ranked_by_results_and_by_the_best_of_a_curve(outputs: Path) -> None:
    make(outputs, "a", loss=3, score=0.5)
    make(outputs, "bb", loss=1, score=0.9)
    make(outputs, "ccc", loss=2)
    runs = read_runs(outputs)
    assert [(entry.run.name, entry.value) for entry in rank(runs, "planning/success_rate", highest=True)] == [
        ("bb", 0.9),
        ("a", 0.5),
    ]
    by_loss = rank(runs, "training/loss", highest=False)
    assert [(entry.run.name, entry.value, entry.step) for entry in by_loss] == [
        ("bb", 1, 200),
        ("ccc", 2, 200),
        ("a", 3, 200),
    ]
    assert [entry.value for entry in rank(runs, "training/loss", highest=True)] == [7, 6, 5]
    with pytest.raises(UserError, match=r"no run has the metric 'training/los' \(did you mean 'training/loss'"):
        rank(runs, "training/los", highest=False)


def test_removing_takes_the_whole_run_and_the_link_goes_to_the_newest_left(outputs: Path) -> None:
    first, second = make(outputs, "a", loss=1), make(outputs, "b", loss=1)
    started(first, "2020-01-01T00:00:00+00:00")
    assert (outputs / "latest-run").resolve() == second.folder.resolve()
    remove(read_runs(outputs)[0], outputs)
    assert not second.folder.exists()
    assert [path for path in outputs.iterdir() if path.name.startswith(".")] == []
    assert (outputs / "latest-run").resolve() == first.folder.resolve()
    remove(read_runs(outputs)[0], outputs)
    assert list(outputs.iterdir()) == []


def test_the_page_lists_all_compares_some_and_escapes_everything(outputs: Path) -> None:
    make(outputs, HOSTILE, loss=1, score=0.5)
    for number in range(COMPARED + 1):
        make(outputs, f"run-{number}", loss=number)
    runs = read_runs(outputs)
    page = Reader(comparison_page(outputs, runs, runs[:2]))
    names = [tag for tag, _ in page.tags]
    assert "script" not in names
    assert names.count("svg") == len({name for run in runs[:2] for name in run.curves()})
    assert names.count("video") == 2
    for tag, attributes in page.tags:
        for key in ("src", "href"):
            if tag in ("img", "video", "a") and attributes.get(key):
                assert (outputs / unquote(str(attributes[key]))).exists()
    text = "".join(page.text)
    assert all(run.id in text for run in runs)
    assert HOSTILE in text
    every = Reader(comparison_page(outputs, runs, runs))
    assert sum(tag == "g" for tag, attributes in every.tags if attributes.get("class") == "c7") >= 1
    assert not any(attributes.get("class") == "c8" for _, attributes in every.tags)


def test_a_compared_chart_has_a_line_a_run_over_the_same_axes(outputs: Path) -> None:
    make(outputs, "a", loss=1)
    make(outputs, "b", loss=100)
    runs = read_runs(outputs)
    lines = [attributes for tag, attributes in Reader(comparison_page(outputs, runs, runs)).tags if tag == "polyline"]
    heights = [
        [float(pair.split(",")[1]) for pair in str(line["points"]).split()]
        for line in lines
        if len(str(line["points"])) > 50
    ]
    tall = sorted(heights[:2], key=min)
    assert max(tall[0]) < min(tall[1])  # the greater loss lies above the lesser one everywhere


def test_the_command_lists_shows_ranks_and_asks_before_it_removes(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(outputs, "mine", loss=1, score=0.75)
    other = make(outputs, "other", loss=2, status="running")
    assert main(["runs"]) == 0
    assert "2 runs: outputs/index.html" in capsys.readouterr().out
    assert run.id in (outputs / "index.html").read_text()
    assert main(["runs", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(run.id in line and "finished" in line and "success rate 75.0 %" in line for line in lines)
    assert main(["runs", "show", run.id, "outputs=outputs"]) == 0
    shown = capsys.readouterr().out
    assert "planning/success_rate  0.75" in shown
    assert str(run.folder) in shown
    assert main(["runs", "best", "training/loss", "lowest"]) == 0
    ranked = capsys.readouterr().out
    assert ranked.index(run.id) < ranked.index(other.id)
    assert main(["runs", "rm", run.id, other.id, "--yes"]) == 2
    assert other.id in capsys.readouterr().err
    assert main(["runs", "rm", run.id]) == 2
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, there in (("", True), ("n", True), ("y", False)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert main(["runs", "rm", run.id]) == 0
        assert run.folder.exists() == there


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "no run 'nothing'"),
        (["ls", "more"], "got 'more'"),
        (["show"], "got 0"),
        (["best", "training/loss"], "lowest or highest"),
        (["best", "loss", "least"], "lowest or highest"),
        (["rm"], "got 0"),
        (["--all"], "has no option '--all'"),
        (["outputs=elsewhere"], "there is no folder elsewhere"),
    ],
)
def test_what_cannot_be_is_one_line(
    outputs: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(outputs, "a", loss=1)
    assert main(["runs", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert said in error
    assert "\n" not in error
