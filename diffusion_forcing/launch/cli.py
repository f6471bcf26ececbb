"""The entry of `python -m main`, `python -m diffusion_forcing` and the command `diffusion-forcing`.

Exit codes: 0 success, 2 a user's error (one `error:` line), 130 interrupted. An error of ours shows its traceback.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import traceback
from collections.abc import Sequence

from diffusion_forcing import __version__
from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.experiments.processes import is_main_process
from diffusion_forcing.launch.choices import choices_of, first_comment, group_names
from diffusion_forcing.terminal import forgiving_output, say, tell

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
SHORT_OPTION, MOST_OPTIONS = 48, 5
"""Characters and number of the options of a checkpoint that are printed."""
COMMANDS = ("inspect", "convert", "convert-robot", "push", "runs", "forecast", "play", "serve-policy", "new")
"""Sub-commands: functions of `commands` with these names; what one returns is the command line to run."""
_HELP = ("--help", "-h")
_CFG = ("--cfg", "-c")
_FLAGS = (*_HELP, "--version", *_CFG, "--resolve")

_USAGE = """diffusion-forcing {version}: sequence models in which every token has its own noise level

usage: python -m main [group=choice …] [key=value …]
       diffusion-forcing …                              the same, from any folder
       diffusion-forcing forecast FILE --horizon STEPS [--minutes N]   what comes after a CSV file, as a fan chart and a table
       diffusion-forcing play [--port N] [--host ADDRESS] [--no-browser]   a page to play with the shipped models
       diffusion-forcing new my_project                 write a project of your own: dataset, algorithm, experiment, tests
       diffusion-forcing inspect PATH                   describe a checkpoint: task, sizes, step, statistics
       diffusion-forcing convert IN.ckpt OUT            convert a released checkpoint to our format
       diffusion-forcing convert-robot SRC DST [--to ours|lerobot] [--allow-pickle] [--cameras A,B] [--resolution N]
                                                        convert robot demonstrations: ours, LeRobot v3.0, released
       diffusion-forcing push PATH hf://user/repo [--private]   upload a checkpoint and its card to the Hugging Face Hub
       diffusion-forcing runs [ID …]                    write a page of all runs, comparing the given ones
       diffusion-forcing runs ls | show ID | best METRIC lowest|highest | rm ID … [--yes]   [outputs=DIR]
       diffusion-forcing runs sync ID … [--follow] [wandb.KEY=VALUE]   upload a run to W&B
       diffusion-forcing serve-policy load=NAME [address=tcp://127.0.0.1:5555 cameras=sim|folder|v4l2|realsense]
       … --cfg [--resolve]                              print the composed configuration and exit
       … --version | --help

groups and their choices (a `configurations/` folder in the working directory comes first)
{groups}

common keys
  +name=NAME                              name of the run
  experiment.tasks=[training,validation]  tasks in order: training, validation, test, generate_dataset, your own methods
  load=PATH|RUN ID|NAME|hf://user/repo    start from a checkpoint; a shipped one by its name, as in load=maze2d_medium_goal
  resume=RUN ID                           continue a run: weights, optimiser, step, random state, log
  tracking=wandb|tensorboard|[wandb,tensorboard]   add trackers; wandb.mode=online|offline wandb.entity= wandb.project=
  seed=0   seeds=1   debug=True   outputs=outputs
  dataset.KEY=VALUE  algorithm.KEY=VALUE  experiment.KEY=VALUE   any key that --cfg prints; lists as [1,2]; ~KEY removes one

examples
  python -m main dataset=video_labmaze experiment.tasks=[generate_dataset] +name=data
  python -m main dataset=video_labmaze +name=labmaze
  python -m main dataset=video_labmaze load=RUN_ID experiment.tasks=[validation] +name=roll
  python -m main dataset=maze2d_medium dataset.action_mean=[] dataset.action_std=[] \\
      dataset.observation_mean=[3.5092521,3.4765592] dataset.observation_std=[1.3371079,1.52102] +name=maze2d_medium_x
  python -m main dataset=maze2d_medium load=maze2d_medium_goal experiment.tasks=[validation] +name=plan"""


@forgiving_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except UserError as mistake:
        if mistake.everywhere and not is_main_process():
            return 0
        if "debug=true" in [word.lower().lstrip("+") for word in words]:
            traceback.print_exc()
        tell(f"error: {mistake}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        tell("interrupted")
        return EXIT_INTERRUPTED
    except SystemExit as end:  # training was interrupted and has been saved
        if not is_main_process():
            return 0  # any other code would make the launcher kill the main process while it saves
        return end.code if isinstance(end.code, int) else 1


def usage() -> str:
    """The text of --help. Lists folders and reads first lines only."""
    groups = []
    for group in group_names():
        choices = choices_of(group)
        if choices:
            groups.append(f"  {group}=")
            width = max(map(len, choices))
            groups.extend(f"    {name:<{width}} {first_comment(file)}".rstrip() for name, file in choices.items())
    return _USAGE.format(version=__version__, groups="\n".join(groups))


def _dispatch(words: list[str]) -> int:
    if words and words[0] in COMMANDS and not set(_HELP) & set(words):
        from diffusion_forcing.launch import commands

        overrides = getattr(commands, words[0].replace("-", "_"))(words[1:])
        return 0 if overrides is None else _run(overrides)
    flags, overrides = _split(words)
    if set(_HELP) & set(flags):
        say(usage())
    elif "--version" in flags:
        say(f"diffusion-forcing {__version__}")
    elif set(_CFG) & set(flags):
        from omegaconf import OmegaConf

        from diffusion_forcing.launch.compose import as_yaml, compose, resolved

        config = compose(overrides)
        say(as_yaml(OmegaConf.create(resolved(config)) if "--resolve" in flags else config).rstrip())
    else:
        return _run(overrides)
    return 0


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Flags and overrides. Hydra's `--cfg job` is the same as `--cfg`."""
    flags: list[str] = []
    overrides: list[str] = []
    for word in words:
        if word in _FLAGS:
            flags.append(word)
        elif word.startswith("-"):
            near = did_you_mean(word, _FLAGS)
            raise UserError(f"unknown option '{word}'{near}; settings are key=value, --help lists them")
        elif not (word == "job" and flags and flags[-1] in _CFG):
            overrides.append(word)
    return flags, overrides


def _run(overrides: list[str]) -> int:
    gc.disable()  # importing creates many objects and little garbage: a tenth to a fifth of the time to start
    try:
        from diffusion_forcing.launch.run import plan, report, run_seeds, start

        checked = plan(overrides)
    except UserError as mistake:
        mistake.everywhere = True
        raise
    finally:
        gc.enable()
    keep_freed_memory()
    if checked.adopted and is_main_process():
        short = [option for option in checked.adopted if len(option) <= SHORT_OPTION][:MOST_OPTIONS]
        more = len(checked.adopted) - len(short)
        say(f"options of the checkpoint: {' '.join(short)}{f' and {more} more, see config.yaml' if more else ''}")
    if checked.cluster is not None:
        from diffusion_forcing.launch.slurm import submit

        return submit(checked, overrides)
    if checked.settings.seeds > 1:
        run_seeds(overrides, checked)
    else:
        report(start(checked))
    return 0


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory instead of returning it to the system. Returns whether it could be set.

    glibc maps and unmaps every tensor above 32 MB, page by page. Reusing memory saves a quarter to a half of the time of video networks on
    a CPU (docs/log.md); the process keeps the most it ever used. `MALLOC_…_` environment variables take precedence.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # constants of malloc.h
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20))
    return mallopt is not None and all(mallopt(name, value) for name, value in settings)
