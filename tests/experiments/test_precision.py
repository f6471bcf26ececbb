"""Every precision that options allow trains and validates every algorithm; data, schedules and metrics keep float32 or more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from diffusion_forcing.checkpoints import load
from diffusion_forcing.diffusion import build_schedule
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.devices import TruePrecision
from diffusion_forcing.experiments.options import (
    CheckpointingOptions,
    DataOptions,
    ExperimentOptions,
    OptimOptions,
    TrainingOptions,
    ValidationOptions,
)
from diffusion_forcing.networks.attention import LevelEmbedding, WaveMLP
from tests.algorithms import small, test_forecasting, test_planning_rnn, test_video, test_video_rnn
from tests.algorithms.robot import test_algorithm as test_robot
from tests.experiments import toy
from tests.experiments.processes import Data

CASES: dict[str, tuple[Callable[[], LightningModule], Callable[[int], Any]]] = {
    "planning": (lambda: small.planning(ema_decay=0.9), small.batch),
    "planning_rnn": (test_planning_rnn.planning, small.batch),
    "video": (lambda: test_video.video(ema_decay=0.9), test_video.batch),
    "video_rnn": (test_video_rnn.build, lambda size: test_video.batch(size, 8)),
    "forecasting": (lambda: test_forecasting.build(network="transformer"), test_forecasting.batch),
    "forecasting_rnn": (test_forecasting.build, test_forecasting.batch),
    "robot": (test_robot.robot, lambda size: test_robot.batch(size=size)),
    "robot_tiled": (lambda: test_robot.robot("attention", "tiled"), lambda size: test_robot.batch(size=size)),
    "robot_rnn": (lambda: test_robot.robot("rnn", "vector"), lambda size: test_robot.batch(size=size)),
}


def trained(folder: Path, case: str, precision: str | int, clip: float = 0) -> tuple[BaseExperiment, dict[str, float]]:
    algorithm, batch = CASES[case]
    options = ExperimentOptions(
        training=TrainingOptions(
            precision=precision,
            batch_size=4,
            max_steps=2,
            log_every_n_steps=1,
            optim=OptimOptions(gradient_clip_val=clip),
            data=DataOptions(num_workers=0),
            checkpointing=CheckpointingOptions(every_n_train_steps=None),
        ),
        validation=ValidationOptions(precision=precision, batch_size=4, val_every_n_step=1, limit_batch=1),
    )
    experiment = BaseExperiment(options, dataset=Data(batch), algorithm=algorithm(), run=toy.ToyRun(folder), seed=3)
    experiment.run_task("training")
    experiment.run_task("validation")
    return experiment, {name: value for line in toy.ToyRun(folder).lines() for name, value in line.items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_every_precision_trains_and_leaves_a_module_of_32_bits(tmp_path: Path, case: str, precision: str) -> None:
    _, expected = trained(tmp_path / "32", case, 32)
    experiment, found = trained(tmp_path / "other", case, precision)
    assert found.keys() == expected.keys()
    assert all(math.isfinite(value) for name, value in found.items() if math.isfinite(expected[name]))
    if precision != "64-true":  # which draws other random numbers
        assert found["training/loss"] == pytest.approx(expected["training/loss"], rel=0.1)
    state = experiment.algorithm.state_dict().values()
    assert {value.dtype for value in state if value.is_floating_point()} == {torch.float32}


class Looking(toy.Toy):
    """Notes the types of what it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 1000))
        self.average = torch.nn.Linear(1, 1).requires_grad_(False)
        self.types: set[torch.dtype] = set()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.types = {batch.dtype, self.table.dtype, self.average.weight.dtype}
        assert {weight.dtype for weight in self.network.parameters() if weight.ndim > 1} == {self.expected}
        return loss


@pytest.mark.parametrize(
    ("precision", "weights", "rest"),
    [("bf16-true", torch.bfloat16, torch.float32), ("64-true", torch.float64, torch.float64)],
)
def test_16_bits_are_for_trained_weights_and_64_for_everything(
    tmp_path: Path, precision: str, weights: torch.dtype, rest: torch.dtype
) -> None:
    module = Looking()
    module.expected = weights  # type: ignore[assignment]
    options = replace(
        toy.options(max_steps=2), training=replace(toy.options(max_steps=2).training, precision=precision)
    )
    toy.experiment(tmp_path, options, module=module).run_task("training")
    assert module.types == {rest}
    saved = load(tmp_path / "checkpoints" / "latest", training=True).training
    assert saved is not None
    assert saved["state_dict"]["network.0.weight"].dtype == weights
    assert module.table.dtype == module.network[0].weight.dtype == torch.float32


class Products(toy.Toy):
    """Notes how precise float32 products are while it trains and validates."""

    products: set[str]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.products = {torch.get_float32_matmul_precision()}
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("name", ["high", "medium", "highest"])
def test_the_precision_of_float32_products_is_an_option_of_the_tasks_alone(tmp_path: Path, name: Any) -> None:
    module = Products()
    before = torch.get_float32_matmul_precision()
    toy.experiment(tmp_path, replace(toy.options(max_steps=1), matmul_precision=name), module=module).run_task(
        "training"
    )
    assert module.products == {name}
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(UserError, match=r"experiment\.matmul_precision 'tf32'.*highest, high, medium"):
        ExperimentOptions(matmul_precision="tf32")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_resuming_is_exact_in_other_precisions_too(tmp_path: Path, precision: str) -> None:
    def run(folder: Path, steps: int, **more: Any) -> dict[int, float]:
        options = toy.options(max_steps=steps)
        options = replace(options, training=replace(options.training, precision=precision))
        toy.experiment(folder, options, **more).run_task("training")
        return toy.ToyRun(folder).losses()

    run(tmp_path / "a", 5)
    assert run(tmp_path / "a", 9, resume=tmp_path / "a") == run(tmp_path / "b", 9)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_thousand_noise_levels_stay_distinct_in_16_bits(precision: str) -> None:
    schedule = build_schedule("cosine", 1000)
    module = torch.nn.ModuleList([LevelEmbedding(64, 64, 64), WaveMLP(64, 64), schedule])
    plugin = TruePrecision(precision)
    plugin.convert_module(module)
    levels, seen = torch.arange(1000), []
    for embedding, first in ((module[0], module[0][1].linear_1), (module[1], module[1][1])):
        first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        with plugin.forward_context():
            embedding(levels)
    for waves in seen:
        assert len(waves.to(plugin.dtype).unique(dim=0)) == 1000
    assert schedule.alphas_cumprod.dtype == torch.float32
    assert len(schedule.alphas_cumprod.unique()) == 1000


@pytest.mark.parametrize("precision", [32, "bf16-mixed"])
def test_a_fused_optimizer_clips_gradients_as_any_other(
    tmp_path: Path, precision: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU has it; a CPU can have it too."""
    plain, expected = trained(tmp_path / "plain", "planning", precision, clip=0.1)
    monkeypatch.setattr("diffusion_forcing.algorithms.base.FUSED_DEVICES", ("cpu",))
    fused, found = trained(tmp_path / "fused", "planning", precision, clip=0.1)
    assert found["training/loss"] == pytest.approx(expected["training/loss"], rel=1e-4)
    for one, other in zip(plain.algorithm.parameters(), fused.algorithm.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_scaled_gradients_are_unscaled_once_before_a_fused_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What precision=16-mixed does on a GPU."""
    weights = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr("diffusion_forcing.algorithms.base.FUSED_DEVICES", devices)
        torch.manual_seed(0)
        built = small.planning()
        optimizer, scaler = built.configure_optimizers()["optimizer"], torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in range(3):
            loss = sum((weight**2).sum() for weight in built.network.parameters())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(built.network.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.defaults["fused"] == (True if devices else None)
        weights.append(torch.cat([weight.detach().flatten() for weight in built.network.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-7)
