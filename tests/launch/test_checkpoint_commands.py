"""`diffusion-forcing inspect` and `convert`: what they say, what they write, what they refuse."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from diffusion_forcing.checkpoints import load
from diffusion_forcing.launch.cli import main

RELEASED = Path(__file__).parents[1] / "parity" / "data"


class Spy:
    """A pickle that writes a file when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("planning", "released checkpoint of the attention line (v1.5): planning (frame_stack 10), "),
        ("video", "released checkpoint of the attention line (v1.5): video (frame_stack 1), "),
    ],
)
def test_a_released_checkpoint_is_told_converted_and_the_same_afterwards(
    task: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = RELEASED / f"ckpt_{task}.ckpt", tmp_path / "ours"
    assert main(["inspect", str(source)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(said)
    assert "data_mean" in told
    assert main(["convert", str(source), str(target)]) == 0
    assert f"load={target}" in capsys.readouterr().out
    theirs, ours = load(source), load(target)
    assert ours.step == theirs.step == 3
    assert all(torch.equal(ours.weights[key], theirs.weights[key]) for key in theirs.weights)
    assert all(torch.equal(ours.statistics[key], theirs.statistics[key]) for key in theirs.statistics)
    assert main(["inspect", str(target)]) == 0
    assert capsys.readouterr().out.startswith(said.removeprefix("released "))


def test_one_of_ours_is_inspected_by_its_name_and_not_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, networks in (("maze2d_medium_x", "attention"), ("ts_load_small", "recurrent")):
        assert main(["inspect", name]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"checkpoint of {networks} networks: ") and "mean" in printed
        assert max(map(len, printed.splitlines())) < 200
    assert main(["convert", "pretrained/maze2d_medium_x", str(tmp_path / "out")]) == 2
    assert "is in our format already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "convert"])
@pytest.mark.parametrize("bad", ["text", "pickle", "truncated", "empty", "missing", "foreign"])
def test_a_bad_file_is_one_line_and_nothing_in_it_runs(
    command: str, bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, ran = tmp_path / "bad.ckpt", tmp_path / "ran"
    if bad == "text":
        file.write_text("these are not the weights you are looking for\n" * 9)
    elif bad == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": Spy(ran)}))
    elif bad == "truncated":
        file.write_bytes((RELEASED / "ckpt_planning.ckpt").read_bytes()[:4000])
    elif bad == "empty":
        file.touch()
    elif bad == "foreign":
        torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}}, file)
    words = [command, str(file), *([str(tmp_path / "out")] if command == "convert" else [])]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "said"), [(["inspect"], "takes PATH, got 0"), (["convert", "a"], "got 1")])
def test_the_wrong_number_of_paths_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err
