"""The guides say what is so: their code runs, their commands compose, their links lead somewhere, the example works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_forcing.checkpoints import shipped
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch import commands as sub_commands
from diffusion_forcing.launch import run as launch_run
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.fetch import is_run_id
from diffusion_forcing.tracking.run import Run
from tests.datasets.robot.makers import save_ours, save_released
from tests.docs.blocks import (
    PAGES,
    ROOT,
    anchors,
    blocks,
    commands,
    links,
    make_targets,
    page_name,
    programs,
    runnable,
    shown_files,
)

THEIRS = ROOT / "tests" / "datasets" / "robot" / "data" / "lerobot_images"
SHIPPED = {f"maze2d_{maze}_x" for maze in ("umaze", "medium", "large")}
EXTENDING = [page for page in PAGES if page.name.startswith("extend")]
"""Pages whose files are one project."""


def write_shown(page: Path, folder: Path) -> None:
    """The files that a page shows whole, and those of the pages it makes one project with, written into `folder`."""
    for other in EXTENDING if page in EXTENDING else [page]:
        for file, text in shown_files(other).items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that looks like the checkout and is not: what a block writes stays out of the repository."""
    for shared in ("tests", "pretrained", "examples", "docs"):
        if (ROOT / shared).exists():
            (tmp_path / shared).symlink_to(ROOT / shared)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_modules(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that a page shows can be imported; afterwards they are forgotten."""
    monkeypatch.setattr(sys, "path", [str(elsewhere), *sys.path])
    before = set(sys.modules)
    yield
    for module in set(sys.modules) - before:
        if module.startswith("my_"):
            del sys.modules[module]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=page_name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, elsewhere: Path, own_modules: None) -> None:
    write_shown(page, elsewhere)
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in runnable(page):
        # blank lines in front, so that a traceback names the page's own line
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, namespace)


@pytest.mark.parametrize(
    ("page", "command", "error"), [(page, *command) for page in PAGES for command in commands(page)], ids=page_name
)
def test_a_command_of_a_page_composes_or_says_what_the_page_says(
    page: Path, command: str, error: str, elsewhere: Path, own_modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in shlex.split(command) if not word.startswith("resume=")]
    if words[0] in ("inspect", "convert", "new"):
        assert main(words) == 0
        return
    if words[0] == "serve-policy":  # all but the serving
        monkeypatch.setattr(sub_commands, "_serve", lambda checked, options: None)
        assert main(words) == 0
        return
    if words[0] == "forecast":
        Path(words[1]).touch()
        words = sub_commands.forecast(words[1:])
    if words[0] == "play":
        pytest.importorskip("fastapi")
        monkeypatch.setattr("diffusion_forcing.serve.play.server.serve", lambda app, options, started: None)
        assert main(words) == 0
        return
    if words[0] == "convert-robot":  # from a small set of the layout that the source's name says
        kinds = {
            "released": lambda folder: save_released(folder, 2),
            "theirs": lambda folder: shutil.copytree(THEIRS, folder),
        }
        make = kinds.get(Path(words[1]).name, lambda folder: save_ours(folder, {"training": 2, "validation": 1}))
        make(Path(words[1]))
        assert main(words) == 0
        return
    if words[0] == "runs":
        for identity in ("z9sd6gqm", "uk387aoh"):  # the page's runs
            run = Run.create(Path("outputs"), "toy")
            run.summary({"planning/success_rate": 0.5})
            run.finish()
            facts = json.loads((run.folder / "run.json").read_text())
            (run.folder / "run.json").write_text(json.dumps({**facts, "id": identity}))
        assert main([*words, *(["--yes"] if words[1:2] == ["rm"] else [])]) == 0
        return
    for word in words:
        key, _, value = word.partition("=")
        assert "…" not in word, "a command is written whole, or its block is marked"
        if key == "load" and not value.isupper():
            known = value.removeprefix("pretrained/") in {*SHIPPED, *shipped()} or value.startswith("outputs/")
            assert known or is_run_id(value), f"{value} is no checkpoint"
    monkeypatch.setattr(launch_run, "_local_checkpoint", lambda spec, outputs: Path(spec))
    write_shown(page, elsewhere)
    if error:
        with pytest.raises(UserError) as refusal:
            launch_run.plan(words)
        assert str(refusal.value) == error
    else:
        launch_run.plan(words)


@pytest.mark.parametrize(
    ("page", "target"), [(page, target) for page in PAGES for target in links(page)], ids=page_name
)
def test_a_link_leads_to_a_file(page: Path, target: str) -> None:
    file, _, heading = target.partition("#")
    path = page.parent / file if file else page
    assert path.exists()
    assert not heading or heading in anchors(path)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_make_target_that_a_page_names_exists(page: Path) -> None:
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert make_targets(page) <= known


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_program_that_a_page_runs_exists(page: Path) -> None:
    assert [file for file in programs(page) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=page_name)
def test_every_block_is_run_or_composed_or_a_file_or_says_why_not(page: Path) -> None:
    checked = re.compile(r"^(?:\$ )?(?:python|diffusion-forcing|make|pip|pytest) ", re.MULTILINE)
    for block in blocks(page):
        if block.mark == "not run":
            assert len(block.value.split()) > 1
        elif block.mark != "file" and block.language != "python":
            assert checked.search(block.text), f"line {block.line} is checked by nothing; mark it with its reason"


def test_the_pages_that_readers_are_sent_to_are_there() -> None:
    wanted = {
        "index.md",
        "method.md",
        "results.md",
        "concepts.md",
        "planning.md",
        "checkpoints.md",
        "extending.md",
        "log.md",
    } | {f"extend_{part}.md" for part in ("algorithm", "dataset", "experiment")}
    assert wanted <= {page.name for page in PAGES}


def test_the_marks_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n```python\na = 1\n```\n<!-- not run: needs a GPU -->\n```python\nb\n```\n<!-- file: my_x.py -->\n\n```python\nc\n```\n"
        "```\npython -m main a=b \\\n    c=d  # why\n$ diffusion-forcing e=f\nerror: no e\nls\n```\n[one](x.md#part) [two](https://y.z)\n"
    )
    assert [(block.text, block.line) for block in runnable(page)] == [("a = 1\n", 3)]
    assert shown_files(page) == {"my_x.py": "c\n"}
    assert [(shlex.split(command), error) for command, error in commands(page)] == [
        (["a=b", "c=d"], ""),
        (["e=f"], "no e"),
    ]
    assert links(page) == ["x.md#part"]


# -------------------------------------------------------------------------------------------------------------- extending


@pytest.mark.slow
def test_the_project_of_the_guides_to_extending_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files it shows, written where it says, and its own commands, really run."""
    write_shown(EXTENDING[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    every = [command for page in EXTENDING for command, error in commands(page) if not error]
    own = [command for command in every if "dataset=my_" in command]
    assert len(own) == 2
    for command in own:
        done = subprocess.run(
            [sys.executable, "-m", "diffusion_forcing", *shlex.split(command)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/*-waves/metrics.json"))
    assert 0 < results["forecast/rmse"] < 2


# -------------------------------------------------------------------------------------------------------------- the example


@pytest.mark.slow
def test_the_example_runs_with_three_steps_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "minimal.py"), "--steps", "3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for matrix in ("autoregressive", "pyramid", "full_sequence"):
        assert re.search(rf"{matrix} +mean error \d", done.stdout)


def test_the_example_needs_torch_alone_and_is_short() -> None:
    text = (ROOT / "examples" / "minimal.py").read_text()
    assert set(re.findall(r"^(?:from|import) ([\w.]+)", text, re.MULTILINE)) == {"argparse", "math", "torch"}
    assert len(text.splitlines()) <= 130


@pytest.mark.slow
def test_lightnings_own_trainer_trains_our_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "lightning_trainer.py"), "200"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.rpartition("mean:")[2]) < 0.15  # untrained: 0.5 and more


@pytest.mark.slow
def test_the_method_and_the_networks_need_torch_alone() -> None:
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, diffusion_forcing.diffusion, diffusion_forcing.networks; "
            "print([name for name in ('lightning', 'hydra', 'omegaconf', 'mujoco', 'matplotlib') if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert shown.stdout.strip() == "[]", shown.stderr
