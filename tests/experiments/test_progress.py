"""Training's progress on a terminal and in a log."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from diffusion_forcing import progress
from diffusion_forcing.experiments.callbacks import TrainingProgress, total_steps


class Clock:
    """time.monotonic() under control."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def trainer(**changes: Any) -> Any:
    defaults = {"max_steps": 1000, "max_epochs": -1, "num_training_batches": 50, "accumulate_grad_batches": 1}
    state = {"global_step": 0, "is_global_zero": True, "early_stopping_callbacks": [], "callbacks": []}
    return SimpleNamespace(**(defaults | state | changes))


def shown(clock: Clock, *, terminal: bool, seconds: float, **state: Any) -> str:
    """What 8 steps a second show."""
    text = io.StringIO()
    bar = TrainingProgress(lambda: 0.1234567, console=Console(file=text, force_terminal=terminal, width=150))
    made, module = trainer(**state), None
    bar.on_train_start(made, module)  # type: ignore[arg-type]
    while made.global_step < 8 * seconds:
        made.global_step += 1
        clock.now += 1 / 8
        bar.on_train_batch_end(made, module, None, None, 0)  # type: ignore[arg-type]
    bar.on_train_end(made, module)  # type: ignore[arg-type]
    return text.getvalue()


def test_a_log_has_a_line_now_and_then_with_step_loss_and_rate(clock: Clock) -> None:
    lines = shown(clock, terminal=False, seconds=35).splitlines()
    assert 3 <= len(lines) <= 4
    assert all(word in lines[0] for word in ("training", "of 1,000", "loss 0.1235", "8 steps/s", "left"))


def test_a_terminal_has_a_bar_with_the_last_step(clock: Clock) -> None:
    text = shown(clock, terminal=True, seconds=5)
    assert "40/1000" in text and "loss 0.1235" in text


def test_other_processes_show_nothing(clock: Clock) -> None:
    assert shown(clock, terminal=False, seconds=35, is_global_zero=False) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1000),
        ({"max_steps": -1}, None),
        ({"max_steps": -1, "max_epochs": 3}, 150),
        ({"max_epochs": 3}, 150),
        ({"max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 4}, 39),
        ({"max_steps": -1, "max_epochs": 3, "num_training_batches": float("inf")}, None),
        ({"early_stopping_callbacks": ["stops at a plateau"]}, None),
    ],
)
def test_the_end_is_where_the_first_limit_is_unless_training_may_stop_early(
    changes: dict[str, Any], expected: int | None
) -> None:
    assert total_steps(trainer(**changes)) == expected
