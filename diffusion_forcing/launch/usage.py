"""The sub-commands and their arguments, from which help and parsers are made; and what --help prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from diffusion_forcing import __version__
from diffusion_forcing.launch.choices import choices_of, first_comment, group_names


class Argument(NamedTuple):
    """One argument. name: `FILE`, `--horizon` or `key=value`. value: what follows an option, "" where nothing does."""

    name: str
    meaning: str
    value: str = ""
    kind: Callable[[str], Any] = str
    required: bool = False
    rare: bool = False
    """Left out of the usage line."""

    @property
    def is_option(self) -> bool:
        """Whether it is an option, `--name`."""
        return self.name.startswith("--")

    @property
    def words(self) -> str:
        """As it is written on the command line: `--horizon STEPS`."""
        return f"{self.name} {self.value}".rstrip()


class Command(NamedTuple):
    """A sub-command. words: its arguments in the usage line, where that does not follow from them."""

    purpose: str
    example: str
    arguments: tuple[Argument, ...]
    words: str = ""

    @property
    def positional(self) -> tuple[str, ...]:
        """Names of the positional arguments."""
        return tuple(argument.name for argument in self.arguments if not (argument.is_option or "=" in argument.name))

    @property
    def usage(self) -> str:
        """Its arguments in one line."""
        shown = (argument for argument in self.arguments if not argument.rare)
        return self.words or " ".join(
            argument.words if argument.required or argument.name in self.positional else f"[{argument.words}]"
            for argument in shown
        )


COMMANDS = {
    "forecast": Command(
        "what comes after a CSV file, as a fan chart and a table",
        "sales.csv --horizon 14",
        (
            Argument("FILE", "CSV or Parquet: a column of times, and one for each series"),
            Argument("--horizon", "number of rows to forecast", "STEPS", int, required=True),
            Argument(
                "--minutes",
                "train on the file for N minutes first; default 0: the shipped forecaster as it is",
                "N",
                float,
            ),
            Argument("key=value …", "any setting of a run, such as +name=NAME"),
        ),
    ),
    "play": Command(
        "a page to play with the shipped models",
        "--port 8080",
        (
            Argument("--port", "default 8000", "N", int),
            Argument("--host", "default 127.0.0.1: this machine only", "ADDRESS"),
            Argument("--no-browser", "do not open a browser"),
            Argument("--threads", "processor threads of a model; default half of the cores, 2 to 4", "N", int),
        ),
    ),
    "new": Command(
        "write a project of your own: dataset, algorithm, experiment, tests",
        "my_project",
        (Argument("NAME", "the project's folder and the name of its Python package"),),
    ),
    "inspect": Command(
        "describe a checkpoint: task, sizes, step, statistics",
        "maze2d_medium_goal",
        (Argument("PATH", "a path, a run's id, a shipped checkpoint's name, or hf://user/repo"),),
    ),
    "convert": Command(
        "convert a released checkpoint to our format",
        "maze2d_medium_x.ckpt maze2d_medium_x",
        (
            Argument("IN.ckpt", "the released checkpoint"),
            Argument("OUT", "a new folder, for load=OUT"),
        ),
    ),
    "convert-robot": Command(
        "convert robot demonstrations: ours, LeRobot v3.0, released",
        "data/lerobot_swap data/robot_swap",
        (
            Argument("SRC", "the demonstrations, whose layout is recognised"),
            Argument("DST", "a new folder"),
            Argument("--to", "the layout of DST; default ours", "ours|lerobot"),
            Argument("--allow-pickle", "read the released pickles: arrays and plain containers only"),
            Argument("--cameras", "names, as front,over or front=VIDEO,over=VIDEO", "A,B"),
            Argument("--resolution", "height and width of the images in pixels", "N", int),
            Argument("--fps", "frames per second, instead of the demonstrations' own", "N", float, rare=True),
            Argument("--codec", "of LeRobot's videos; default lossless", "lossless|h264|av1", rare=True),
            Argument("--task", "what the robot does, in words", "TEXT", rare=True),
            Argument("--robot-type", "default fetch", "NAME", rare=True),
            Argument("--chunks-size", "files in a folder of LeRobot's; default 1000", "N", int, rare=True),
            Argument("--data-files-size-in-mb", "about; default 100", "N", float, rare=True),
            Argument("--video-files-size-in-mb", "about; default 200", "N", float, rare=True),
        ),
    ),
    "push": Command(
        "upload a checkpoint and its card to the Hugging Face Hub",
        "abcd1234 hf://me/maze-planner --private",
        (
            Argument("PATH", "what load= takes: a path, a run's id, a shipped checkpoint's name"),
            Argument("hf://user/repo", "the repository, made if it does not exist"),
            Argument("--private", "make the repository a private one"),
            Argument("--license", "of a new repository; default mit", "NAME"),
            Argument("--results", "the run whose results the card shows; default: the one that PATH is of", "RUN"),
        ),
    ),
    "runs": Command(
        "write a page that compares runs; list, show, rank, delete, upload them",
        "best training/loss lowest",
        (
            Argument("[ID …]", "write the page of all runs, comparing the given ones"),
            Argument("ls", "one line for each run"),
            Argument("show ID", "the command, results and checkpoints of a run"),
            Argument("best", "the runs that have a metric, the best first"),
            Argument("rm ID …", "delete runs and their checkpoints; --yes: without asking"),
            Argument("sync ID …", "upload runs to W&B; --follow: until they end; wandb.KEY=VALUE"),
            Argument("outputs=DIR", "where the runs are; default outputs"),
        ),
        "[ID …] | ls | show ID | best METRIC lowest|highest | rm ID … [--yes] | sync ID … [--follow]   [outputs=DIR]",
    ),
    "serve-policy": Command(
        "a trained policy answers a robot over ZeroMQ",
        "load=robot_swap_small cameras=sim",
        (
            Argument("load=NAME", "the policy: a path, a run's id, a shipped checkpoint's name"),
            Argument("address=", "where it listens"),
            Argument("cameras=", "where its images come from"),
            Argument("key=value", "any setting of algorithm.KEY and dataset.KEY"),
        ),
        "load=NAME [address=tcp://127.0.0.1:5555 cameras=sim|folder|v4l2|realsense] [key=value …]",
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
    return f"diffusion-forcing {name} {COMMANDS[name].usage}"


def help_of(name: str) -> str:
    """The text of `name --help`."""
    command = COMMANDS[name]
    width = max(len(argument.words) for argument in command.arguments) + 2
    lines = "\n".join(f"  {argument.words:<{width}}{argument.meaning}" for argument in command.arguments)
    return (
        f"usage: {line_of(name)}\n\n{command.purpose}\n\n{lines}\n\nexample: diffusion-forcing {name} {command.example}"
    )
