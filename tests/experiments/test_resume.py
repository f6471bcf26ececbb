"""Exact resuming: whatever stops a run, going on gives the losses it would have had, bit for bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from diffusion_forcing.errors import UserError
from tests.experiments import toy

ROOT = Path(__file__).parents[2]


class Crash(Exception):
    """Stands for whatever ends a process."""


class Crashing(toy.Toy):
    """Stops at the beginning of step `crash`, before its loss is known."""

    def __init__(self, crash: int) -> None:
        super().__init__()
        self.crash = crash

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.global_step + 1 == self.crash:
            raise Crash
        return super().training_step(batch, batch_idx)


def losses_through_a_crash(folder: Path, crash: int, **options: Any) -> dict[int, float]:
    stopped = toy.experiment(folder, toy.options(**options), module=Crashing(crash))
    with pytest.raises(Crash):
        stopped.run_task("training")
    resumed = toy.experiment(folder, toy.options(**options), resume=folder)
    resumed.run_task("training")
    losses: dict[int, float] = resumed.run.losses()
    return losses


def losses_in_one_go(folder: Path, **options: Any) -> dict[int, float]:
    run = toy.experiment(folder, toy.options(**options))
    run.run_task("training")
    losses: dict[int, float] = run.run.losses()
    return losses


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="in the middle of an epoch"),
        pytest.param({"every": 5, "crash": 6}, id="at the end of an epoch"),
        pytest.param({"every": 5, "crash": 14}, id="several steps after a checkpoint, in the next epoch"),
        pytest.param({"accumulate": 2}, id="between accumulated batches, whose number does not divide the epoch"),
        pytest.param({"accumulate": 3, "validate": 3}, id="accumulating, with validation"),
        pytest.param({"validate": 4}, id="with a validation at the checkpoint"),
        pytest.param({"validate_epochs": 1, "every": 5}, id="with a validation after each epoch"),
        pytest.param({"max_steps": -1, "max_epochs": 4}, id="counting epochs"),
        pytest.param(
            {"max_steps": -1, "max_epochs": 4, "every": 5, "crash": 12}, id="counting epochs, at the end of one"
        ),
        pytest.param({"log_every": 3}, id="with losses averaged over a window that the checkpoint cuts"),
        pytest.param({"clip": 0.5, "shuffle": False}, id="clipped and unshuffled"),
        pytest.param({"every": None, "every_n_epochs": 1}, id="with checkpoints by epochs"),
    ],
)
def test_losses_after_a_crash_are_those_of_a_run_in_one_go(tmp_path: Path, options: dict[str, Any]) -> None:
    options = dict(options)
    crash = options.pop("crash", 11)
    assert losses_through_a_crash(tmp_path / "a", crash, **options) == losses_in_one_go(tmp_path / "b", **options)


def test_losses_after_a_crash_are_the_same_with_worker_processes(tmp_path: Path) -> None:
    through = losses_through_a_crash(tmp_path / "a", 8, workers=2, max_steps=10)
    assert through == losses_in_one_go(tmp_path / "b", max_steps=10)


def test_validations_are_the_same_too_and_take_no_random_numbers_from_training(tmp_path: Path) -> None:
    def validations(folder: Path) -> list[tuple[float, float]]:
        return [
            (line["step"], line["validation/loss"]) for line in toy.ToyRun(folder).lines() if "validation/loss" in line
        ]

    losses_through_a_crash(tmp_path / "a", 11, validate=2)
    with_validation = losses_in_one_go(tmp_path / "b", validate=2)
    assert len(validations(tmp_path / "b")) == 8
    assert validations(tmp_path / "a") == validations(tmp_path / "b")
    assert losses_in_one_go(tmp_path / "c") == with_validation


def test_a_finished_run_goes_on_where_it_ended_when_given_more_steps(tmp_path: Path) -> None:
    toy.experiment(tmp_path / "a", toy.options(max_steps=7)).run_task("training")
    toy.experiment(tmp_path / "a", toy.options(max_steps=17), resume=tmp_path / "a").run_task("training")
    assert toy.ToyRun(tmp_path / "a").losses() == losses_in_one_go(tmp_path / "b")


def test_a_finished_run_resumed_with_the_same_limit_has_nothing_to_do_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = losses_in_one_go(tmp_path, max_steps=5)
    toy.experiment(tmp_path, toy.options(max_steps=5), resume=tmp_path).run_task("training")
    assert toy.ToyRun(tmp_path).losses() == before
    assert "nothing left to train" in capsys.readouterr().err


def test_an_earlier_checkpoint_can_be_resumed_from_and_later_lines_are_cut(tmp_path: Path) -> None:
    whole = losses_in_one_go(tmp_path, save_top_k=-1)
    earlier = tmp_path / "checkpoints" / "step-00000004"
    toy.experiment(tmp_path, toy.options(max_steps=9, save_top_k=-1), resume=earlier).run_task("training")
    assert toy.ToyRun(tmp_path).losses() == {step: loss for step, loss in whole.items() if step <= 9}
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step-00000009"


def test_the_tasks_after_a_resumed_training_do_not_ask_for_the_checkpoint_that_it_has_replaced(tmp_path: Path) -> None:
    toy.experiment(tmp_path, toy.options(max_steps=4, save_top_k=1)).run_task("training")
    resumed = (tmp_path / "checkpoints" / "latest").resolve()
    experiment = toy.experiment(tmp_path, toy.options(max_steps=9, save_top_k=1), resume=resumed)
    experiment.run_task("training")
    assert not resumed.exists()
    experiment.run_task("validation")
    assert experiment.step == 9


def toy_process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.experiments.toy", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_run_killed_by_sigkill_continues_with_the_losses_of_a_run_in_one_go(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    killed = toy_process(str(folder), "accumulate=2", "kill=11")
    assert killed.returncode == -signal.SIGKILL
    assert max(toy.ToyRun(folder).losses()) > 8, "the kill came before the lines that are to be cut"
    resumed = toy_process(str(folder), "accumulate=2", "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming run toytoyto at step 8" in resumed.stderr
    assert toy.ToyRun(folder).losses() == losses_in_one_go(tmp_path / "b", accumulate=2)


def test_a_line_of_metrics_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    stopped = toy.experiment(tmp_path, module=Crashing(11))
    with pytest.raises(Crash):
        stopped.run_task("training")
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 1')
    toy.experiment(tmp_path, resume=tmp_path).run_task("training")
    assert list(toy.ToyRun(tmp_path).losses()) == list(range(1, 18))


def test_another_batch_size_cannot_be_resumed(tmp_path: Path) -> None:
    losses_in_one_go(tmp_path, max_steps=4)
    other = toy.experiment(tmp_path, toy.options(batch_size=2), resume=tmp_path)
    with pytest.raises(UserError, match="cannot resume with batch_size=2: the run was trained with batch_size=4"):
        other.run_task("training")


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has no checkpoint"):
        toy.experiment(tmp_path, resume=tmp_path).run_task("training")


def test_a_checkpoint_of_another_network_cannot_be_resumed_in_one_line(tmp_path: Path) -> None:
    losses_in_one_go(tmp_path, max_steps=4)

    class Wider(toy.Toy):
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Linear(9, 4))

    module: LightningModule = Wider()
    with pytest.raises(UserError, match="does not fit Wider: 'network") as caught:
        toy.experiment(tmp_path, module=module, resume=tmp_path).run_task("training")
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_refused_before_the_log_is_cut(tmp_path: Path) -> None:
    losses_in_one_go(tmp_path, save_top_k=-1)
    lines = toy.ToyRun(tmp_path).lines()
    damaged = tmp_path / "checkpoints" / "step-00000004"
    (damaged / "training.pt").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        toy.experiment(tmp_path, resume=damaged).run_task("training")
    assert toy.ToyRun(tmp_path).lines() == lines


def test_the_resumed_state_is_all_in_the_checkpoints_folder(tmp_path: Path) -> None:
    losses_in_one_go(tmp_path / "a", max_steps=8)
    (tmp_path / "a" / "checkpoints").rename(tmp_path / "moved")
    again = toy.experiment(tmp_path / "b", resume=tmp_path / "moved" / "step-00000008")
    again.run_task("training")
    rest = {step: loss for step, loss in losses_in_one_go(tmp_path / "c").items() if step > 8}
    assert again.run.losses() == rest
    assert json.loads((tmp_path / "moved" / "step-00000008" / "checkpoint.json").read_text())["step"] == 8
