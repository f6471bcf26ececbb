"""On the machine that submitted: passes a job's run on to W&B while it trains where there is no internet.

    python -m diffusion_forcing.launch.syncer FOLDER JOB COMMAND …

The run's folder, which both machines see, has everything; so the job itself knows of no W&B, and COMMAND (`runs sync ID --follow`) reads
the folder here as it grows. It ends when the run does; after a requeue the run goes on, and so does this, until the job is over.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_forcing.launch.cluster import FOLDER
from diffusion_forcing.launch.follow import OVER, state_of
from diffusion_forcing.tracking.files import read_json, write_json

LOG, FOLLOW = "sync.log", "--follow"
LOOK_SECONDS = 15.0
"""How often to look whether the run goes on; what it logs is passed on as it comes."""
RETRIES = 3
"""How often the last pass is tried."""


def wanted(config: DictConfig) -> bool:
    """Whether the run is one for W&B, online: by its mode, or as one of its trackers."""
    mode = OmegaConf.select(config, "wandb.mode")
    return mode == "online" or (mode is None and "wandb" in (OmegaConf.select(config, "tracking") or {}))


def start(run: Path, run_id: str, job: str) -> int:
    """Start it in the background, for longer than the terminal lives; the process's number."""
    log = run / FOLDER / LOG
    command = [
        sys.executable,
        "-m",
        "diffusion_forcing",
        "runs",
        "sync",
        run_id,
        FOLLOW,
        f"outputs={run.parents[1]}",
    ]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_forcing.launch.syncer", str(run), job, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    return process.pid


def keep_passing_on(run: Path, job: str, command: Sequence[str], *, wait: Callable[[float], None] = time.sleep) -> bool:
    """Run `command` whenever the run in `run` is running, until the job is over, and a last time then. Whether that went well."""
    while state_of(job) not in OVER:
        if read_json(run / "run.json", {}).get("status") == "running":
            subprocess.run(command, check=False)
        wait(LOOK_SECONDS)
    facts = read_json(run / "run.json", {})
    if facts.get("status") == "running":  # its processes were killed, and could not say so
        write_json(run / "run.json", {**facts, "status": "failed"})
    command = [word for word in command if word != FOLLOW]
    for attempt in range(RETRIES):
        if subprocess.run(command, check=False).returncode == 0:
            return True
        if attempt < RETRIES - 1:
            wait(LOOK_SECONDS)
    return False


def main(words: Sequence[str]) -> int:
    folder, job, *command = words
    return 0 if keep_passing_on(Path(folder), job, command) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
