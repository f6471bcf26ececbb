"""The entry of `python -m main`, `python -m diffusion_forcing` and the command `diffusion-forcing`.

Exit codes: 0 done, 2 a user's mistake (one `error:` line), 130 interrupted. Anything else is our mistake and shows its traceback.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

from diffusion_forcing import __version__
from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.experiments.processes import is_main_process
from diffusion_forcing.launch.overrides import choices_of, first_comment, group_names

# No search for garbage while the libraries are imported: they make hundreds of thousands of objects and hardly any garbage.
#
# Starting a training spends most of its time importing PyTorch and Lightning; a sixth of that was Python's collector looking for cycles among
# what had just been imported (docs/log.md).


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Inside, cycles are not collected; outside it is as it was before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# Keep freed memory instead of handing it back to the system and asking for it again.
#
# Every tensor past 32 MB (glibc's limit) is mapped anew, page by page, and unmapped when it is freed; activations of video are that large and
# short-lived. With the settings here they come from memory that is already there: on the CPU a forward of 16 frames took a quarter less time
# (docs/log.md). The process then keeps the most it ever used. Only on Linux with glibc; `MALLOC_…_` variables in the environment win.

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of mallopt(3)
_KEEP = 2**31 - 1
_GROW = 64 * 2**20


def keep_freed_memory() -> bool:
    """Set it for this process; whether it could be."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEEP), (_TOP_PAD, _GROW)))


# The text of --help: commands, groups with their choices, examples. Reads folder listings and first lines only.

_HEAD = """diffusion-forcing {version}: sequence models in which every token has its own noise level

usage: python -m main [group=choice …] [key=value …]
       diffusion-forcing …                              the same, from anywhere
       diffusion-forcing new my_project                 a project of your own: dataset, algorithm, experiment, tests
       diffusion-forcing inspect PATH                   what a checkpoint is: line, task, sizes, step, statistics
       diffusion-forcing convert IN.ckpt OUT            a released checkpoint, of either line, in our format
       diffusion-forcing convert-robot SRC DST [--to ours|lerobot] [--allow-pickle] [--cameras A,B] [--resolution N]
                                                        a robot's demonstrations: ours, LeRobot's v3.0, the authors' released ones
       diffusion-forcing runs [ID …]                    a page of all runs, curves and films of some side by side
       diffusion-forcing runs ls | show ID | best METRIC lowest|highest | rm ID … [--yes]   [outputs=DIR]
       diffusion-forcing runs sync ID … [--follow] [wandb.KEY=VALUE]   send W&B what it lacks of a run
       diffusion-forcing serve-policy load=NAME [address=tcp://127.0.0.1:5555 cameras=sim|folder|v4l2|realsense]
       … --cfg [--resolve]                              print the composed configuration, run nothing
       … --version | --help

groups and their choices (your own `configurations/` folder, where you stand, comes first)
"""
_TAIL = """
keys one uses most
  +name=NAME                              name of the run
  experiment.tasks=[training,validation]  tasks in order: training, validation, test, generate_dataset, your own methods
  load=PATH|RUN ID|NAME                   a new run from a checkpoint, or from a shipped one: load=maze2d_medium_x
  resume=RUN ID                           go on with a run: weights, optimiser, step, random state, log
  tracking=wandb|tensorboard|[wandb,tensorboard]   beside the run's folder; wandb.mode=online|offline wandb.entity= wandb.project=
  seed=0   debug=True   outputs=outputs
  dataset.KEY=VALUE  algorithm.KEY=VALUE  experiment.KEY=VALUE   any key that --cfg prints; lists as [1,2]; ~KEY removes one

examples
  python -m main dataset=video_labmaze experiment.tasks=[generate_dataset] +name=data
  python -m main dataset=video_labmaze +name=labmaze
  python -m main dataset=video_labmaze load=RUN_ID experiment.tasks=[validation] +name=roll
  python -m main dataset=maze2d_medium dataset.action_mean=[] dataset.action_std=[] \\
      dataset.observation_mean=[3.5092521,3.4765592] dataset.observation_std=[1.3371079,1.52102] +name=maze2d_medium_x
  python -m main dataset=maze2d_medium load=maze2d_medium_x experiment.tasks=[validation] +name=plan"""


def usage() -> str:
    """The whole help text."""
    lines = [_HEAD.format(version=__version__)]
    for group in group_names():
        choices = choices_of(group)
        if not choices:
            continue
        lines.append(f"  {group}=")
        lines.extend(f"    {name:<18} {first_comment(file)}".rstrip() for name, file in choices.items())
    return "\n".join(lines) + "\n" + _TAIL


EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
LONGEST_LINE = 1000
_FLAGS = ("--help", "-h", "--version", "--cfg", "-c", "--resolve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except UserError as mistake:
        if mistake.everywhere and not is_main_process():
            return 0
        if "debug=true" in [word.lower().lstrip("+") for word in words]:
            traceback.print_exc()
        print(f"error: {_one_line(str(mistake))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as end:  # training that was asked to stop: saved, and has said how to resume
        if not is_main_process():
            return 0  # or whoever started the processes would end the main one, at its work
        return end.code if isinstance(end.code, int) else 1


def _one_line(message: str) -> str:
    """The message on one line that can be read: of more than a thousand letters (somebody's path, somebody's value) the middle is left out."""
    line = " ".join(message.split())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 300]} … {line[-290:]}"


def _main(words: list[str]) -> int:
    if words[:1] in (["inspect"], ["convert"]) and not {"--help", "-h"} & set(words):
        from diffusion_forcing.launch import checkpoint_commands

        getattr(checkpoint_commands, words[0])(words[1:])
        return 0
    if words[:1] == ["serve-policy"] and not {"--help", "-h"} & set(words):
        from diffusion_forcing.launch.serve_command import serve_policy

        serve_policy(words[1:])
        return 0
    if words[:1] == ["convert-robot"] and not {"--help", "-h"} & set(words):
        from diffusion_forcing.launch.convert_robot_command import convert_robot

        convert_robot(words[1:])
        return 0
    if words[:1] == ["runs"] and not {"--help", "-h"} & set(words):
        from diffusion_forcing.launch.runs_command import runs

        runs(words[1:])
        return 0
    if words[:1] == ["new"] and not {"--help", "-h"} & set(words):
        from diffusion_forcing.launch.new_project import new

        new(words[1:])
        return 0
    flags, overrides = _split(words)
    if {"--help", "-h"} & set(flags):
        print(usage())
    elif "--version" in flags:
        print(f"diffusion-forcing {__version__}")
    elif {"--cfg", "-c"} & set(flags):
        _print_config(overrides, resolve="--resolve" in flags)
    else:
        return _run(overrides)
    return 0


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Flags and overrides. `--cfg job`, Hydra's spelling, is `--cfg`."""
    flags: list[str] = []
    overrides: list[str] = []
    for word in words:
        if word in _FLAGS:
            flags.append(word)
        elif word == "job" and flags and flags[-1] in ("--cfg", "-c"):
            continue
        elif word.startswith("-"):
            raise UserError(
                f"unknown option '{word}'{did_you_mean(word, _FLAGS)}; settings are key=value, --help lists all"
            )
        else:
            overrides.append(word)
    return flags, overrides


def _print_config(overrides: list[str], *, resolve: bool) -> None:
    from diffusion_forcing.launch.compose import as_yaml, compose, resolved

    config = compose(overrides)
    if resolve:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(resolved(config))), end="")
    else:
        print(as_yaml(config), end="")


def _run(overrides: list[str]) -> int:

    with without_collecting():
        from diffusion_forcing.launch.report import report, say
        from diffusion_forcing.launch.run import plan, start
        from diffusion_forcing.launch.seeds import run_seeds

        keep_freed_memory()
        try:
            checked = plan(overrides)
        except UserError as mistake:
            mistake.everywhere = True
            raise
    if checked.taken and is_main_process():
        say(f"as the checkpoint was trained: {' '.join(checked.taken)}")
    if checked.cluster is not None:
        from diffusion_forcing.launch.slurm import submit

        return submit(checked, overrides)
    if checked.settings.seeds > 1:
        run_seeds(overrides, checked)
    else:
        report(start(checked))
    return 0
