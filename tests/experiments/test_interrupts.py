"""Ctrl-C and SIGTERM: saved at the next step boundary, a line how to go on, and the exit code of the signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_forcing.experiments.processes import Interrupted, Interrupts
from tests.experiments import toy
from tests.experiments.test_resume import ROOT, losses_in_one_go


class Signalled(toy.Toy):
    """Receives a signal in the middle of a training or validation step."""

    def __init__(self, number: int, *, at: int = 7, in_validation: bool = False) -> None:
        super().__init__()
        self.number, self.at, self.in_validation = number, at, in_validation

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if not self.in_validation and self.global_step + 1 == self.at:
            os.kill(os.getpid(), self.number)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        if self.in_validation and self.global_step == self.at:
            os.kill(os.getpid(), self.number)
        super().validation_step(batch, batch_idx)


def interrupted(folder: Path, module: toy.Toy, **options: Any) -> tuple[Any, Interrupted]:
    experiment = toy.experiment(folder, toy.options(**options), module=module)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        experiment.run_task("training")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    return experiment, caught.value


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_step_is_finished_and_saved_and_a_line_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    experiment, error = interrupted(tmp_path, Signalled(number))
    assert error.code == code
    assert experiment.run.status == "interrupted"
    said = capsys.readouterr().err.splitlines()
    saved = tmp_path / "checkpoints" / "step-00000007"
    assert said[-1] == f"interrupted at step 7; saved {saved}; go on with resume={tmp_path}"


def test_a_run_in_the_usual_place_is_resumed_by_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupted(tmp_path / "outputs" / "day" / "run", Signalled(signal.SIGINT))
    assert capsys.readouterr().err.endswith("go on with resume=toytoyto\n")


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}])
def test_going_on_after_an_interrupt_gives_the_losses_of_a_run_in_one_go(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    interrupted(tmp_path / "a", Signalled(signal.SIGINT), **options)
    toy.experiment(tmp_path / "a", toy.options(**options), resume=tmp_path / "a").run_task("training")
    assert toy.ToyRun(tmp_path / "a").losses() == losses_in_one_go(tmp_path / "b", **options)


def test_a_validation_does_not_have_to_end_first(tmp_path: Path) -> None:
    _, error = interrupted(tmp_path, Signalled(signal.SIGINT, at=6, in_validation=True), validate=3)
    assert error.code == 130
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step-00000006"
    assert not [line for line in toy.ToyRun(tmp_path).lines() if line["step"] == 6 and "validation/loss" in line]


def test_an_interrupt_before_the_first_step_leaves_a_checkpoint_of_that_step(tmp_path: Path) -> None:
    interrupted(tmp_path, Signalled(signal.SIGINT, at=1))
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step-00000001"


def test_a_second_signal_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts()
    interrupts.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.received == signal.SIGINT
    with pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == 130
    assert signal.getsignal(signal.SIGINT) == before
    assert "again to stop at once" in capsys.readouterr().err


@pytest.mark.slow
def test_the_process_ends_with_the_signals_code_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.experiments.toy", str(tmp_path), "interrupt=7"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert f"go on with resume={tmp_path}" in ended.stderr
