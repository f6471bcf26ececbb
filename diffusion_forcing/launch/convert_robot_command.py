"""`diffusion-forcing convert-robot SRC DST`: demonstrations of a robot in another layout; the authors' pickles only where that is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.launch.report import say

_USE = "diffusion-forcing convert-robot SRC DST [--to ours|lerobot] [--allow-pickle]"
_PLAIN = ("--to", "--cameras", "--codec", "--task", "--robot-type")
_NUMBERS = {
    "--resolution": int,
    "--fps": float,
    "--chunks-size": int,
    "--data-files-size-in-mb": float,
    "--video-files-size-in-mb": float,
}


class _Words(argparse.ArgumentParser):
    """argparse, whose complaints are ours."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"convert-robot: {message}; {_USE}")


def convert_robot(words: Sequence[str]) -> None:
    """The command; `words` is what follows it."""
    from diffusion_forcing.datasets.robot.convert import ConvertOptions, convert_robot

    source, target, given = _parse(words)
    cameras = given.pop("cameras", None)
    options = ConvertOptions(**given, **({"cameras": _cameras(str(cameras))} if cameras else {}))  # type: ignore[arg-type]
    if options.allow_pickle:
        print(
            f"warning: pickles in {source} are read without executing them: arrays and plain containers, nothing else",
            file=sys.stderr,
        )
    counts = convert_robot(source, target, options)
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    say(f"wrote {target} ({options.to}): {told}; dataset=robot_swap dataset.save_dir={target} takes it")


def _parse(words: Sequence[str]) -> tuple[Path, Path, dict[str, object]]:
    parser = _Words(prog="convert-robot", add_help=False, allow_abbrev=False)
    parser.add_argument("folders", nargs="*")
    for option in _PLAIN:
        parser.add_argument(option, default=argparse.SUPPRESS)
    for option, kind in _NUMBERS.items():
        parser.add_argument(option, type=kind, default=argparse.SUPPRESS)
    parser.add_argument("--allow-pickle", action="store_true", default=argparse.SUPPRESS)
    known, unknown = parser.parse_known_intermixed_args(list(words))
    if unknown:
        options = [*_PLAIN, *_NUMBERS, "--allow-pickle"]
        raise UserError(
            f"convert-robot has no option '{unknown[0]}'{did_you_mean(unknown[0], options)}; it has {', '.join(options)}"
        )
    given = vars(known)
    folders = given.pop("folders")
    if len(folders) != 2:
        raise UserError(f"convert-robot takes a folder and a new one, got {len(folders)}; {_USE}")
    return Path(folders[0]).expanduser(), Path(folders[1]).expanduser(), given


def _cameras(text: str) -> dict[str, str] | tuple[str, ...]:
    """`front,over`, or `front=left,over=right`: our names, and by them films'."""
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts]
    named = [bool(middle) for _, middle, _ in pairs]
    names = [name for name, _, _ in pairs]
    if not all(names) or any(named) != all(named) or len(set(names)) < len(names):
        raise UserError(f"--cameras is {text!r}; give different names as front,over or front=FILM,over=FILM")
    return {name: film for name, _, film in pairs} if all(named) else tuple(names)
