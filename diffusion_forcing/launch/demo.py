"""`make demo`: plans and plays mazes of three sizes with the shipped checkpoints, prints a table, and says where the pictures are.

It is the ordinary experiment, once a maze, writing into one run; each `WORDS` line is a command one may type behind `python -m main`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR
from diffusion_forcing.launch.report import say
from diffusion_forcing.launch.run import finishing, perform, plan
from diffusion_forcing.tracking.run import Run

MAZES = ("umaze", "medium", "large")
EPISODES = 4
"""Episodes a maze; start and goal are drawn at random."""


def words(maze: str) -> list[str]:
    """The command line that plays one maze."""
    return [
        "experiment=exp_planning",
        "algorithm=df_planning",
        f"dataset=maze2d_{maze}",
        f"load=maze2d_{maze}_x",
        "experiment.tasks=[validation]",
        f"experiment.episodes={EPISODES}",
        "algorithm.goal=random",
    ]


class Section:
    """One maze's share of the demo's run: the same methods, every name behind the maze's."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.id, self.folder, self.checkpoints, self.pictures = run.id, run.folder, run.checkpoints, run.pictures
        self.results: dict[str, Any] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(step, {f"{self.name}/{key}": value for key, value in metrics.items()})

    def summary(self, metrics: dict[str, Any]) -> None:
        self.results |= metrics
        self.run.summary({f"{self.name}/{key}": value for key, value in metrics.items()})

    def image(self, name: str, figure_or_path_or_array: Any, caption: str = "") -> None:
        self.run.image(f"{self.name}_{name}", figure_or_path_or_array, caption=f"{self.name}: {caption}")

    def video(self, name: str, frames: Any, fps: float = 20, caption: str = "") -> None:
        self.run.video(f"{self.name}_{name}", frames, fps=fps, caption=f"{self.name}: {caption}")

    def table(self, name: str, rows: Any, caption: str = "") -> None:
        self.run.table(f"{self.name}_{name}", rows, caption=f"{self.name}: {caption}")

    def config(self, text: str) -> None:
        """The demo's configuration is its three command lines, kept by the run."""

    def finish(self, status: str = "finished") -> None:
        """The demo ends its run itself."""


def main() -> int:
    """The demo, a user's mistake as one line. Returns the exit code."""
    try:
        demo(Console())
    except UserError as mistake:
        print(f"error: {' '.join(str(mistake).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def demo(console: Console) -> Run:
    """Play every maze, print what happened, and return the run."""
    began = time.perf_counter()
    plans = {maze: plan(words(maze)) for maze in MAZES}
    run = Run.create(Path("outputs"), "demo")
    run.config("".join(f"# python -m main {' '.join(words(maze))}\n" for maze in MAZES))
    sections = {maze: Section(run, maze) for maze in MAZES}
    with finishing(run):
        for maze, checked in plans.items():
            console.rule(f"{maze}: {EPISODES} mazes")
            perform(checked, sections[maze])
    console.print(_table({maze: section.results for maze, section in sections.items()}))
    for line in (
        f"page      {run.folder / 'index.html'}  (open it in a browser)",
        f"pictures  {run.pictures}",
        f"one size  python -m main {' '.join(words('medium'))}",
        f"          {time.perf_counter() - began:.0f} s in all",
    ):
        say(line)
    return run


def _table(results: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=f"{EPISODES * len(results)} mazes planned and played")
    for name in ("maze", "played", "solved", "steps to goal", "reward vs oracle", "seconds a plan"):
        table.add_column(name, justify="left" if name == "maze" else "right")
    for maze, result in results.items():
        played = result["planning/episodes"]
        oracle = result.get("planning/oracle_episode_reward")
        share = f"{result['planning/episode_reward'] / oracle:.0%}" if oracle else "–"
        table.add_row(
            maze,
            str(played),
            f"{result['planning/success_rate']:.0%}",
            f"{result['planning/first_reach']:.0f}",
            share,
            f"{result['planning/seconds_per_plan']:.2f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
