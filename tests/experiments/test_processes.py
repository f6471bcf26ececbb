"""Two processes on the CPU are one with the same whole batches: losses, metrics, checkpoints; and files, lines and pictures come once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_forcing.checkpoints import format as native
from tests.experiments import processes, toy
from tests.experiments.test_resume import ROOT

pytestmark = pytest.mark.slow

MORE = processes.STEPS + 2
ALGORITHMS = ("planning", "video", "forecasting")
SPEEDS = ("training/steps_per_second", "validation/seconds_per_frame")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of every case."""
    folder = tmp_path_factory.mktemp("one")
    for case in ALGORITHMS:
        processes.train(folder, case, 1)
    processes.train(folder, "longer/planning", 1, steps=MORE)
    return folder


@pytest.fixture(scope="module")
def two(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two make of them; `said` is what they said. `resumed` is the one process's planner, gone on with by two."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(one / "planning", folder / "resumed" / "planning-fsdp", symlinks=True)
    cases = [*ALGORITHMS, "planning-fsdp", f"resumed/planning-fsdp+{MORE}", "poisoned", "stopped"]
    command = [sys.executable, "-m", "tests.experiments.processes", str(folder), "2", *cases]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr
    (folder / "said").write_text(ended.stderr)
    return folder


def logged(folder: Path) -> dict[tuple[int, str], float]:
    """Every number a run was told, by its step and name, speeds aside."""
    lines = toy.ToyRun(folder).lines()
    pairs = [((int(line["step"]), name), line[name]) for line in lines for name in line if "/" in name]
    assert len(pairs) == len(dict(pairs)), "nothing is logged twice"
    return {key: value for key, value in pairs if key[1] not in SPEEDS}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return native.load(folder / "checkpoints" / "latest").weights


@pytest.mark.parametrize("case", [*ALGORITHMS, "planning-fsdp"])
def test_losses_norms_and_validations_of_two_processes_are_those_of_one(one: Path, two: Path, case: str) -> None:
    expected = logged(one / case.partition("-")[0])
    assert {name for _, name in expected} > {"training/loss", "training/grad_norm"}
    assert any(name.startswith("validation/") for _, name in expected)
    assert logged(two / case) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", [*ALGORITHMS, "planning-fsdp"])
def test_the_checkpoint_of_two_processes_is_read_by_one_and_has_its_weights(one: Path, two: Path, case: str) -> None:
    expected, found = weights(one / case.partition("-")[0]), weights(two / case)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)  # a step moves them by 5e-4


def test_one_process_goes_on_with_what_two_began_and_two_with_what_one_began(one: Path, two: Path) -> None:
    expected = pytest.approx(logged(one / "longer" / "planning"), rel=1e-4)
    assert logged(two / "resumed" / "planning-fsdp") == expected
    for case in ("planning", "planning-fsdp"):
        shutil.copytree(two / case, two / "back" / case, symlinks=True)
        (two / "back" / case).rename(two / "back" / "planning")
        processes.train(two / "back", "planning", 1, resume=True, steps=MORE)
        assert logged(two / "back" / "planning") == expected
        shutil.rmtree(two / "back")


def test_lines_and_pictures_come_once(two: Path) -> None:
    said = (two / "said").read_text()
    for case in (*ALGORITHMS, "planning-fsdp"):
        assert said.count(f"trained to step {processes.STEPS}; checkpoint {two / case / 'checkpoints'}") == 1
    assert (two / "video" / "pictures.txt").read_text().split() == ["training_sheet"] * processes.STEPS
    for silent in ("Traceback", "Warning", "GLOBAL_RANK"):
        assert silent not in said


def test_a_loss_that_is_no_number_in_one_process_ends_both_with_its_line(two: Path) -> None:
    line = (two / "poisoned" / "ended.txt").read_text()
    assert line.startswith("UserError the loss became nan at step 2, in a batch of 2 samples")


def test_a_signal_to_one_process_stops_both_at_the_same_step(two: Path) -> None:
    assert (two / "stopped" / "ended.txt").read_text() == "Interrupted 143"
    latest = (two / "stopped" / "checkpoints" / "latest").resolve()
    assert json.loads((latest / "checkpoint.json").read_text())["step"] == 2
    assert (two / "said").read_text().count("interrupted at step 2; saved") == 1
