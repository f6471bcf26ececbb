"""The three parts alone, then together through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.cli import main
from my_project.algorithm import MyAlgorithm, MyAlgorithmOptions
from my_project.dataset import MyDataset, MyDatasetOptions
from my_project.experiment import draw_pairs

ROOT = Path(__file__).resolve().parents[1]
MINE = ["dataset=my_dataset", "algorithm=my_algorithm", "experiment=my_experiment"]
SMALL = ["dataset.count=16", "experiment.training.batch_size=4", "experiment.training.max_steps=2"]


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in the project's folder, where its configurations/ are found, but write runs elsewhere."""
    monkeypatch.chdir(ROOT)
    return tmp_path / "outputs"


def test_the_dataset_is_the_same_every_time_and_validation_is_other_data() -> None:
    data = MyDataset(MyDatasetOptions(count=8))
    (x,) = data.training().tensors
    assert x.shape == (8, 8, 8)
    assert x.abs().max() <= 1
    assert torch.equal(x, data.training().tensors[0])
    assert not torch.equal(x[:2], data.validation().tensors[0])


def test_a_wave_of_one_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.tokens .* got 1"):
        MyDatasetOptions(tokens=1)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    algorithm = MyAlgorithm(MyAlgorithmOptions(tokens=4, samples=8, lr=3e-3))
    batch = list(MyDataset(MyDatasetOptions(count=64, tokens=4)).training().tensors)
    optimizer = algorithm.configure_optimizers()
    losses = []
    for _ in range(40):
        loss = algorithm.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_forecast_keeps_its_context() -> None:
    algorithm = MyAlgorithm(MyAlgorithmOptions(tokens=4, samples=8, sampling_timesteps=2))
    known = torch.randn(3, 2, 8)
    forecast = algorithm.forecast(known)
    assert forecast.shape == (3, 4, 8)
    assert torch.equal(forecast[:, :2], known)


def test_the_image_has_two_rows_per_wave() -> None:
    pixels = draw_pairs(-np.ones((3, 5), np.float32), np.ones((3, 5), np.float32), height=2)
    assert pixels.shape == (12, 10)
    assert (pixels[:2] == 0).all() and (pixels[2:4] == 255).all()


def test_the_command_line_trains_and_runs_the_task_and_resumes(outputs: Path) -> None:
    assert main([*MINE, *SMALL, f"outputs={outputs}", "experiment.tasks=[training,my_task]", "+name=toy"]) == 0
    folder = (outputs / "latest-run").resolve()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["my_task/rmse"] > 0
    assert (folder / "pictures" / "my_task.png").is_file()
    assert main([f"resume={folder}", "experiment.training.max_steps=3", "experiment.tasks=[training]"]) == 0
    assert (folder / "checkpoints" / "latest").resolve().name == "step-00000003"


def test_a_mistyped_key_is_one_line(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MINE, "dataset.token=3", f"outputs={outputs}"]) == 2
    assert capsys.readouterr().err == "error: unknown key dataset.token (did you mean 'dataset.tokens'?)\n"
    assert not outputs.exists()
