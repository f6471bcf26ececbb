"""`diffusion-forcing serve-policy load=NAME [address=… cameras=…] [key=value …]`: a trained policy answers a robot over ZeroMQ."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from typing import Any

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.launch.options import build_options
from diffusion_forcing.launch.overrides import parse
from diffusion_forcing.launch.report import say
from diffusion_forcing.launch.run import plan
from diffusion_forcing.serve.policy_server import ServeOptions

_PARTS = ("dataset=robot_swap", "algorithm=df_robot", "experiment=exp_robot")


def serve_policy(words: Sequence[str]) -> None:
    """The command behind `serve-policy`; `words` is what follows it."""
    own = {field.name for field in dataclasses.fields(ServeOptions)}
    given: dict[str, Any] = {}
    rest: list[str] = []
    for word in words:
        key = word.partition("=")[0]
        if key in own:
            given[key] = parse(word, frozenset()).value
        elif word.startswith("-"):
            raise UserError(f"serve-policy has no option '{word}'; it has {', '.join(sorted(own))}, as key=value")
        elif "." not in key and key.lstrip("+") not in ("load", "name", "seed", "debug", "outputs", *_groups()):
            raise UserError(f"serve-policy has no '{key}'{did_you_mean(key, own)}; it has {', '.join(sorted(own))}")
        else:
            rest.append(word)
    options = build_options(ServeOptions, given, "")
    if not any(word.startswith("load=") for word in rest):
        raise UserError("serve-policy needs a policy: load=robot_swap_small, a run's id or a checkpoint's path")
    chosen = {word.partition("=")[0] for word in rest}
    checked = plan([*(part for part in _PARTS if part.partition("=")[0] not in chosen), *rest])
    try:
        import zmq  # noqa: F401
    except ImportError as missing:
        raise UserError("serve-policy needs pyzmq: pip install 'diffusion-forcing[robot]'") from missing
    _serve(checked, options)


def _groups() -> tuple[str, ...]:
    return tuple(part.partition("=")[0] for part in _PARTS)


def _serve(checked: Any, options: ServeOptions) -> None:
    from diffusion_forcing.algorithms.robot.algorithm import Robot
    from diffusion_forcing.checkpoints import format as native
    from diffusion_forcing.datasets.robot.dataset import CAMERAS
    from diffusion_forcing.experiments import loader as randomness
    from diffusion_forcing.experiments import trainer as devices
    from diffusion_forcing.experiments.checkpointing import load_weights
    from diffusion_forcing.serve.policy_server import PolicyServer

    randomness.seed_all(checked.settings.seed)
    robot = checked.classes["algorithm"](checked.options["algorithm"])
    if not isinstance(robot, Robot):
        raise UserError(
            f"serve-policy serves robots' policies, algorithm is {type(robot).__name__}; choose algorithm=df_robot"
        )
    load_weights(robot, native.load(checked.checkpoint))
    robot = robot.to(devices.device()).eval()
    names = CAMERAS[: robot.options.n_cameras]
    server = PolicyServer(robot, options, cameras=names, say=say)
    asked_to_stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked_to_stop.append(number))
    try:
        server.warm_up()
        say(
            f"{checked.checkpoint} answers at {server.address}, cameras {options.cameras} ({', '.join(names)}); Ctrl-C ends it"
        )
        if not options.local:
            say(
                "warning: whoever reaches this address can move the robot; tcp://127.0.0.1:… listens to this machine alone"
            )
        say(
            f"  a reply: {robot.options.action_stack} actions of 8 numbers, float32; a client: examples/robot_client.py"
        )
        server.serve(lambda: bool(asked_to_stop))
    finally:
        say(server.report())
        server.close()
