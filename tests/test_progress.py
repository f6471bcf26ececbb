"""The progress bar: lines in a log, a bar on a terminal, nothing where nothing is wanted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from diffusion_forcing import progress
from diffusion_forcing.progress import Bar


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Bar("generating umaze", total=1000, done=200) as bar:
        for _ in range(4):
            clock[0] += 6.0
            bar.advance(200)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "generating umaze: 600 of 1,000 steps, 33 steps/s, 12 s left",
        "generating umaze: 1,000 of 1,000 steps, 33 steps/s, 0 s left",
    ]


def test_a_note_and_a_description_can_be_changed(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("training", total=None, line_seconds=0.0) as bar:
        bar.update(1, note="loss 0.5")
        bar.update(2, description="validating")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "training: 1 steps, loss 0.5" and second.startswith("validating: 2 steps, loss 0.5")


def test_an_unknown_size_gives_no_line_per_block(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("file", total=0, unit="bytes") as bar:
        for _ in range(5):
            bar.advance(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_rate() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Bar("generating umaze", total=10, console=console) as bar:
        bar.advance(4)
        bar.advance(6)
    assert all(text in screen.getvalue() for text in ("generating umaze", "10/10", "steps/s"))


def test_show_false_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("x", total=10, show=False) as bar:
        bar.advance(10)
    assert capsys.readouterr() == ("", "")
