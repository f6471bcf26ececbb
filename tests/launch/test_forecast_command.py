"""`diffusion-forcing forecast FILE`: the command line it stands for, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.commands import forecast
from diffusion_forcing.launch.compose import compose


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "a=b.csv", "my sales' 2024.csv"):
        Path(name).touch()


def test_it_stands_for_a_command_line() -> None:
    words = forecast(["my sales' 2024.csv", "--horizon", "14", "outputs=elsewhere"])
    config = compose([word for word in words if not word.startswith("load=")])
    assert config.dataset.path == "my sales' 2024.csv"
    assert (config.dataset.prediction_length, config.outputs) == (14, "elsewhere")
    assert list(config.experiment.tasks) == ["forecast"]
    assert "load=universal" in words


def test_a_file_may_have_an_equal_sign() -> None:
    assert "dataset.path='a=b.csv'" in forecast(["a=b.csv", "--horizon", "3"])


def test_minutes_are_trained_first() -> None:
    config = compose([w for w in forecast(["a.csv", "--horizon", "3", "--minutes", "90.5"]) if "load" not in w])
    assert list(config.experiment.tasks) == ["training", "forecast"]
    assert config.experiment.training.max_time == "00:01:30:30"
    assert "experiment.training.max_time=04:04:00:00" in forecast(["a.csv", "--horizon", "3", "--minutes", "6000"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "takes FILE, got 0"),
        (["a.csv"], "--horizon is missing"),
        (["nowhere.csv", "--horizon", "3"], "nowhere.csv is not a file"),
        (["a.csv", "--horizon", "many"], "invalid int value: 'many'"),
        (["a.csv", "--horizon", "0"], "--horizon.*0"),
        (["a.csv", "--horizon", "3", "--minutes", "-1"], "--minutes is -1"),
        (["a.csv", "--horizon", "3", "--minutes", "nan"], "--minutes is nan"),
        (["a.csv", "b.csv", "--horizon", "3"], "takes FILE, got 2"),
    ],
)
def test_what_it_refuses_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        forecast(words)
