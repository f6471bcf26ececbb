import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from diffusion_forcing.experiments import callbacks as progress
from diffusion_forcing.experiments.callbacks import ProgressBar, total_steps


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
    given = {"max_steps": 1000, "max_epochs": -1, "num_training_batches": 50, "accumulate_grad_batches": 1}
    return SimpleNamespace(**(given | {"global_step": 0, "is_global_zero": True} | changes))


def shown(clock: Clock, *, terminal: bool, seconds: float, steps_per_second: int = 8) -> str:
    text = io.StringIO()
    bar = ProgressBar(lambda: 0.1234567, console=Console(file=text, force_terminal=terminal, width=100))
    state = trainer()
    module: Any = None
    bar.on_train_start(state, module)
    while state.global_step < seconds * steps_per_second:
        state.global_step += 1
        clock.now += 1 / steps_per_second
        bar.on_train_batch_end(state, module, None, None, 0)
    bar.on_train_end(state, module)
    return text.getvalue()


def test_off_a_terminal_there_is_a_line_early_and_then_one_every_thirty_seconds(clock: Clock) -> None:
    lines = shown(clock, terminal=False, seconds=70).splitlines()
    assert len(lines) == 3
    assert lines[0] == "training step 40/1000 loss 0.1235 · 8 it/s · 02:00 left"


def test_on_a_terminal_the_bar_is_drawn_at_most_four_times_a_second(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(progress.Progress, "refresh", lambda self: drawn.append(clock.now))
    shown(clock, terminal=True, seconds=5, steps_per_second=128)
    assert 15 <= len(drawn) <= 5 * 4 + 3


def test_slow_steps_are_shown_as_seconds_a_step(clock: Clock) -> None:
    text = io.StringIO()
    bar = ProgressBar(lambda: 1.0, console=Console(file=text, width=100))
    state = trainer(max_steps=10)
    bar.on_train_start(state, None)  # type: ignore[arg-type]
    state.global_step, clock.now = 1, clock.now + 20
    bar.on_train_batch_end(state, None, None, None, 0)  # type: ignore[arg-type]
    assert "20 s/it · 03:00 left" in text.getvalue()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1000),
        ({"max_steps": -1}, None),
        ({"max_steps": -1, "max_epochs": 3}, 150),
        ({"max_epochs": 3}, 150),
        ({"max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 4}, 39),
        ({"max_steps": -1, "max_epochs": 3, "num_training_batches": float("inf")}, None),
    ],
)
def test_the_end_is_where_the_first_limit_is(changes: dict[str, Any], expected: int | None) -> None:
    assert total_steps(trainer(**changes)) == expected


def test_a_run_on_another_rank_shows_nothing(clock: Clock, tmp_path: Path) -> None:
    text = io.StringIO()
    bar = ProgressBar(lambda: 1.0, console=Console(file=text, width=100))
    state = trainer(is_global_zero=False)
    bar.on_train_start(state, None)  # type: ignore[arg-type]
    state.global_step, clock.now = 1, clock.now + 100
    bar.on_train_batch_end(state, None, None, None, 0)  # type: ignore[arg-type]
    assert text.getvalue() == ""
