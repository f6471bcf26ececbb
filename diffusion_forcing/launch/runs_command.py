"""`diffusion-forcing runs`: the page of all runs, and `runs ls | show | best | rm | sync` at the terminal. Reads `outputs/`, wherever it
was made."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.files import write_atomic
from diffusion_forcing.launch.report import say
from diffusion_forcing.tracking.comparison import COMPARED, headlines, render
from diffusion_forcing.tracking.records import RunRecord, rank, read_runs, remove

_WORDS = ("ls", "show", "best", "rm", "sync")


def runs(words: Sequence[str]) -> None:
    """The command behind `runs`; `words` is what follows it."""
    outputs, flags, rest = Path("outputs"), set(), []
    for word in words:
        if word.startswith("outputs="):
            outputs = Path(word.removeprefix("outputs=")).expanduser()
        elif word in ("--yes", "--follow"):
            flags.add(word)
        elif word.startswith("-"):
            raise UserError(f"runs has no option '{word}'; it has --yes, for rm, and --follow, for sync")
        else:
            rest.append(word)
    if not outputs.is_dir():
        raise UserError(f"there is no folder {outputs}; runs lie where they were started, or give outputs=DIR")
    command, *rest = rest if rest and rest[0] in _WORDS else ["", *rest]
    match command:
        case "ls":
            _no_more("ls", rest)
            ls(outputs)
        case "show":
            show(outputs, rest)
        case "best":
            best(outputs, rest)
        case "rm":
            rm(outputs, rest, yes="--yes" in flags)
        case "sync":
            from diffusion_forcing.launch.sync import sync

            words = [word for word in rest if "=" in word]
            ids = [word for word in rest if "=" not in word]
            sync([_one(read_runs(outputs), outputs, name) for name in ids], words, follow="--follow" in flags)
        case _:
            page(outputs, rest)


def page(outputs: Path, ids: Sequence[str]) -> Path:
    """Write and open outputs/index.html. Returns its path."""
    every = read_runs(outputs)
    compared = [_one(every, outputs, name) for name in dict.fromkeys(ids)]
    if len(compared) > COMPARED:
        raise UserError(f"{len(compared)} runs are more than can be told apart; name at most {COMPARED}")
    path = outputs / "index.html"
    try:
        write_atomic(path, render(outputs, every, compared or every[:COMPARED]).encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    say(f"{len(every)} runs: {path}")
    if sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")):
        webbrowser.open(path.resolve().as_uri())
    return path


def ls(outputs: Path) -> None:
    """A line a run."""
    table = Table("id", "name", "status", "started", "step", "results", box=None, pad_edge=False)
    for run in read_runs(outputs):
        step = "" if run.step is None else f"{run.step:,}"
        table.add_row(run.id, run.name, run.status, run.started, step, headlines(run, 2))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def show(outputs: Path, ids: Sequence[str]) -> None:
    """Everything about one run."""
    if len(ids) != 1:
        raise UserError(f"runs show takes one run's id, got {len(ids)}; runs ls lists them")
    run = _one(read_runs(outputs), outputs, ids[0])
    say(
        f"{run.name} ({run.id}): {run.status}, started {run.started}, step {'none' if run.step is None else f'{run.step:,}'}"
    )
    say(f"  folder     {run.folder}")
    say(f"  command    {' '.join(str(word) for word in run.facts.get('command', []))}")
    for name, value in run.metrics.items():
        say(f"  {name}  {value:.6g}" if isinstance(value, float) else f"  {name}  {value}")
    for file in sorted((run.folder / "checkpoints").glob("*/checkpoint.json")):
        say(f"  checkpoint {file.parent}")


def best(outputs: Path, words: Sequence[str]) -> None:
    """The runs by a metric, best first."""
    if not 1 <= len(words) <= 2 or (len(words) == 2 and words[1] not in ("lowest", "highest")):
        raise UserError("runs best takes a metric and perhaps lowest or highest, as in: runs best training/loss lowest")
    highest = None if len(words) == 1 else words[1] == "highest"
    table = Table(words[0], "at step", "id", "name", "status", box=None, pad_edge=False)
    for entry in rank(read_runs(outputs), words[0], highest=highest):
        step = "result" if entry.step is None else f"{entry.step:,}"
        table.add_row(f"{entry.value:.6g}", step, entry.run.id, entry.run.name, entry.run.status)
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def rm(outputs: Path, ids: Sequence[str], *, yes: bool = False) -> None:
    """Delete runs: all that are named, or none where one of them cannot be."""
    if not ids:
        raise UserError("runs rm takes the ids of runs; runs ls lists them")
    every = read_runs(outputs)
    chosen = [_one(every, outputs, name) for name in dict.fromkeys(ids)]
    running = [run.id for run in chosen if run.status == "running"]
    if running:
        raise UserError(f"run {running[0]} is running: stop it first; nothing was removed")
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("runs rm asks before it deletes, and nobody can answer here; add --yes")
        for run in chosen:
            say(f"  {run.id}  {run.name}  {run.started}  {run.folder}")
        if input(f"delete {len(chosen)} run{'s' * (len(chosen) != 1)}, checkpoints and all? [y/N] ").lower() not in (
            "y",
            "yes",
        ):
            say("nothing was removed")
            return
    for run in chosen:
        remove(run, outputs)
        say(f"removed {run.id} {run.name}")


def _one(every: Sequence[RunRecord], outputs: Path, name: str) -> RunRecord:
    for run in every:
        if run.id == name or run.folder == Path(name):
            return run
    ids = [run.id for run in every]
    near = did_you_mean(name, [*ids, *_WORDS])
    raise UserError(
        f"no run '{name}' in {str(outputs)!r}{near}; {len(ids)} run{'s' * (len(ids) != 1)} there, runs ls lists them"
    )


def _no_more(command: str, words: Sequence[str]) -> None:
    if words:
        raise UserError(f"runs {command} takes nothing more, got '{words[0]}'")
