"""A loss or gradient that is not finite stops training in one line, and nothing is overwritten."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_forcing.checkpoints import latest, load
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.callbacks import FiniteGuard
from tests.experiments import toy


class Poisoned(toy.Toy):
    """Its loss becomes `value` at step `at`, or only its gradient does."""

    def __init__(self, at: int, value: float = math.nan, *, gradient_only: bool = False) -> None:
        super().__init__()
        self.at, self.value, self.gradient_only = at, value, gradient_only

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_step + 1 != self.at:
            return loss
        if self.gradient_only:
            return loss + torch.sqrt(0.0 * loss)  # finite, with an infinite slope
        return loss * self.value


def stopped(folder: Path, module: toy.Toy, **options: Any) -> tuple[str, Any]:
    experiment = toy.experiment(folder, toy.options(**options), module=module)
    with pytest.raises(UserError) as caught:
        experiment.run_task("training")
    assert "\n" not in str(caught.value)
    return str(caught.value), experiment


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_line_names_the_step_the_samples_and_the_last_good_checkpoint(tmp_path: Path, value: float) -> None:
    message, _ = stopped(tmp_path, Poisoned(7, value))
    assert f"the loss became {value} at step 7, in a batch of 4 samples (dataset indices " in message
    assert f"the last good checkpoint is {tmp_path}/checkpoints/step-00000004" in message
    assert "nothing was overwritten" in message


def test_the_samples_named_are_those_of_the_batch(tmp_path: Path) -> None:
    module = Poisoned(7)
    message, _ = stopped(tmp_path, module)
    named = [int(word) for word in message.split("dataset indices ")[1].split(")")[0].split(", ")]
    data = toy.Samples(22).data[named]
    assert torch.allclose(module.seen[-1], data, atol=0.04), "not the samples of the last batch"
    assert not torch.allclose(module.seen[-2], data, atol=0.04)


def test_weights_are_those_of_the_step_before_and_no_checkpoint_changes(tmp_path: Path) -> None:
    _, experiment = stopped(tmp_path, Poisoned(7, gradient_only=True), every=6)
    assert all(torch.isfinite(value).all() for value in experiment.algorithm.state_dict().values())
    assert latest(tmp_path) == tmp_path / "checkpoints" / "step-00000006"
    saved = load(tmp_path / "checkpoints" / "step-00000006").weights
    now = experiment.algorithm.state_dict()
    assert all(torch.equal(saved[key], now[key]) for key in now)


def test_a_gradient_that_is_not_finite_is_told_from_a_loss(tmp_path: Path) -> None:
    assert "the gradient norm became" in stopped(tmp_path, Poisoned(3, gradient_only=True))[0]


def test_before_the_first_checkpoint_the_line_advises_a_lower_learning_rate(tmp_path: Path) -> None:
    assert "there is no checkpoint yet; try a lower learning rate" in stopped(tmp_path, Poisoned(2))[0]


def test_not_even_saving_on_exceptions_saves_after_it(tmp_path: Path) -> None:
    stopped(tmp_path, Poisoned(7), save_on_exception=True)
    assert latest(tmp_path) == tmp_path / "checkpoints" / "step-00000004"


def test_a_run_that_was_stopped_can_be_resumed_from_its_last_good_checkpoint(tmp_path: Path) -> None:
    stopped(tmp_path, Poisoned(7))
    toy.experiment(tmp_path, resume=tmp_path).run_task("training")
    toy.experiment(tmp_path / "b").run_task("training")
    assert toy.ToyRun(tmp_path).losses() == toy.ToyRun(tmp_path / "b").losses()


def test_numbers_that_are_looked_at_late_still_name_the_step_where_it_began() -> None:
    guard = FiniteGuard(indices=lambda: [1, 2], last_checkpoint=lambda: None, every_n_steps=100)
    for step, loss in enumerate([1.0, math.inf, math.nan], start=1):
        guard._pending.append(("loss", step, [step] * 20, torch.tensor(loss)))
    with pytest.raises(UserError, match=r"became inf at step 2, in a batch of 20 samples \(dataset indices 2, .*, …\)"):
        guard.check()
    guard.check()
