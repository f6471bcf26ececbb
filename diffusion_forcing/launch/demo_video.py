"""`make demo-video`: films a few mazes never trained on, and rolls the shipped world model out of their first frames with their actions.

It is the ordinary experiment; the line it prints last is a command one may type behind `python -m main`.
"""

from __future__ import annotations

import sys
import time

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, keep_freed_memory
from diffusion_forcing.launch.report import say
from diffusion_forcing.launch.run import plan, start
from diffusion_forcing.tracking.run import NullRun, Run

CHECKPOINT = "labmaze64"
CLIPS = 4
PREDICTED = 48
"""Frames rolled out of each clip."""


def words() -> list[str]:
    """The command line. The window and the context are the checkpoint's; clips are as long as context and prediction together."""
    chosen = ["dataset=video_labmaze", f"load={CHECKPOINT}", "experiment.tasks=[test]"]
    algorithm = plan(chosen).options["algorithm"]
    f = algorithm.frame_stack
    length = -(-(algorithm.context_frames + PREDICTED) // f) * f
    return [
        *chosen,
        "+name=demo_video",
        f"dataset.n_frames={length}",
        f"algorithm.n_frames={algorithm.n_frames}",
        "algorithm.metrics=[]",
        "dataset.save_dir=data/labmaze_demo",
        "dataset.num_episodes=0",
        "dataset.num_validation_episodes=0",
        f"dataset.num_test_episodes={CLIPS}",
        f"experiment.films={CLIPS}",
        f"experiment.test.batch_size={CLIPS}",
        "experiment.test.limit_batch=1",
        "experiment.shuffled_actions=False",
    ]


def main() -> int:
    """The demo, a user's mistake as one line. Returns the exit code."""
    try:
        demo()
    except UserError as mistake:
        print(f"error: {' '.join(str(mistake).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def demo() -> Run | NullRun:
    """Film, roll out, print what came of it, and return the run."""
    began = time.perf_counter()
    keep_freed_memory()
    command = words()
    checked = plan(command)
    checked.classes["dataset"](
        checked.options["dataset"]
    ).generate()  # a missing simulator is found before a run is made
    run = start(checked)
    for line in (
        f"page      {run.folder / 'index.html'}  (open it in a browser)",
        f"films     {run.pictures / 'test_clip_1.mp4'} … {CLIPS}: prediction beside truth",
        f"sheet     {run.pictures / 'test_sheet.png'}",
        f"again     python -m main {' '.join(command)}",
        f"          {time.perf_counter() - began:.0f} s in all",
    ):
        say(line)
    return run


if __name__ == "__main__":
    sys.exit(main())
