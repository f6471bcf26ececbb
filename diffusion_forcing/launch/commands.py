"""The sub-commands for files: `inspect`, `convert` and `push` for checkpoints, `convert-robot` for demonstrations."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffusion_forcing.errors import UserError, did_you_mean, require
from diffusion_forcing.options import leaves
from diffusion_forcing.terminal import say, tell

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_forcing.checkpoints import LoadedCheckpoint

_NUMBERS_SHOWN = 8
_CHARACTERS_SHOWN = 100


def inspect(words: Sequence[str]) -> None:
    """`inspect PATH`: print what a checkpoint is. PATH: a value of `load=`."""
    require(len(words) == 1, f"inspect takes one checkpoint, got {len(words)}; diffusion-forcing inspect PATH")
    from diffusion_forcing.checkpoints import load, resolve

    checkpoint = load(resolve(words[0]))
    metadata = {key: value for key, value in checkpoint.metadata.items() if key not in ("task", "line", "statistics")}
    lines: dict[str, Any] = {
        "path": str(checkpoint.path),
        "step": checkpoint.step,
        "parameters": f"{_parameters(checkpoint):,} in {len(checkpoint.weights)} tensors",
        **dict(leaves(metadata)),
        **{key: _few_numbers(value) for key, value in checkpoint.statistics.items()},
    }
    say(_summary(checkpoint))
    width = max(map(len, lines))
    for key, value in lines.items():
        say(f"  {key:<{width}}  {_on_a_line(value)}")


def convert(words: Sequence[str]) -> None:
    """`convert IN.ckpt OUT`: check a released checkpoint, and write it in our format into the folder OUT."""
    usage = (
        f"convert takes a released checkpoint and a new folder, got {len(words)}; diffusion-forcing convert IN.ckpt OUT"
    )
    require(len(words) == 2, usage)
    from diffusion_forcing.checkpoints import export, load
    from diffusion_forcing.released.options import check_released

    source = Path(words[0])
    checkpoint = load(source)
    require(checkpoint.kind == "released", f"{source} is in our format already; use load={source}")
    check_released(checkpoint)
    say(_summary(checkpoint))
    say(f"wrote {export(source, Path(words[1]))}; use load={words[1]}")


def push(words: Sequence[str]) -> None:
    """`push PATH hf://user/repo [--private]`: upload a checkpoint. PATH: a value of `load=`. --results: the run that tested it."""
    usage = "diffusion-forcing push PATH hf://user/repo [--private] [--license mit] [--results RUN]"
    parser = Parser("push", usage=usage, add_help=False, allow_abbrev=False)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--license", default="mit")
    parser.add_argument("--results")
    parser.add_argument("places", nargs="*")
    given = parser.parse_intermixed_args(list(words))
    require(len(given.places) == 2, f"push takes a checkpoint and a place on the hub, got {len(given.places)}; {usage}")
    from diffusion_forcing.checkpoints import hub, resolve
    from diffusion_forcing.tracking.records import find_run

    path, place = given.places
    hub.place_of(place)
    results = given.results and (
        Path(given.results) if Path(given.results).exists() else find_run(Path("outputs"), given.results)
    )
    uploaded = hub.push(resolve(path), place, private=given.private, license=given.license, results=results)
    say(f"uploaded {path}; use load={uploaded}")


NETWORKS = {"rnn": "recurrent networks", "v1.5": "attention networks", "world": "the world model's network"}
"""What trained here has, by the line of its checkpoint."""


def _summary(checkpoint: LoadedCheckpoint) -> str:
    """One line: kind, line, task, sizes, parameters, step."""
    from diffusion_forcing.released.options import LINES

    metadata = checkpoint.metadata
    kind = "released checkpoint" if checkpoint.kind == "released" else "checkpoint"
    line = (NETWORKS if "structure" in metadata else LINES).get(str(metadata.get("line")), "an unknown line")
    sizes = ", ".join(f"{key} {metadata[key]}" for key in ("network_size", "z_shape", "frame_stack") if key in metadata)
    return (
        f"{kind} of {line}: {metadata.get('task', 'unknown task')}{f' ({sizes})' if sizes else ''}, "
        f"{_parameters(checkpoint):,} parameters, step {checkpoint.step}"
    )


def _parameters(checkpoint: LoadedCheckpoint) -> int:
    return sum(weight.numel() for weight in checkpoint.weights.values())


def _on_a_line(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, list) and len(text) > _CHARACTERS_SHOWN:
        return f"{text[:_CHARACTERS_SHOWN]}… {len(value)} in all"
    return text


def _few_numbers(value: Tensor) -> str:
    few = ", ".join(f"{number:.6g}" for number in value.flatten()[:_NUMBERS_SHOWN].tolist())
    return f"{few}, … {list(value.shape)}" if value.numel() > _NUMBERS_SHOWN else few


class Parser(argparse.ArgumentParser):
    """Raises UserError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; {self.usage}")


def convert_robot(words: Sequence[str]) -> None:
    """`convert-robot SRC DST`: demonstrations of a robot in another layout."""
    from diffusion_forcing.datasets.robot.convert import ConvertOptions, convert_robot

    usage = "diffusion-forcing convert-robot SRC DST [--to ours|lerobot] [--allow-pickle]"
    parser = Parser(
        "convert-robot", usage=usage, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("folders", nargs="*", default=[])
    parser.add_argument("--allow-pickle", action="store_true")
    for option in ("--to", "--cameras", "--codec", "--task", "--robot-type"):
        parser.add_argument(option)
    for option in ("--resolution", "--chunks-size"):
        parser.add_argument(option, type=int)
    for option in ("--fps", "--data-files-size-in-mb", "--video-files-size-in-mb"):
        parser.add_argument(option, type=float)
    known, unknown = parser.parse_known_intermixed_args(list(words))
    if unknown:
        allowed = [option for action in parser._actions for option in action.option_strings]
        near = did_you_mean(unknown[0], allowed)
        raise UserError(f"convert-robot has no option '{unknown[0]}'{near}; options: {', '.join(allowed)}")
    given = vars(known)
    folders = [Path(folder).expanduser() for folder in given.pop("folders")]
    require(len(folders) == 2, f"convert-robot takes a folder and a new one, got {len(folders)}; {usage}")
    if "cameras" in given:
        given["cameras"] = _cameras(given["cameras"])
    options = ConvertOptions(**given)
    source, target = folders
    if options.allow_pickle:
        tell(f"warning: pickles in {source} may hold arrays and plain containers only")
    counts = ", ".join(f"{count} {split}" for split, count in convert_robot(source, target, options).items())
    say(f"wrote {target} ({options.to}): {counts}; use dataset=robot_swap dataset.save_dir={target}")


def _cameras(text: str) -> dict[str, str] | tuple[str, ...]:
    """`front,over`, or `front=left,over=right`: our names of cameras, and the names of their videos."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    names = [name for name, _, _ in pairs]
    videos = [video for _, equals, video in pairs if equals]
    if not all(names) or len(videos) not in (0, len(names)) or len(set(names)) < len(names):
        raise UserError(f"--cameras is {text!r}; give different names as front,over or front=VIDEO,over=VIDEO")
    return dict(zip(names, videos, strict=True)) if videos else tuple(names)
