"""The text of --help: commands, groups with their choices, examples. Reads folder listings and first lines only."""

from __future__ import annotations

from diffusion_forcing import __version__
from diffusion_forcing.launch.configurations import choices_of, first_comment, group_names

_HEAD = """diffusion-forcing {version}: sequence models in which every token has its own noise level

usage: python -m main [group=choice …] [key=value …]
       diffusion-forcing …                              the same, from anywhere
       diffusion-forcing new my_project                 a project of your own: dataset, algorithm, experiment, tests
       diffusion-forcing inspect PATH                   what a checkpoint is: line, task, sizes, step, statistics
       diffusion-forcing convert IN.ckpt OUT            a released checkpoint, of either line, in our format
       diffusion-forcing convert-robot SRC DST [--to ours|lerobot] [--allow-pickle] [--cameras A,B] [--resolution N]
                                                        a robot's demonstrations: ours, LeRobot's v3.0, the authors' released ones
       diffusion-forcing runs [ID …]                    a page of all runs, curves and films of some side by side
       diffusion-forcing runs ls | show ID | best METRIC [lowest|highest] | rm ID … [--yes]   [outputs=DIR]
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
