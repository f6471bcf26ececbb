"""More than 200 command lines, configurations, checkpoints and runs that cannot be right: each is one clear line and exit code 2, none a
traceback, and none writes outside its run's folder or runs anything it holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_forcing.launch import run as launch_run
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.commands import write_project
from tests.launch import malformed_files, malformed_words
from tests.launch.malformed_files import MINE

LONGEST_LINE = 1200
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with a good run of two steps; what runs in it is small."""
    folder = tmp_path_factory.mktemp("world") / "my_project"
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        small = ["dataset.count=8", "experiment.training.batch_size=4", "experiment.training.max_steps=2"]
        assert main([*MINE[:3], *small, "experiment.tasks=[training]"]) == 0
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "my_project"]:
        del sys.modules[name]


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's configurations and nothing else, below one that is watched too."""
    folder = tmp_path / "outside" / "here"
    for file in (world / "configurations").rglob("*.yaml"):
        target = folder / file.relative_to(world)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), str(world), *sys.path])
    return folder


def everything(folder: Path) -> set[Path]:
    """Every file below a folder but those of runs."""
    return {path for path in folder.rglob("*") if "outputs" not in path.relative_to(folder).parts}


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong with how `words` are refused; empty where it is one line and exit code 2."""
    capsys.readouterr()
    try:
        code = main(words)
    except BaseException as error:
        return f"raised {type(error).__name__}: {str(error)[:300]}"
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if code != 2:
        return f"exit code {code}: {said[-300:]}"
    if len(lines) != 1 or said.splitlines()[-1] != lines[0] or "Traceback" in said:
        return f"not one line: {said[-600:]}"
    if not 20 < len(lines[0]) < LONGEST_LINE:
        return f"a line of {len(lines[0])} letters: {lines[0][:300]}"
    return ""


def refused(cases: list[tuple[str, Callable[[], list[str]]]], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The cases that are not refused as they should be, with what they do instead."""
    return {name: wrong for name, words in cases if (wrong := refusal(words(), capsys))}


def told(found: dict[str, str]) -> str:
    """What is wrong, a line a case."""
    return "".join(f"\n{name[:100]}: {wrong[:300]}" for name, wrong in found.items())


def not_started(checked: Any, run: Any) -> None:
    raise AssertionError("this command line is right")


WORDS = {
    "wrong types": lambda: malformed_words.wrong_types(6),
    "misspelt keys": lambda: malformed_words.misspelt(4),
    "not numbers": lambda: malformed_words.not_numbers(4),
    "swapped groups": malformed_words.swapped_groups,
}


@pytest.mark.parametrize("kind", WORDS)
def test_malformed_words_are_one_line_each(
    kind: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch_run, "perform", not_started)
    cases = list(WORDS[kind]())
    assert len(cases) >= 30
    before = everything(here.parent)
    found = refused([(name, lambda words=words: words) for name, words in cases], capsys)
    assert not found, told(found)
    assert everything(here.parent) == before
    assert not (here / "outputs").exists()


def test_strange_words_are_one_line_each(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch_run, "perform", not_started)
    found = refused([(word, lambda word=word: [*MINE, word]) for word in STRANGE], capsys)
    assert not found, told(found)


STRANGE = [
    "",
    " ",
    "=",
    "=3",
    "a",
    "+",
    "++=3",
    "~",
    "~nothing",
    "~dataset",
    "dataset=",
    "dataset=null",
    "dataset=../../etc/passwd",
    "dataset=/etc/passwd",
    "dataset=[a,b]",
    "dataset={a:1}",
    "dataset.count=",
    "dataset.count=1,2",
    "dataset.count=[",
    "dataset.count='",
    "dataset.count=${",
    "dataset.count=${nothing}",
    "dataset.count=${dataset.count}",
    "dataset.count.deeper=3",
    "dataset.count." + "a." * 2000 + "b=3",
    "dataset.count=" + "[" * 3000 + "]" * 3000,
    "dataset.count=" + "9" * 6000,
    "dataset.count=9e99999",
    "dataset.count=\x00",
    "dataset.count=\udcff",
    "dataset.count=ünïcode",
    "dataset._target_=os.system",
    "dataset._target_=builtins.eval",
    "dataset._target_=null",
    "algorithm._target_=my_project.dataset.MyDataset",
    "experiment._target_=my_project.dataset.MyDataset",
    "experiment.tasks=[run_task]",
    "experiment.tasks=[__init__]",
    "experiment.tasks=[_prepare]",
    "experiment.tasks=[test]",
    "experiment.tasks=training",
    "experiment.tasks=[1,2]",
    "experiment.tasks=[[training]]",
    "experiment.training.max_time=tomorrow",
    "experiment.training.max_time=99999999999999999999:00:00",
    "experiment.training.precision=17",
    "experiment.training.checkpointing.filename='../../{step}'",
    "experiment.training.checkpointing.filename='/tmp/{step}'",
    "experiment.training.checkpointing.filename='{step.__class__}'",
    "experiment.training.checkpointing.filename='{step:>999999999}'",
    "seed=-1",
    "seed=1.5",
    "seed=99999999999999999999",
    "seed=nan",
    "seeds=0",
    "debug=perhaps",
    "outputs=/proc/nowhere",
    "outputs=/dev/null",
    "outputs=configurations/dataset/my_dataset.yaml",
    "outputs=" + "x" * 5000,
    "outputs=a\x00b",
    "wandb=nothing",
    "wandb.mode=perhaps",
    "choices.dataset=mine",
    "hydra.run.dir=/tmp",
    "--multirun",
    "-x",
    "name=",
]


def test_malformed_yaml_is_one_line_each(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch_run, "perform", not_started)
    _in_their_own_folders(malformed_files.yaml_cases(), here, monkeypatch, capsys)


def test_malformed_checkpoints_are_one_line_each(
    world: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = next(world.glob("outputs/*/*/checkpoints/step-00000002"))
    _in_their_own_folders(malformed_files.checkpoint_cases(whole), here, monkeypatch, capsys)


def test_malformed_runs_are_one_line_each(
    world: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = next(world.glob("outputs/*/*/run.json")).parent
    _in_their_own_folders(malformed_files.run_cases(run), here, monkeypatch, capsys)


def _in_their_own_folders(
    cases: Iterator[tuple[str, malformed_files.Make]],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each case in a copy of `here`. Nothing may be written beside its run, and nothing run."""
    found = {}
    good = {path.relative_to(here): path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for number, (name, make) in enumerate(cases):
        folder = here.parent / str(number)
        for file, content in good.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        words = make(folder)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        before = everything(here.parent)
        wrong = refusal(words, capsys)
        more = {path for path in everything(here.parent) - before if "__pycache__" not in path.parts}
        if wrong or more:
            found[name] = wrong or f"wrote {sorted(more)}"
        for module in [module for module in sys.modules if module in ("my_broken", "my_syntax", "my_exit")]:
            del sys.modules[module]
    assert number >= 30
    assert not found, told(found)


def test_there_are_more_than_two_hundred_of_them(world: Path) -> None:
    run = next(world.glob("outputs/*/*/run.json")).parent
    files = [
        *malformed_files.yaml_cases(),
        *malformed_files.checkpoint_cases(run / "checkpoints" / "step-00000002"),
        *malformed_files.run_cases(run),
    ]
    words = [case for kind in WORDS.values() for case in kind()]
    assert len({name for name, _ in [*files, *words]}) + len(STRANGE) > 200
