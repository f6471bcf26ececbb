"""The entry of `python -m main`, `python -m diffusion_forcing` and the command `diffusion-forcing`.

Exit codes: 0 done, 2 a user's mistake (one `error:` line), 130 interrupted. Anything else is our mistake and shows its traceback.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from diffusion_forcing import __version__
from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.experiments.processes import is_main_process

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
        from diffusion_forcing.launch.usage import usage

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
    from diffusion_forcing.launch.importing import without_collecting

    with without_collecting():
        from diffusion_forcing.launch.allocator import keep_freed_memory
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
