"""`diffusion-forcing serve-policy load=NAME [address=… cameras=…] [key=value …]`: a trained policy answers a robot over ZeroMQ."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.launch.overrides import parse
from diffusion_forcing.launch.quick import import_lightning
from diffusion_forcing.launch.run import Plan, plan
from diffusion_forcing.options import build_options
from diffusion_forcing.terminal import say

if TYPE_CHECKING:
    from diffusion_forcing.serve.policy_server import ServeOptions

_PARTS = {"dataset": "robot_swap", "algorithm": "df_robot", "experiment": "exp_robot"}
_TOP_LEVEL = ("load", "name", "seed", "debug", "outputs")


def serve_policy(words: Sequence[str]) -> None:
    """The command; words: its arguments."""
    import_lightning()  # without scipy and matplotlib, which a server would hold
    try:
        from diffusion_forcing.serve.policy_server import ServeOptions
    except ModuleNotFoundError as missing:
        raise UserError(
            f"serve-policy needs the package '{missing.name}': pip install 'diffusion-forcing[robot]'"
        ) from missing
    known = sorted(field.name for field in dataclasses.fields(ServeOptions))
    given: dict[str, Any] = {}
    overrides: list[str] = []
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key in known:
            given[key] = parse(word, frozenset()).value
        elif "." in key or key in (*_TOP_LEVEL, *_PARTS):
            overrides.append(word)
        else:
            raise UserError(
                f"serve-policy has no option '{word}'{did_you_mean(key, known)}; options, as key=value: {', '.join(known)}"
            )
    options = build_options(ServeOptions, given, "")
    if not any(word.startswith("load=") for word in overrides):
        raise UserError("serve-policy needs a policy: load=robot_swap_small, a run's id or a checkpoint's path")
    chosen = {word.partition("=")[0] for word in overrides}
    defaults = [f"{group}={choice}" for group, choice in _PARTS.items() if group not in chosen]
    _serve(plan([*defaults, *overrides]), options)


def _serve(plan: Plan, options: ServeOptions) -> None:
    from diffusion_forcing.algorithms.robot.algorithm import Robot
    from diffusion_forcing.checkpoints import format as native
    from diffusion_forcing.datasets.robot.dataset import CAMERAS
    from diffusion_forcing.experiments.checkpointing import load_weights
    from diffusion_forcing.experiments.devices import device
    from diffusion_forcing.experiments.loader import seed_all
    from diffusion_forcing.serve.policy_server import PolicyServer

    seed_all(plan.settings.seed)
    with native.sized_by(plan.checkpoint):
        robot = plan.classes["algorithm"](plan.options["algorithm"])
    if not isinstance(robot, Robot):
        raise UserError(f"serve-policy needs a robot's policy, got {type(robot).__name__}; choose algorithm=df_robot")
    assert plan.checkpoint is not None
    load_weights(robot, native.load(plan.checkpoint))
    robot = robot.to(device()).eval()
    names = CAMERAS[: robot.options.n_cameras]
    server = PolicyServer(robot, options, cameras=names, say=say)
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stops.append(number))
    try:
        server.warm_up()
        say(f"{plan.checkpoint} answers at {server.address}; Ctrl-C ends it")
        say(f"  cameras {options.cameras}: {', '.join(names)}")
        say(f"  a reply is {robot.options.action_stack} actions of 8 float32 numbers; see examples/robot_client.py")
        if not options.local:
            say("warning: anyone who reaches this address can move the robot; tcp://127.0.0.1:… is local only")
        server.serve(lambda: bool(stops))
    finally:
        say(server.report())
        server.close()
