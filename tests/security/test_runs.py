"""A run's folder from elsewhere: it runs no code, nothing outside it is written, deleted or shown, and it spoils only itself."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch import fetch
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.compose import as_yaml, check_targets, compose, compose_on, resolved
from diffusion_forcing.tracking.page import comparison_page, run_page
from diffusion_forcing.tracking.records import read_run, read_runs
from diffusion_forcing.tracking.run import Run
from diffusion_forcing.tracking.wandb import WandbOptions
from tests.launch.conftest import MINE
from tests.security import fuzz
from tests.tracking.test_page import Reader

SECRET = "hunter2 is the password"
STRANGE: tuple[Any, ...] = (
    *(*fuzz.STRANGE, 10**400, 5e-324, "javascript:alert(1)", "\x1b]0;x\x07", "\ud800", "x" * 10_000, ["\x1b"]),
    *("0001-01-01T00:00:00", "9999-12-31T23:59:59+00:00", "2026-11-26", "${oc.env:HOME}", "${algorithm}", "<script>"),
)


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious.csv").write_text(SECRET)
    return tmp_path / "outputs"


def make(outputs: Path, name: str = "good") -> Run:
    run = Run.create(outputs, name, command=["main.py", "a=b"])
    run.config("choices: {}\n")
    for step in range(5):
        run.log(step, {"training/loss": 1 / (step + 1)})
    run.summary({"x": 1.0, "x_stderr": 0.1})
    run.image("i", np.zeros((4, 4, 3), np.uint8))
    run.table("t", [{"a": 1}])
    run.finish()
    return run


def edit(run: Run, file: str = "run.json", **values: Any) -> None:
    path = run.folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def everything(folder: Path) -> dict[str, bytes]:
    """What lies in `folder` outside of its `outputs`."""
    files = (path for path in folder.rglob("*") if path.is_file() and "outputs" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ------------------------------------------------------------------------------------------------------- code in a run


def only_run(project: Path) -> Path:
    (file,) = project.glob("outputs/*/*/run.json")
    return file.parent


TARGETS: dict[str, Callable[[Path], str]] = {
    "a module in the run": lambda folder: ".".join([*folder.parts[-3:], "evil", "X"]),
    "an installed module": lambda folder: "antigravity.X",
    "a module in the working directory": lambda folder: "evil.X",
    "one that begins like ours": lambda folder: "diffusion_forcing_evil.X",
    "no module": lambda folder: "",
    "no text": lambda folder: "[1]",
}


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        *((kind, "dataset") for kind in TARGETS),
        *(("a module in the run", part) for part in ("algorithm", "experiment", "tracking")),
    ],
)
def test_a_saved_class_is_not_imported_unless_it_is_named_here(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    section: str,
) -> None:
    assert main([*MINE, "+name=s"]) == 0
    folder = only_run(project)
    for place in (folder / "evil.py", project / "evil.py", project / "diffusion_forcing_evil.py"):
        place.write_text("import pathlib\npathlib.Path('PWNED').touch()\nclass X: pass\n")
    saved = compose_on((folder / "config.yaml").read_text(), [])
    target = TARGETS[kind](folder)
    if section == "tracking":
        saved[section] = {"evil": {"_target_": target}}
    else:
        saved[section]["_target_"] = target
    (folder / "config.yaml").write_text(as_yaml(saved))
    capsys.readouterr()
    assert main([f"resume={folder}"]) == 2
    assert "_target_" in capsys.readouterr().err
    assert not (project / "PWNED").exists() and "antigravity" not in sys.modules


def test_a_folder_of_configurations_in_the_run_is_not_the_users(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([*MINE, "+name=s"]) == 0
    folder = only_run(project)
    shutil.copytree(project / "configurations", folder / "configurations")
    monkeypatch.chdir(folder)
    assert main(["resume=."]) == 2
    assert "dataset._target_ is my_parts.Data" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["seed=1"], ["cluster.follow=false"]])
def test_a_saved_cluster_is_ignored(project: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert main([*MINE, "+name=s"]) == 0
    folder = only_run(project)
    program = project / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor last; do :; done; sh "$last"; echo 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    saved = compose_on((folder / "config.yaml").read_text(), [])
    saved["cluster"] = {"launch_template": f"touch {project}/PWNED", "follow": False}
    (folder / "config.yaml").write_text(as_yaml(saved))
    assert main([f"resume={folder}", *words]) == 2  # no checkpoint, or no template
    assert not (project / "PWNED").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch PWNED']",
        "choices: !!python/name:os.system",
        "choices: {}\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "choices: {a: ${a}}\na: ${b}\nb: ${a}\n",
        "choices: 5",
        "choices: {tracking: 5}\nwandb: 7",
        "[" * 1000,
        "\x00",
        "choices: {}\n" + "a: 1\n" * 400_000,
    ],
)
def test_a_saved_configuration_is_only_read(outputs: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    run = make(outputs)
    (run.folder / "config.yaml").write_text(text)
    assert main([f"resume={run.id}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (outputs.parent / "PWNED").exists()


# ------------------------------------------------------------------------------------------- words that would be paths


@pytest.mark.parametrize("identity", ["x/../../../../precious", "..", "/etc", "a\nb", "", 5, None, ["a"], "x" * 100])
def test_an_id_is_never_a_path(outputs: Path, identity: Any) -> None:
    run = make(outputs)
    before = everything(outputs.parent)
    edit(run, id=identity)
    with pytest.raises(UserError, match="damaged"):
        Run.open(run.folder)
    assert read_run(run.folder) is None and main(["runs", "rm", str(run.folder), "--yes"]) == 2
    assert everything(outputs.parent) == before


@pytest.mark.parametrize("started", ["../../esc/x", "/esc/xx", "../../../../../../tmp/esc", "..........", 5, None])
def test_a_start_time_of_a_run_from_wandb_is_never_a_path(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, started: Any
) -> None:
    source = downloaded(outputs, {"id": "abcd1234", "name": "../n", "started": started})
    monkeypatch.setattr(fetch, "fetch_checkpoint", lambda *words: source)
    with pytest.raises(UserError, match="cannot be resumed"):
        fetch.fetch_run("abcd1234", outputs, WandbOptions())
    assert not outputs.exists()


def test_of_a_run_from_wandb_only_the_known_files_are_taken(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = downloaded(outputs, {"id": "abcd1234", "name": "../n", "started": "2026-11-26T10:00:00"})
    for name in ("evil.py", "slurm/job.sh", "configurations/dataset/x.yaml", ".metrics.jsonl.lock"):
        (source / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "run" / name).write_text("x")
        (source / Path(name).name).write_text("x")
    (source / "run" / "metrics.jsonl").symlink_to(outputs.parent / "precious.csv")
    monkeypatch.setattr(fetch, "fetch_checkpoint", lambda *words: source)
    folder = fetch.fetch_run("abcd1234", outputs, WandbOptions())
    assert folder == outputs / "2026-11-26" / "10-00-00-n"
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "pictures", "run.json", "config.yaml"}
    (checkpoint,) = (path for path in (folder / "checkpoints").iterdir() if not path.is_symlink())
    assert {path.name for path in checkpoint.iterdir()} <= {"checkpoint.json", "model.safetensors", "README.md"}


def test_a_run_from_wandb_that_cannot_be_written_leaves_no_folder(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = downloaded(outputs, {"id": "abcd1234", "name": "n", "started": "2026-11-26T10:00:00"})
    outputs.mkdir()
    before = everything(outputs.parent)
    monkeypatch.setattr(fetch, "fetch_checkpoint", lambda *words: source)
    monkeypatch.setattr(fetch.shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        fetch.fetch_run("abcd1234", outputs, WandbOptions())
    assert everything(outputs.parent) == before


def downloaded(outputs: Path, facts: dict[str, Any]) -> Path:
    """A checkpoint with the files of its run, as from W&B."""
    source = outputs.parent / "downloaded"
    shutil.copytree(Path(__file__).resolve().parents[2] / "pretrained" / "maze2d_umaze_x", source)
    (source / "run").mkdir()
    (source / "run" / "config.yaml").write_text("choices: {}\n")
    (source / "run" / "run.json").write_text(json.dumps(facts))
    return source


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "run.json", "config.yaml", "checkpoints", "pictures", "tables", "slurm", "wandb"]
)
@pytest.mark.parametrize("target", ["precious.csv", "folder", "nowhere"])
def test_a_run_with_a_link_is_not_resumed_and_nothing_is_written_through_it(
    outputs: Path, name: str, target: str
) -> None:
    (outputs.parent / "folder").mkdir()
    (outputs.parent / "folder" / ".x.999999999-0123abcd.tmp").write_text("kept")
    run = make(outputs)
    before = everything(outputs.parent)
    path = run.folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(outputs.parent / target)
    with pytest.raises(UserError):
        Run.open(run.folder)
    assert main(["runs"]) == main(["runs", "ls"]) == 0
    assert everything(outputs.parent) == before
    assert SECRET not in (outputs / "index.html").read_text()


def test_latest_is_followed_within_the_run_only(outputs: Path) -> None:
    from diffusion_forcing.checkpoints.places import latest

    run, theirs = make(outputs), outputs.parent / "theirs"
    shutil.copytree(Path(__file__).resolve().parents[2] / "pretrained" / "maze2d_umaze_x", theirs)
    (run.checkpoints / "latest").symlink_to(theirs)
    (run.checkpoints / "step-00000009").symlink_to(theirs)
    assert latest(run.folder) is None


# -------------------------------------------------------------------------------------------------- pages and terminal

MEDIA = {
    "an absolute path": {"file": "/etc/passwd"},
    "a path that climbs": {"file": "../../../../precious.csv"},
    "a link": {"file": "link.csv"},
    "a link, as an image": {"kind": "image", "file": "link.png"},
    "another kind": {"kind": "page", "file": "link.csv"},
    "another suffix": {"kind": "image", "file": "media.json"},
    "no text": {"file": ["x"]},
    "a poster that climbs": {"kind": "video", "file": "v.mp4", "poster": "../../../../precious.csv"},
}


@pytest.mark.parametrize("kind", MEDIA)
def test_a_page_shows_files_of_its_run_only(outputs: Path, kind: str) -> None:
    run = make(outputs)
    (run.pictures / "v.mp4").write_bytes(b"film")
    for folder in (run.pictures, run.folder / "tables"):
        for name in ("link.csv", "link.png"):
            (folder / name).symlink_to(outputs.parent / "precious.csv")
    edit(run, "pictures/media.json", evil={"kind": "table", "name": "n", "caption": "c", **MEDIA[kind]})
    Run.open(run.folder).finish()
    assert main(["runs"]) == 0
    for text in ((run.folder / "index.html").read_text(), (outputs / "index.html").read_text()):
        assert SECRET not in text and "root:x" not in text and "precious" not in text and "passwd" not in text


@pytest.mark.parametrize("day", ["javascript:alert(1)", "data:text", "<b>", "a b?c#d%41"])
def test_a_folders_name_is_never_a_live_link(outputs: Path, day: str) -> None:
    make(outputs).folder.parent.rename(outputs / day)
    (run,) = read_runs(outputs)
    for tag, attributes in Reader(comparison_page(outputs, [run], [run])).tags:
        for key in ("href", "src"):
            assert ":" not in (attributes.get(key) or "") and "?" not in (attributes.get(key) or ""), tag


def test_an_svg_is_shown_but_never_opened_by_itself(outputs: Path) -> None:
    run = make(outputs)
    path = outputs.parent / "a.svg"
    path.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    run.image("drawing", path)
    run.finish()
    assert main(["runs"]) == 0
    for text in ((run.folder / "index.html").read_text(), (outputs / "index.html").read_text()):
        links = [attributes["href"] for tag, attributes in Reader(text).tags if tag == "a"]
        assert links and not [link for link in links if str(link).endswith(".svg")]
        assert "script-src" not in text and "default-src 'none'" in text


ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\x1bP\r\u202e"


def test_escape_sequences_in_a_run_never_reach_the_terminal(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(outputs)
    edit(run, name=ESCAPES, status=ESCAPES, command=[ESCAPES], started=ESCAPES)
    edit(run, "metrics.json", **{ESCAPES: 1.0, "text": ESCAPES})
    with (run.folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 9, ESCAPES: 1.0}) + "\n")
    (run.checkpoints / ESCAPES).mkdir()
    (run.checkpoints / ESCAPES / "checkpoint.json").write_text("{}")
    for words in (
        ["ls"],
        ["show", run.id],
        [],
        ["best", "text", "lowest"],
        ["best", ESCAPES, "lowest"],
        ["rm", run.id, "--yes"],
    ):
        main(["runs", *words, f"outputs={outputs}"])
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set(ESCAPES) - set("\r]0;titleP[2J31m")


# ----------------------------------------------------------------------------------------------------------------- fuzz


def damaged(value: Any, drawn: random.Random) -> Any:
    """`value`, a JSON value, with one of its parts replaced by a strange one."""
    if isinstance(value, dict) and value and drawn.random() < 0.9:
        changed, key = copy.copy(value), drawn.choice(list(value))
        changed[key] = damaged(value[key], drawn)
        if drawn.random() < 0.2:
            changed[str(drawn.choice(STRANGE))] = changed.pop(key)
        return changed
    if isinstance(value, list) and value and drawn.random() < 0.7:
        at = drawn.randrange(len(value))
        return [*value[:at], damaged(value[at], drawn), *value[at + 1 :]]
    return drawn.choice(STRANGE)


def broken(data: bytes, drawn: random.Random) -> bytes:
    """`data` cut, repeated, or with bytes changed."""
    at = drawn.randrange(len(data) + 1)
    noise = drawn.randbytes(drawn.randrange(1, 8))
    return drawn.choice(
        [data[:at], data[:at] + noise + data[at + len(noise) :], data[:at] + data, data[:at] + noise + data[at:]]
    )


@pytest.mark.parametrize("file", ["run.json", "metrics.json", "pictures/media.json", "metrics.jsonl", "tables/t.csv"])
def test_a_damaged_run_spoils_only_itself(outputs: Path, file: str) -> None:
    good, bad = make(outputs), make(outputs, "bad")
    data = (bad.folder / file).read_bytes()
    drawn = random.Random(file)
    for _ in range(40):
        changed = broken(data, drawn)
        if file.endswith("json") and drawn.random() < 0.7:
            changed = json.dumps(damaged(json.loads(data), drawn)).encode()
        elif file.endswith("jsonl") and drawn.random() < 0.7:
            lines = [damaged(json.loads(line), drawn) for line in data.splitlines()]
            changed = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        (bad.folder / file).write_bytes(changed)
        found = read_runs(outputs)
        assert good.id in [run.id for run in found] and len(found) <= 2
        for run in found:
            assert len(run_page(run)) < 200_000
        assert good.id in comparison_page(outputs, found, found)


def test_a_damaged_configuration_is_read_or_refused_in_one_line() -> None:
    count = 40
    words = ["dataset=ts_load", "algorithm=df_prediction_small", "experiment=exp_prediction"]
    text = as_yaml(compose(words))
    plain = resolved(compose(words))
    drawn = random.Random(count)
    refused = read = 0
    for _ in range(count):
        changed = broken(text.encode(), drawn).decode("utf-8", "replace")
        if drawn.random() < 0.6:
            changed = json.dumps(damaged(plain, drawn))
        try:
            config = resolved(compose_on(changed, drawn.choice([[], ["seed=3"], ["tracking=[tensorboard]"]])))
            check_targets(config, (), own=True)
        except UserError as mistake:
            refused += "\n" not in str(mistake)
        else:
            read += 1
    assert refused + read == count and refused and read
