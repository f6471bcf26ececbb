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
from diffusion_forcing.launch.usage import COMMANDS, help_of, usage
from diffusion_forcing.terminal import clean, forgiving_output, say, tell

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
SHORT_OPTION, MOST_OPTIONS = 48, 5
"""Characters and number of the options of a checkpoint that are printed."""
_HELP = ("--help", "-h")
_CFG = ("--cfg", "-c")
_FLAGS = (*_HELP, "--version", *_CFG, "--resolve")


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


def _dispatch(words: list[str]) -> int:
    first = words[0] if words else _HELP[0]
    if first in COMMANDS:
        if set(_HELP) & set(words):
            say(help_of(first))
            return 0
        from diffusion_forcing.launch import commands

        overrides = getattr(commands, words[0].replace("-", "_"))(words[1:])
        return 0 if overrides is None else _run(overrides)
    if "=" not in first and first[:1] not in "+-~":
        raise UserError(
            f"'{clean(first, 60)}' is no command and no key=value{did_you_mean(first, COMMANDS)}; "
            f"commands: {', '.join(COMMANDS)}; --help lists all settings"
        )
    flags, overrides = _split(words or [first])
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
