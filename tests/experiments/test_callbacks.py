import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_forcing.experiments.callbacks import RunLogger, ValidationRandomness, gradient_norm, rewind
from tests.experiments import toy


def test_what_is_logged_for_one_step_becomes_one_line(tmp_path: Path) -> None:
    run = toy.ToyRun(tmp_path)
    logger = RunLogger(run)
    logger.note(1, {"training/loss": 0.5})
    logger.log_metrics({"training/x": 1.0, "training/loss": 9.0}, step=0)
    logger.note(2, {"training/loss": 0.25})
    logger.finalize("success")
    assert run.lines() == [
        {"step": 1, "training/loss": 0.5, "training/x": 1.0},
        {"step": 2, "training/loss": 0.25},
    ]


def test_a_training_has_a_line_every_so_many_steps_with_the_mean_loss_since(tmp_path: Path) -> None:
    toy.experiment(tmp_path / "a").run_task("training")
    toy.experiment(tmp_path / "b", toy.options(log_every=5)).run_task("training")
    each, means = toy.ToyRun(tmp_path / "a").losses(), toy.ToyRun(tmp_path / "b").losses()
    assert list(means) == [5, 10, 15]
    assert means[10] == pytest.approx(sum(each[step] for step in range(6, 11)) / 5)
    line = toy.ToyRun(tmp_path / "b").lines()[0]
    assert line.keys() >= {"training/lr", "training/grad_norm", "training/steps_per_second", "training/noise", "epoch"}


def test_the_learning_rate_logged_is_the_one_the_step_was_made_with(tmp_path: Path) -> None:
    toy.experiment(tmp_path).run_task("training")
    rates = {line["step"]: line["training/lr"] for line in toy.ToyRun(tmp_path).lines()}
    assert rates[3] == 0.05
    assert rates[4] == pytest.approx(0.05 * 0.9)


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([1, 2, 3, 4], [1, 2]),
        ([1, 2], [1, 2]),
        ([3], []),
        ([1, 3, 2], [1]),
        ([], []),
    ],
)
def test_rewinding_keeps_the_lines_up_to_the_step(tmp_path: Path, lines: list[int], left: list[int]) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in lines))
    rewind(log, 2)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == left


def test_a_log_that_is_open_for_appending_goes_on_at_the_cut(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    with log.open("a") as file:
        file.write('{"step": 1}\n{"step": 2}\n')
        file.flush()
        rewind(log, 1)
        file.write('{"step": 2, "again": true}\n')
    assert log.read_text() == '{"step": 1}\n{"step": 2, "again": true}\n'


def test_the_gradient_norm_is_that_of_all_gradients_together() -> None:
    layer: Any = torch.nn.Linear(2, 1)
    layer.weight.grad, layer.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert gradient_norm(torch.optim.SGD(layer.parameters())).item() == 5.0
    assert gradient_norm(torch.optim.SGD(torch.nn.Linear(1, 1).parameters())).item() == 0.0


def test_a_validation_that_failed_gives_its_random_numbers_back_to_nobody_later() -> None:
    left = ValidationRandomness(seed=5)
    left.on_validation_start(None, None)  # type: ignore[arg-type]
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    del left
    gc.collect()
    assert torch.equal(torch.rand(3), wanted)
