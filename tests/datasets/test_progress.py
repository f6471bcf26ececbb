"""The progress bar: lines for a log, a bar for a terminal, nothing when nothing is wanted."""

from __future__ import annotations

import io

import pytest

from diffusion_forcing.datasets import progress
from diffusion_forcing.datasets.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_at_the_end_and_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress_bar("generating umaze", total=1000, done=200) as bar:
        for _ in range(4):
            clock[0] += 6.0
            bar.advance(200)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "generating umaze: 600 of 1,000 steps, 33/s, 12 s left",
        "generating umaze: 1,000 of 1,000 steps, 33/s, 0 s left",
    ]


def test_an_unknown_size_gives_no_time_left_and_no_line_per_block(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("file", total=0, unit="bytes") as bar:
        for _ in range(5):
            bar.advance(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("generating umaze", total=10) as bar:
        bar.advance(10)
    assert "generating umaze" in screen.getvalue() and "steps/s" in screen.getvalue() and "10/10" in screen.getvalue()


def test_nothing_is_said_when_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("x", total=10, show=False) as bar:
        bar.advance(10)
    assert capsys.readouterr().err == ""
