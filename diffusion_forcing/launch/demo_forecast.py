"""`make demo-forecast`: forecasts the last days of 96 real load profiles, and the day behind them, with the shipped forecaster.

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

CHECKPOINT = "ts_load_small"
WORDS = ["dataset=ts_load", f"load={CHECKPOINT}", "experiment.tasks=[test,forecast]", "+name=demo_forecast"]


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
    """Forecast, score, and return the run."""
    began = time.perf_counter()
    keep_freed_memory()
    run = start(plan(WORDS))
    for line in (
        f"page      {run.folder / 'index.html'}  (open it in a browser)",
        f"pictures  {run.pictures / 'test_fans.png'}: six of the series; test_sum.png: the sum of all; forecast_fans.png: the day behind the data",
        f"again     python -m main {' '.join(WORDS)}",
        f"          {time.perf_counter() - began:.0f} s in all",
    ):
        say(line)
    return run


if __name__ == "__main__":
    sys.exit(main())
