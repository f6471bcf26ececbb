"""What the terminal says about a finished run: where its results are."""

from __future__ import annotations

from pathlib import Path

from diffusion_forcing.terminal import say
from diffusion_forcing.tracking.run import NullRun, Run

_RESULTS = (
    ("index.html", "the run's page: open it in a browser"),
    ("pictures", "images and videos"),
    ("metrics.json", "the results as numbers"),
    ("checkpoints", "checkpoints, for load= and resume="),
)


def report(run: Run | NullRun) -> None:
    """Where the run's results are; nothing for a run that keeps nothing."""
    if isinstance(run, NullRun):
        return
    say(f"run {run.id} is done: {_near(run.folder)}")
    for name, meaning in _RESULTS:
        path = run.folder / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            say(f"  {name:<13} {meaning}")


def _near(path: Path) -> str:
    """The path as seen from where the user stands."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
