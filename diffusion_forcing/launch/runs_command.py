"""`diffusion-forcing runs`: the page that compares the runs in `outputs/`, and `runs ls | show | best | rm | sync`."""

from __future__ import annotations

import os
import shlex
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diffusion_forcing.errors import UserError, explaining_os_errors, require
from diffusion_forcing.files import write_atomic
from diffusion_forcing.terminal import say
from diffusion_forcing.tracking.page import COMPARED, comparison_page, headlines, started_with
from diffusion_forcing.tracking.records import RunRecord, find_run, rank, read_config, read_run, read_runs, remove

_COMMANDS = ("ls", "show", "best", "rm", "sync")


def runs(words: Sequence[str]) -> None:
    """Run the command `runs`; `words` are the ones after it."""
    outputs, flags, rest = Path("outputs"), set(), []
    for word in words:
        if word.startswith("outputs="):
            outputs = Path(word.removeprefix("outputs=")).expanduser()
        elif word.startswith("-"):
            known = word in ("--yes", "--follow")
            require(known, f"runs has no option '{word}'; allowed: --yes (with rm) and --follow (with sync)")
            flags.add(word)
        else:
            rest.append(word)
    is_folder = outputs.is_dir()
    require(is_folder, f"there is no folder {outputs}; run this where the runs were started, or pass outputs=DIR")
    command = rest.pop(0) if rest and rest[0] in _COMMANDS else "page"
    every = read_runs(outputs)
    if command == "ls":
        require(not rest, f"runs ls takes no further words, got '{' '.join(rest)}'")
        return ls(every)
    if command == "best":
        return best(every, rest)
    settings = [word for word in rest if command == "sync" and "=" in word]
    chosen = [_find(outputs, name) for name in dict.fromkeys(rest) if name not in settings]
    if command == "page":
        return page(outputs, every, chosen)
    is_right = len(chosen) == 1 if command == "show" else bool(chosen)
    require(is_right, f"runs {command} takes the id of a run, got {len(chosen)}; runs ls lists them")
    if command == "show":
        show(chosen[0])
    elif command == "rm":
        rm(outputs, chosen, yes="--yes" in flags)
    else:
        sync(chosen, settings, follow="--follow" in flags)


def page(outputs: Path, every: Sequence[RunRecord], compared: Sequence[RunRecord]) -> None:
    """Write and open outputs/index.html, with `compared` (else the newest) side by side."""
    require(len(compared) <= COMPARED, f"at most {COMPARED} runs can be compared, got {len(compared)}")
    path = outputs / "index.html"
    with explaining_os_errors(f"cannot write {path}", "make room or pass outputs=DIR"):
        write_atomic(path, comparison_page(outputs, every, compared or every[:COMPARED]))
    say(f"{len(every)} runs: {path}")
    if sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")):
        webbrowser.open(path.resolve().as_uri())


def ls(every: Sequence[RunRecord]) -> None:
    """Print one line for each run."""
    table = Table("id", "name", "status", "started", "step", "results", box=None, pad_edge=False)
    for run in every:
        step = "" if run.step is None else f"{run.step:,}"
        table.add_row(run.id, run.name, run.status, run.started, step, headlines(run, 2))
    _print(table)


def show(run: RunRecord) -> None:
    """Print everything about one run."""
    step = "" if run.step is None else f", step {run.step:,}"
    say(f"{run.name} ({run.id}): {run.status}, started {run.started}{step}")
    say(f"  folder     {run.folder}")
    say(f"  command    {shlex.join(started_with(run.metadata.get('command', [])))}")
    for name, value in run.metrics.items():
        say(f"  {name}  {value:.6g}" if isinstance(value, float) else f"  {name}  {value}")
    for file in sorted((run.folder / "checkpoints").glob("*/checkpoint.json")):
        say(f"  checkpoint {file.parent}")


def best(every: Sequence[RunRecord], words: Sequence[str]) -> None:
    """Print the runs that have a metric, the best first."""
    if len(words) != 2 or words[1] not in ("lowest", "highest"):
        raise UserError("runs best takes a metric and lowest or highest, as in: runs best training/loss lowest")
    table = Table(words[0], "at step", "id", "name", "status", box=None, pad_edge=False)
    for entry in rank(every, words[0], highest=words[1] == "highest"):
        step = "result" if entry.step is None else f"{entry.step:,}"
        table.add_row(f"{entry.value:.6g}", step, entry.run.id, entry.run.name, entry.run.status)
    _print(table)


def rm(outputs: Path, chosen: Sequence[RunRecord], *, yes: bool = False) -> None:
    """Delete the chosen runs, after a question unless `yes`: all of them, or none if one is running."""
    running = [run.id for run in chosen if run.status == "running"]
    if running:
        raise UserError(f"run {running[0]} is running: stop it first; nothing was removed")
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UserError("runs rm asks before it deletes, which needs a terminal; pass --yes")
        for run in chosen:
            say(f"  {run.id}  {run.name}  {run.started}  {run.folder}")
        if input(f"delete {len(chosen)} run(s) with their checkpoints? [y/N] ").lower() not in ("y", "yes"):
            say("nothing was removed")
            return
    for run in chosen:
        remove(run, outputs)
        say(f"removed {run.id} {run.name}")


def sync(chosen: Sequence[RunRecord], words: Sequence[str], *, follow: bool = False) -> None:
    """Upload to W&B what it lacks of each run, one after the other; any run, also one that was tracked locally.

    `words`: wandb.KEY=VALUE. `follow`: a run that another machine is training, until it ends. UserError unless W&B then
    has all of each.
    """
    # Hydra and omegaconf take time to import, and no other runs command needs them.
    from omegaconf import OmegaConf

    from diffusion_forcing.launch.compose import compose_on, resolved
    from diffusion_forcing.options import build_options
    from diffusion_forcing.tracking.wandb import EXTRA, LOG, WandbOptions, installed, start_upload

    for word in words:
        require(word.startswith("wandb."), f"runs sync takes wandb.KEY=VALUE besides the ids, got '{word}'")
    require(installed(), f"runs sync needs wandb: {EXTRA}")
    for run in chosen:
        if run.status == "running" and not follow:
            raise UserError(f"run {run.id} is running; wait until it has ended, or pass --follow on another machine")
        with explaining_os_errors(f"run {run.id} cannot be uploaded: its config.yaml cannot be read", "copy it again"):
            saved = read_config(run.folder)
        # The mode comes last: however the run was tracked, it is uploaded now.
        config = compose_on(saved, ["tracking=[wandb]", *words, "wandb.mode=online"])
        options = build_options(WandbOptions, OmegaConf.to_container(config["wandb"]), "wandb")
        process = start_upload(run.folder, options, resolved(config), follow=follow)
        try:
            code = process.wait()
        finally:
            process.terminate()
        log = run.folder / "wandb" / LOG
        require(code == 0, f"W&B does not have all of run {run.id}; the lines above and {log} say why")


def _find(outputs: Path, name: str) -> RunRecord:
    """The run of an id or in a folder."""
    run = read_run(Path(name)) or read_run(find_run(outputs, name))
    if run is None:
        raise UserError(f"the run.json of run {name} is damaged; its name is missing")
    return run


def _print(table: Table) -> None:
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)
