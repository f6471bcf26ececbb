"""What --help prints: of the whole command line, and of each sub-command."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_forcing import __version__
from diffusion_forcing.launch.choices import choices_of, first_comment, group_names


class Command(NamedTuple):
    """The help of a sub-command. lines: its options, one a line, with what each means."""

    words: str
    purpose: str
    lines: str
    example: str


COMMANDS = {
    "forecast": Command(
        "FILE --horizon STEPS [--minutes N] [key=value …]",
        "what comes after a CSV file, as a fan chart and a table",
        """  FILE             CSV or Parquet: a column of times, and one for each series
  --horizon STEPS  number of rows to forecast
  --minutes N      train on the file for N minutes first; default 0: the shipped forecaster as it is
  key=value        any setting of a run, such as +name=NAME""",
        "sales.csv --horizon 14",
    ),
    "play": Command(
        "[--port N] [--host ADDRESS] [--no-browser] [--threads N]",
        "a page to play with the shipped models",
        """  --port N         default 8000
  --host ADDRESS   default 127.0.0.1: this machine only
  --no-browser     do not open a browser
  --threads N      processor threads of a model; default half of the cores, 2 to 4""",
        "--port 8080",
    ),
    "new": Command(
        "NAME",
        "write a project of your own: dataset, algorithm, experiment, tests",
        "  NAME             the project's folder and the name of its Python package",
        "my_project",
    ),
    "inspect": Command(
        "PATH",
        "describe a checkpoint: task, sizes, step, statistics",
        "  PATH             a path, a run's id, a shipped checkpoint's name, or hf://user/repo",
        "maze2d_medium_goal",
    ),
    "convert": Command(
        "IN.ckpt OUT",
        "convert a released checkpoint to our format",
        """  IN.ckpt          the released checkpoint
  OUT              a new folder, for load=OUT""",
        "maze2d_medium_x.ckpt maze2d_medium_x",
    ),
    "convert-robot": Command(
        "SRC DST [--to ours|lerobot] [--allow-pickle] [--cameras A,B] [--resolution N]",
        "convert robot demonstrations: ours, LeRobot v3.0, released",
        """  SRC DST          the demonstrations, whose layout is recognised, and a new folder
  --to             the layout of DST; default ours
  --allow-pickle   read the released pickles: arrays and plain containers only
  --cameras        names, as front,over or front=VIDEO,over=VIDEO
  --resolution N   height and width of the images in pixels
  also: --codec --task --robot-type --fps --chunks-size --data-files-size-in-mb --video-files-size-in-mb""",
        "data/lerobot_swap data/robot_swap",
    ),
    "push": Command(
        "PATH hf://user/repo [--private] [--license NAME] [--results RUN]",
        "upload a checkpoint and its card to the Hugging Face Hub",
        """  PATH             what load= takes: a path, a run's id, a shipped checkpoint's name
  --private        make the repository a private one
  --license NAME   of a new repository; default mit
  --results RUN    the run whose results the card shows; default: the one that PATH is of""",
        "abcd1234 hf://me/maze-planner --private",
    ),
    "runs": Command(
        "[ID …] | ls | show ID | best METRIC lowest|highest | rm ID … [--yes] | sync ID … [--follow]   [outputs=DIR]",
        "write a page that compares runs; list, show, rank, delete, upload them",
        """  [ID …]           write the page of all runs, comparing the given ones
  ls               one line for each run
  show ID          the command, results and checkpoints of a run
  best             the runs that have a metric, the best first
  rm ID …          delete runs and their checkpoints; --yes: without asking
  sync ID …        upload runs to W&B; --follow: until they end; wandb.KEY=VALUE
  outputs=DIR      where the runs are; default outputs""",
        "best training/loss lowest",
    ),
    "serve-policy": Command(
        "load=NAME [address=tcp://127.0.0.1:5555 cameras=sim|folder|v4l2|realsense] [key=value …]",
        "a trained policy answers a robot over ZeroMQ",
        """  load=NAME        the policy: a path, a run's id, a shipped checkpoint's name
  address=         where it listens
  cameras=         where its images come from
  key=value        any setting of algorithm.KEY and dataset.KEY""",
        "load=robot_swap_small cameras=sim",
    ),
}
"""The sub-commands: functions of `commands` with these names; what one returns is the command line to run."""

_USAGE = """diffusion-forcing {version}: sequence models in which every token has its own noise level

usage: python -m main [group=choice …] [key=value …]
       diffusion-forcing …                              the same, from any folder
{commands}
       … --cfg [--resolve]                              print the composed configuration and exit
       … --version | --help                             COMMAND --help: the help of one of the commands above

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


def usage() -> str:
    """The text of --help. Lists folders and reads first lines only."""
    groups = []
    for group in group_names():
        choices = choices_of(group)
        if choices:
            groups.append(f"  {group}=")
            width = max(map(len, choices))
            groups.extend(f"    {name:<{width}} {first_comment(file)}".rstrip() for name, file in choices.items())
    commands = []
    for name, command in COMMANDS.items():
        line = f"       {line_of(name)}"
        commands.append(f"{line:<55} {command.purpose}" if len(line) <= 55 else f"{line}\n{'':56}{command.purpose}")
    return _USAGE.format(version=__version__, commands="\n".join(commands), groups="\n".join(groups))


def line_of(name: str) -> str:
    """How the sub-command `name` is called, in one line."""
    return f"diffusion-forcing {name} {COMMANDS[name].words}"


def help_of(name: str) -> str:
    """The text of `name --help`."""
    command = COMMANDS[name]
    return (
        f"usage: {line_of(name)}\n\n{command.purpose}\n\n{command.lines}\n\n"
        f"example: diffusion-forcing {name} {command.example}"
    )
