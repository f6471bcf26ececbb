"""The sub-commands: `inspect`, `convert` and `push` for checkpoints, `convert-robot` for demonstrations, `forecast`, `play`,
`serve-policy`, `new`, and `runs`: the page that compares the runs in `outputs/`, and `runs ls | show | best | rm | sync`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import keyword
import os
import re
import shlex
import shutil
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffusion_forcing.errors import UserError, check_minimum, did_you_mean, explaining_os_errors, require
from diffusion_forcing.files import write_atomic
from diffusion_forcing.launch.usage import COMMANDS, line_of
from diffusion_forcing.options import build_options, leaves
from diffusion_forcing.terminal import say, tell
from diffusion_forcing.tracking.page import COMPARED, comparison_page, headlines
from diffusion_forcing.tracking.records import (
    RunRecord,
    find_run,
    rank,
    read_config,
    read_run,
    read_runs,
    remove,
    started_with,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_forcing.checkpoints import LoadedCheckpoint
    from diffusion_forcing.launch.run import Plan
    from diffusion_forcing.serve.policy_server import ServeOptions

_NUMBERS_SHOWN = 8
_CHARACTERS_SHOWN = 100


class Parser(argparse.ArgumentParser):
    """The parser of a command's arguments in `COMMANDS`; a mistake is a UserError."""

    def __init__(self, command: str) -> None:
        super().__init__(command, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.command = COMMANDS[command]
        self.add_argument("places", nargs="*", default=[])
        for one in self.command.arguments:
            if one.is_option and one.value:
                self.add_argument(one.name, type=one.kind)
            elif one.is_option:
                self.add_argument(one.name, action="store_true")

    def read(self, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The positional arguments of `words`, as many as the command has, and the options that are given by name."""
        known, unknown = self.parse_known_intermixed_args(list(words))
        allowed = [one.name for one in self.command.arguments if one.is_option]
        for word in unknown:
            name = word.partition("=")[0]
            among = f"options: {', '.join(allowed)}" if allowed else line_of(self.prog)
            raise UserError(f"{self.prog} has no option '{name}'{did_you_mean(name, allowed)}; {among}")
        given = vars(known)
        places, names = given.pop("places"), self.command.positional
        needed = " and ".join(names) or "options only"
        require(len(places) == len(names), f"{self.prog} takes {needed}, got {len(places)}; {line_of(self.prog)}")
        for one in self.command.arguments:
            if one.required and one.name.removeprefix("--") not in given:
                self.error(f"{one.name} is missing")
        return places, given

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; {line_of(self.prog)}")


def inspect(words: Sequence[str]) -> None:
    """`inspect PATH`: print what a checkpoint is. PATH: a value of `load=`."""
    (path,), _ = Parser("inspect").read(words)
    from diffusion_forcing.checkpoints import load, resolve

    checkpoint = load(resolve(path))
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
    source, target = map(Path, Parser("convert").read(words)[0])
    from diffusion_forcing.checkpoints import export, load
    from diffusion_forcing.released.options import check_released

    checkpoint = load(source)
    require(checkpoint.kind == "released", f"{source} is in our format already; use load={source}")
    check_released(checkpoint)
    say(_summary(checkpoint))
    say(f"wrote {export(source, target)}; use load={target}")


def push(words: Sequence[str]) -> None:
    """`push PATH hf://user/repo`: upload a checkpoint. PATH: a value of `load=`. --results: the run that tested it."""
    (path, place), given = Parser("push").read(words)
    from diffusion_forcing.checkpoints import places, resolve
    from diffusion_forcing.tracking.records import find_run

    places.place_of(place)
    if name := given.get("results"):
        given["results"] = Path(name) if Path(name).exists() else find_run(Path("outputs"), name)
    uploaded = places.push(resolve(path), place, **given)
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


def convert_robot(words: Sequence[str]) -> None:
    """`convert-robot SRC DST`: demonstrations of a robot in another layout."""
    from diffusion_forcing.datasets.robot.convert import ConvertOptions, convert_robot

    folders, given = Parser("convert-robot").read(words)
    if "cameras" in given:
        given["cameras"] = _cameras(given["cameras"])
    options = ConvertOptions(**given)
    source, target = (Path(folder).expanduser() for folder in folders)
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


def forecast(words: Sequence[str]) -> list[str]:
    """`forecast FILE`: the command line that it stands for, which forecasts a file's series by the shipped forecaster."""
    settings = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    (file,), given = Parser("forecast").read([word for word in words if word not in settings])
    horizon, minutes = given["horizon"], given.get("minutes", 0.0)
    require(Path(file).expanduser().is_file(), f"{file} is not a file; give a CSV or Parquet file")
    check_minimum("--horizon", horizon, 1)
    require(0 <= minutes < 10_000, f"--minutes is {minutes:g}; give how long to train on the file, 0 or more")
    tasks = ["experiment.tasks=[forecast]"]
    if minutes:
        seconds = max(1, round(60 * minutes))
        clock = f"{seconds // 86400:02d}:{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        tasks = ["experiment.tasks=[training,forecast]", f"experiment.training.max_time={clock}"]
    quoted = file.replace("\\", "\\\\").replace("'", "\\'")
    data = ["dataset=ts_csv", f"dataset.path='{quoted}'", f"dataset.prediction_length={horizon}"]
    return [*data, "load=universal", "dataset.test_windows=0", "+name=forecast", *tasks, *settings]


def play(words: Sequence[str]) -> None:
    """`play`: the page on which the shipped models are played with."""
    _, given = Parser("play").read(words)
    given["browser"] = not given.pop("no_browser", False)
    try:
        from diffusion_forcing.serve.play.server import PlayOptions, create_app, serve
        from diffusion_forcing.serve.play.session import builders
    except ModuleNotFoundError as missing:
        raise UserError(f"play needs the package '{missing.name}': pip install 'diffusion-forcing[play]'") from missing
    options = PlayOptions(**given)
    app = create_app(builders(options.threads))

    def started(address: str) -> None:
        say(f"the page is at {address}; Ctrl-C ends it")
        if not options.local:
            say(
                f"warning: anyone who reaches {options.host} can use this page and this machine's processor; 127.0.0.1 is local only"
            )
        app.state.stages["world"].prepare()
        if options.browser:
            webbrowser.open(address)

    serve(app, options, started=started)
    say("the page has ended")


_PARTS = {"dataset": "robot_swap", "algorithm": "df_robot", "experiment": "exp_robot"}
_TOP_LEVEL = ("load", "name", "seed", "debug", "outputs")


def serve_policy(words: Sequence[str]) -> None:
    """`serve-policy load=NAME [address=… cameras=…] [key=value …]`: a trained policy answers a robot over ZeroMQ."""
    from diffusion_forcing.launch.compose import parse
    from diffusion_forcing.launch.quick import import_lightning
    from diffusion_forcing.launch.run import plan

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


def _serve(checked: Plan, options: ServeOptions) -> None:
    from diffusion_forcing.algorithms.robot.algorithm import Robot
    from diffusion_forcing.checkpoints import format as native
    from diffusion_forcing.datasets.robot.dataset import CAMERAS
    from diffusion_forcing.experiments.checkpointing import load_weights
    from diffusion_forcing.experiments.devices import device
    from diffusion_forcing.experiments.loader import seed_all
    from diffusion_forcing.serve.policy_server import PolicyServer

    seed_all(checked.settings.seed)
    with native.sized_by(checked.checkpoint):
        robot = checked.classes["algorithm"](checked.options["algorithm"])
    if not isinstance(robot, Robot):
        raise UserError(f"serve-policy needs a robot's policy, got {type(robot).__name__}; choose algorithm=df_robot")
    assert checked.checkpoint is not None
    load_weights(robot, native.load(checked.checkpoint))
    robot = robot.to(device()).eval()
    names = CAMERAS[: robot.options.n_cameras]
    server = PolicyServer(robot, options, cameras=names, say=say)
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stops.append(number))
    try:
        server.warm_up()
        say(f"{checked.checkpoint} answers at {server.address}; Ctrl-C ends it")
        say(f"  cameras {options.cameras}: {', '.join(names)}")
        say(f"  a reply is {robot.options.action_stack} actions of 8 float32 numbers; see examples/robot_client.py")
        if not options.local:
            say("warning: anyone who reaches this address can move the robot; tcp://127.0.0.1:… is local only")
        server.serve(lambda: bool(stops))
    finally:
        say(server.report())
        server.close()


TEMPLATE_NAME = "my_project"
"""A complete project in template/, whose name is replaced in file names and texts."""
_NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*", "outputs", "data")
_PROJECT_NAME = re.compile(r"[a-z][a-z0-9_]*")


def new(words: Sequence[str]) -> None:
    """`new NAME`: write a project of the user's own from the template that ships with the package."""
    (project,), _ = Parser("new").read(words)
    folder = Path(project).expanduser()
    name = write_project(folder)
    parts = "dataset=my_dataset algorithm=my_algorithm experiment=my_experiment"
    say(f"wrote {folder}: a dataset, an algorithm, an experiment with a task of its own, their yaml, and tests")
    say("try:")
    say(f"  cd {folder}")
    say(f"  diffusion-forcing {parts} experiment.tasks=[training,my_task]")
    say(f"  python -m pytest      {name}'s own tests")


def write_project(folder: Path) -> str:
    """Write the template as the project `folder`. Returns its name, that of the folder.

    UserError if the name is not possible, or the folder exists and is not empty.
    """
    name = folder.resolve().name
    check_name(name)
    existed = folder.exists()
    with explaining_os_errors(f"cannot write {folder}", "choose a folder you may write to"):
        is_free = not existed or (folder.is_dir() and not any(folder.iterdir()))
        require(is_free, f"{folder} exists already and is not an empty folder; choose another name or remove it")
        try:
            _write(template(), folder, name)
        except OSError:
            if not existed:  # leave no incomplete project
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return name


def check_name(name: str) -> None:
    """UserError if `name` cannot be the name of a Python package, or is already in use."""
    if not _PROJECT_NAME.fullmatch(name) or keyword.iskeyword(name):
        near = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
        hint = f"; write {near}" if _PROJECT_NAME.fullmatch(near) and not keyword.iskeyword(near) else ""
        raise UserError(f"'{name}' cannot name a Python package: use lower-case letters, digits and _{hint}")
    if name in sys.stdlib_module_names or name in ("tests", "configurations", "outputs", "data") or _is_installed(name):
        raise UserError(
            f"'{name}' is already the name of a Python package or of a folder in the project; write my_{name}"
        )


def template() -> Path:
    """The template's folder: beside the package in a checkout, inside it where it is installed."""
    package = Path(__file__).resolve().parents[1]
    for place in (package.parent, package):
        if (place / "template" / TEMPLATE_NAME / "pyproject.toml").is_file():
            return place / "template" / TEMPLATE_NAME
    raise UserError(f"the template of a project is missing in {package}; install diffusion-forcing again")


def _write(source: Path, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = sorted(source.iterdir())
    left_out = _NOT_COPIED(str(source), [entry.name for entry in entries])
    for entry in entries:
        if entry.name in left_out:
            continue
        # git would apply a .gitignore to the template itself
        target = ".gitignore" if entry.name == "gitignore" else entry.name.replace(TEMPLATE_NAME, name)
        if entry.is_dir():
            _write(entry, folder / target, name)
        else:
            (folder / target).write_text(entry.read_text("utf-8").replace(TEMPLATE_NAME, name), "utf-8")


def _is_installed(name: str) -> bool:
    """Whether `import name` finds a module outside the working directory."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None and not Path(found.origin).is_relative_to(Path.cwd())


# -------------------------------------------------------------------------------------------------------------- runs

_OF_RUNS = ("ls", "show", "best", "rm", "sync")


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
    command = rest.pop(0) if rest and rest[0] in _OF_RUNS else "page"
    every = read_runs(outputs)
    if command == "ls":
        require(not rest, f"runs ls takes no further words, got '{' '.join(rest)}'")
        return _list_runs(every)
    if command == "best":
        return _rank_runs(every, rest)
    settings = [word for word in rest if command == "sync" and "=" in word]
    chosen = [_run_of(outputs, name) for name in dict.fromkeys(rest) if name not in settings]
    if command == "page":
        return _compare_runs(outputs, every, chosen)
    is_right = len(chosen) == 1 if command == "show" else bool(chosen)
    require(is_right, f"runs {command} takes the id of a run, got {len(chosen)}; runs ls lists them")
    if command == "show":
        _show_run(chosen[0])
    elif command == "rm":
        _remove_runs(outputs, chosen, yes="--yes" in flags)
    else:
        _sync_runs(chosen, settings, follow="--follow" in flags)


def _compare_runs(outputs: Path, every: Sequence[RunRecord], compared: Sequence[RunRecord]) -> None:
    """Write and open outputs/index.html, with `compared` (else the newest) side by side."""
    require(len(compared) <= COMPARED, f"at most {COMPARED} runs can be compared, got {len(compared)}")
    path = outputs / "index.html"
    with explaining_os_errors(f"cannot write {path}", "make room or pass outputs=DIR"):
        write_atomic(path, comparison_page(outputs, every, compared or every[:COMPARED]))
    say(f"{len(every)} runs: {path}")
    if sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")):
        webbrowser.open(path.resolve().as_uri())


def _list_runs(every: Sequence[RunRecord]) -> None:
    """Print one line for each run."""
    steps = ["" if run.step is None else f"{run.step:,}" for run in every]
    rows = [(r.id, r.name, r.status, r.started, step, headlines(r, 2)) for r, step in zip(every, steps, strict=True)]
    _print_table(("id", "name", "status", "started", "step", "results"), rows)


def _show_run(run: RunRecord) -> None:
    """Print everything about one run."""
    step = "" if run.step is None else f", step {run.step:,}"
    say(f"{run.name} ({run.id}): {run.status}, started {run.started}{step}")
    if "error" in run.metadata:
        say(f"  error: {run.metadata['error']}")
    say(f"  folder     {run.folder}")
    say(f"  command    {shlex.join(started_with(run.metadata.get('command', [])))}")
    for name, value in run.metrics.items():
        say(f"  {name}  {value:.6g}" if isinstance(value, float) else f"  {name}  {value}")
    for file in sorted((run.folder / "checkpoints").glob("*/checkpoint.json")):
        say(f"  checkpoint {file.parent}")


def _rank_runs(every: Sequence[RunRecord], words: Sequence[str]) -> None:
    """Print the runs that have a metric, the best first."""
    if len(words) != 2 or words[1] not in ("lowest", "highest"):
        raise UserError("runs best takes a metric and lowest or highest, as in: runs best training/loss lowest")
    rows = [
        (f"{value:.6g}", "result" if step is None else f"{step:,}", run.id, run.name, run.status)
        for run, value, step in rank(every, words[0], highest=words[1] == "highest")
    ]
    _print_table((words[0], "at step", "id", "name", "status"), rows)


def _remove_runs(outputs: Path, chosen: Sequence[RunRecord], *, yes: bool = False) -> None:
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


def _sync_runs(chosen: Sequence[RunRecord], words: Sequence[str], *, follow: bool = False) -> None:
    """Upload to W&B what it lacks of each run, one after the other; any run, also one that was tracked locally.

    `words`: wandb.KEY=VALUE. `follow`: a run that another machine is training, until it ends. UserError unless W&B then
    has all of each.
    """
    # Hydra and omegaconf take time to import, and no other runs command needs them.
    from omegaconf import OmegaConf

    from diffusion_forcing.launch.compose import compose_on, resolved
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


def _run_of(outputs: Path, name: str) -> RunRecord:
    """The run of an id or in a folder."""
    run = read_run(Path(name)) or read_run(find_run(outputs, name))
    if run is None:
        raise UserError(f"the run.json of run {name} is damaged; its name is missing")
    return run


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)
