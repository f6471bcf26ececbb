"""`diffusion-forcing runs sync ID …`: pass a run on to W&B afterwards, or what W&B lacks of it; with --follow while another machine trains it.

Any run can be passed on, one that was tracked locally too: its folder has everything. `wandb.entity=` and `wandb.project=` say where.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from omegaconf import OmegaConf

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.compose import compose_on, resolved
from diffusion_forcing.launch.options import build_options
from diffusion_forcing.tracking.records import RunRecord
from diffusion_forcing.tracking.wandb import EXTRA, WandbOptions, installed, mirror_command, mirror_environment, prepare


def sync(runs: Sequence[RunRecord], words: Sequence[str], *, follow: bool = False) -> None:
    """Pass on each of `runs`, one after the other. `words`: wandb.KEY=VALUE. UserError if W&B does not have all of each then."""
    if not runs:
        raise UserError("runs sync takes the ids of runs; runs ls lists them")
    strange = [word for word in words if not word.startswith("wandb.")]
    if strange:
        raise UserError(f"runs sync takes wandb.KEY=VALUE beside the ids, got '{strange[0]}'")
    if not installed():
        raise UserError(f"runs sync needs wandb: {EXTRA}")
    for run in runs:
        if run.status == "running" and not follow:
            raise UserError(
                f"run {run.id} is running; runs sync takes one that has ended, or --follow one of another machine"
            )
        saved = run.folder / "config.yaml"
        if not saved.is_file():
            raise UserError(f"run {run.id} has no config.yaml: it is none of an experiment's")
        # mode last: whatever the run was tracked with, this is for W&B
        config = compose_on(saved.read_text("utf-8"), ["tracking=[wandb]", *words, "wandb.mode=online"])
        options = build_options(WandbOptions, OmegaConf.to_container(config["wandb"]), "wandb")
        prepare(run.folder, options, resolved(config))
        command = mirror_command(run.folder)
        done = subprocess.run(
            [*command, "--follow"] if follow else command,
            env=mirror_environment(),
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise UserError(
                f"W&B does not have all of run {run.id}; the lines above say why, and {run.folder}/wandb/mirror.log"
            )
