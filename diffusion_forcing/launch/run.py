"""A run, from its command line to its last task.

`plan` composes and checks everything in the order of its cost: the command line, the yaml files, the checkpoint, the options of the three
parts, the names of the tasks. Only then does `start` make the run's folder, build every part once, top-down, and run the tasks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from diffusion_forcing import __version__
from diffusion_forcing.errors import UserError, check_choice, check_range, explaining_os_errors, first_line, require
from diffusion_forcing.experiments.processes import is_main_process
from diffusion_forcing.files import read_json, run_folders
from diffusion_forcing.launch.compose import (
    PARTS,
    as_yaml,
    check_targets,
    compose,
    compose_on,
    read_overrides,
    read_part,
    resolved,
)
from diffusion_forcing.launch.quick import import_lightning
from diffusion_forcing.launch.slurm import ClusterOptions, is_new_job, requeued_when_preempted
from diffusion_forcing.launch.structure import adopt_, check_task
from diffusion_forcing.options import build_options
from diffusion_forcing.terminal import say, tell
from diffusion_forcing.tracking.records import find_run, read_config
from diffusion_forcing.tracking.run import NullRun, Run, Tracker
from diffusion_forcing.tracking.wandb import WandbOptions

_RUN_FOLDER = "DIFFUSION_FORCING_RUN"
"""Environment variable with the run's folder, for the processes that Lightning starts with the same command."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The top level of the configuration. The sections of the three parts are typed by the parts' own `Options`."""

    name: str | None = None
    seed: int = 0
    seeds: int = 1
    """Number of runs with successive seeds."""
    debug: bool = False
    outputs: str = "outputs"
    load: str | None = None
    resume: str | None = None
    wandb: WandbOptions = field(default_factory=WandbOptions)
    experiment: Any = None
    dataset: Any = None
    algorithm: Any = None
    cluster: Any = None
    tracking: Any = None
    choices: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("name", "outputs", "load", "resume"):
            value = getattr(self, key)
            require(value != "", f"{key}= is empty: give {key}=VALUE or leave it out")
            require("\0" not in (value or ""), f"{key}= contains a null byte")
        # A shell leaves outputs=~/runs as it is.
        object.__setattr__(self, "outputs", str(Path(self.outputs).expanduser()))
        check_range("seeds", self.seeds, 1, 1000)
        check_range("seed", self.seed, 0, 2**32 - self.seeds)
        if self.resume is not None:
            require(self.seeds == 1, "seeds= starts new runs and resume= continues one: give one of them")
            only = "load= starts a new run from a checkpoint and resume= continues a run: give one of them"
            require(self.load is None, only)

    @property
    def run_name(self) -> str:
        """The name given, else that of the dataset."""
        return self.name or str(self.choices.get("dataset") or "run")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked command line: all that `start` needs, with nothing built."""

    settings: Settings
    config: DictConfig
    classes: dict[str, type]
    options: dict[str, Any]
    trackers: tuple[tuple[type[Tracker], Any], ...] = ()
    """Class and options of each tracker beside the run's folder."""
    checkpoint: Path | None = None
    adopted: tuple[str, ...] = ()
    """Options that the checkpoint has changed, as key=value."""
    resumed: Path | None = None
    """Folder of the run that is resumed."""
    new_job: bool = False
    """Whether `resumed` was made for a Slurm job and only starts now."""
    cluster: ClusterOptions | None = None
    """Where to submit the run, instead of running it here."""


def plan(words: Sequence[str]) -> Plan:
    """Read and check the command line, the yaml files and the checkpoint's header.

    Builds no part and writes no file, except for a checkpoint that is downloaded from W&B. Raises UserError.
    """
    # The command line and the yaml files, or those that a resumed run has saved.
    overrides = read_overrides(words)
    overridden = {override.key: override.value for override in overrides if not override.delete and not override.group}
    outputs = Path(overridden.get("outputs") or "outputs").expanduser()
    resumed = _find_run(overridden["resume"], outputs, words) if overridden.get("resume") else None
    new_job = resumed is not None and is_new_job(resumed)
    if resumed is None:
        config = compose(words)
    else:
        with explaining_os_errors(f"run {resumed} cannot be resumed: its config.yaml cannot be read", "copy it again"):
            saved = read_config(resumed)
        config = compose_on(saved, words)
        config["resume" if new_job else "load"] = None if new_job else overridden.get("load")
        config["outputs"] = str(outputs)

    mapping = resolved(config)
    if resumed is not None:
        check_targets(mapping, overridden, own=not Path.cwd().is_relative_to(resumed.resolve()))
    everywhere = list(_dotted_keys(mapping))
    settings = build_options(Settings, mapping, "", everywhere=everywhere)
    import_lightning()

    # The checkpoint, which may set options.
    spec = settings.resume or settings.load
    if resumed is not None and not new_job and not _exists(str(spec)):  # a run's id, not one of its checkpoints
        spec = str(resumed)
    checkpoint = None
    if spec:
        wandb, tracked = settings.wandb, "wandb" in (mapping.get("tracking") or {})
        outputs = Path(settings.outputs)
        checkpoint = _find(spec, outputs, wandb, tracked=tracked, here=_local_checkpoint)
    adopted = []
    if checkpoint and settings.load and not new_job:
        check_task(mapping, checkpoint)
        adopted = adopt_(config, checkpoint, overridden)
        mapping = resolved(config)

    # The options of the three parts, and whether they fit together.
    parts = {where: read_part(mapping[where], where, everywhere=everywhere) for where in PARTS}
    classes = {where: cls for where, (cls, _) in parts.items()}
    options = {where: options for where, (_, options) in parts.items()}
    _check_tasks(classes["experiment"], classes["algorithm"], options["experiment"].tasks)
    _check_parts(classes, options)
    return Plan(
        settings=settings,
        config=config,
        classes=classes,
        options=options,
        trackers=tuple(_read_trackers(mapping, everywhere)),
        checkpoint=checkpoint,
        adopted=tuple(adopted),
        resumed=resumed,
        new_job=new_job,
        cluster=None if settings.cluster is None else build_options(ClusterOptions, settings.cluster, "cluster"),
    )


def start(plan: Plan) -> Run | NullRun:
    """Build the parts and run the tasks in order. Returns the finished run; an error marks the run as failed."""
    run = _open_run(plan)
    saved = plan.config.copy()
    saved["resume"] = None  # the file describes the run, not this start of it
    run.config(as_yaml(saved))
    if not isinstance(run, NullRun):
        say(f"run {run.id}: {run.folder}")
    run.describe(_facts(plan))
    with requeued_when_preempted(f"continue with resume={run.id}"), _finishing(run), _explained_memory_errors():
        run.follow([cls(options) for cls, options in plan.trackers], resolved(plan.config))
        perform(plan, run)
    return run


def _facts(plan: Plan) -> dict[str, Any]:
    """What results.json says of the run."""
    settings, choices, options = plan.settings, plan.settings.choices, plan.options
    dataset, source = options["dataset"], settings.load or (plan.checkpoint and str(plan.checkpoint))
    return {
        "task": getattr(plan.classes["algorithm"], "task", None),
        "tasks": list(options["experiment"].tasks),
        "dataset": {"name": choices.get("dataset"), "id": getattr(dataset, "env_id", None)},
        "model": {"name": choices.get("algorithm"), "checkpoint": source},
        "seed": settings.seed,
        "version": f"diffusion-forcing {__version__}",
    }


def perform(plan: Plan, run: Any) -> None:
    """Build the three parts and run the tasks in order, with results written to `run`."""
    experiment = build(plan, run)
    for task in plan.options["experiment"].tasks:
        experiment.run_task(task)


def build(plan: Plan, run: Any) -> Any:
    """The experiment of `plan`, with its dataset and algorithm, which writes to `run`; every generator is seeded."""
    import torch

    from diffusion_forcing.checkpoints.format import sized_by
    from diffusion_forcing.experiments.debug import rehearse
    from diffusion_forcing.experiments.loader import seed_all

    settings, classes, options = plan.settings, plan.classes, plan.options
    if settings.debug and hasattr(classes["experiment"], "one_batch"):
        # every task on one batch first
        seed_all(settings.seed)
        torch.autograd.set_detect_anomaly(True)
        say = tell if is_main_process() else lambda line: None
        rehearse(classes, options, seed=settings.seed, load=plan.checkpoint, say=say)
    seed_all(settings.seed)
    torch.autograd.set_detect_anomaly(settings.debug)
    resumes = plan.resumed is not None and not plan.new_job
    dataset = classes["dataset"](options["dataset"])
    with sized_by(plan.checkpoint):
        algorithm = classes["algorithm"](options["algorithm"])
    return classes["experiment"](
        options["experiment"],
        dataset=dataset,
        algorithm=algorithm,
        run=run,
        seed=settings.seed,
        debug=settings.debug,
        load=None if resumes else plan.checkpoint,
        resume=plan.checkpoint if resumes else None,
    )


def _open_run(plan: Plan) -> Run | NullRun:
    """The run's folder, new or resumed; a process other than the main one writes nothing."""
    if not is_main_process():
        return NullRun(plan.resumed or Path(os.environ.get(_RUN_FOLDER, "outputs/null-run")))
    settings = plan.settings
    run = Run.open(plan.resumed) if plan.resumed else Run.create(Path(settings.outputs), settings.run_name)
    os.environ[_RUN_FOLDER] = str(run.folder.resolve())
    return run


@contextlib.contextmanager
def _finishing(run: Run | NullRun) -> Iterator[None]:
    """Mark `run` as finished, interrupted or failed at the end of the block."""
    status, error = "failed", ""
    try:
        yield
        status = "finished"
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    except BaseException as failure:
        error = str(failure) if isinstance(failure, UserError) else f"{type(failure).__name__}: {first_line(failure)}"
        raise
    finally:
        os.environ.pop(_RUN_FOLDER, None)
        run.finish(status, error)


@contextlib.contextmanager
def _explained_memory_errors() -> Iterator[None]:
    """Turn out-of-memory errors, caused by sizes that the user chose, into a one-line UserError."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as failure:
        text = str(failure)
        out_of_memory = any(words in text for words in ("allocate memory", "not enough memory", "out of memory"))
        uncountable = "overflow" in text and "size" in text  # more bytes than an integer holds
        if not (isinstance(failure, (MemoryError, torch.OutOfMemoryError)) or out_of_memory or uncountable):
            raise
        raise UserError(
            f"not enough memory ({first_line(failure)}): reduce the task's batch_size, the network or the data"
        ) from failure


def _check_tasks(experiment: type, algorithm: type, tasks: Sequence[str]) -> None:
    """UserError for a task that the experiment does not have, or that calls a step which the algorithm does not have."""
    from lightning.pytorch import LightningModule

    from diffusion_forcing.experiments.base import BaseExperiment, task_names

    known = task_names(experiment)
    for task in tasks:
        check_choice("experiment.tasks", task, known)
        step = f"{task}_step"
        needs_step = hasattr(LightningModule, step) and getattr(experiment, task) is getattr(BaseExperiment, task, None)
        if needs_step and getattr(algorithm, step, None) in (None, getattr(LightningModule, step)):
            raise UserError(f"experiment.tasks: '{task}' needs a {step}, which {algorithm.__name__} does not have")


def _check_parts(classes: Mapping[str, type], options: Mapping[str, Any]) -> None:
    """UserError if the parts are for different tasks, or if the experiment's own `check` refuses their options."""
    experiment, algorithm = (getattr(classes[where], "task", "") for where in ("experiment", "algorithm"))
    fitting = "choose matching ones, as in experiment=exp_planning algorithm=df_planning"
    is_same = experiment == algorithm or not (experiment and algorithm)
    require(is_same, f"the experiment is for {experiment}, the algorithm for {algorithm}; {fitting}")
    check = getattr(classes["experiment"], "check", None)
    if callable(check):
        check(**options)


def _read_trackers(config: Mapping[str, Any], everywhere: Sequence[str]) -> Iterator[tuple[type[Tracker], Any]]:
    """Class and options of each tracker whose mode is not disabled. config: resolved."""
    sections = config.get("tracking") or {}
    is_group = isinstance(sections, Mapping)
    require(is_group, f"tracking must be a group, chosen as tracking=[wandb,tensorboard]; got {sections!r}")
    for name, section in sections.items():
        where = f"tracking.{name}"
        is_section = isinstance(section, Mapping)
        require(is_section, f"{where} must be a tracker's options with _target_, got {section!r}")
        cls, options = read_part(section, where, everywhere=everywhere)
        is_tracker = issubclass(cls, Tracker)
        require(is_tracker, f"{where}._target_={cls.__name__} is no subclass of {Tracker.__module__}.Tracker")
        if getattr(options, "mode", None) != "disabled":
            yield cls, options


def _find_run(spec: str, outputs: Path, words: Sequence[str]) -> Path:
    """The folder of the run that resume= names."""
    if _exists(spec) or spec in run_folders(outputs):
        return _local_run(spec, outputs)
    config = compose([word for word in words if word.lstrip("+").startswith(("wandb.", "tracking="))])
    wandb = build_options(WandbOptions, OmegaConf.to_container(config["wandb"]), "wandb")
    return _find(spec, outputs, wandb, tracked="wandb" in (config.get("tracking") or {}), here=_local_run)


def _find(spec: str, outputs: Path, wandb: WandbOptions, *, tracked: bool, here: Callable[[str, Path], Path]) -> Path:
    """What load= or resume= names: found `here`, on this machine, or downloaded from W&B, if that is used."""
    try:
        return here(spec, outputs)
    except UserError as missing:
        from diffusion_forcing.launch import fetch

        if _exists(spec) or not fetch.asks_wandb(spec, wandb, tracked=tracked):
            raise
        try:
            return (fetch.fetch_run if here is _local_run else fetch.fetch_checkpoint)(spec, outputs, wandb)
        except UserError as failure:
            raise UserError(f"{missing}; nor on W&B: {failure}") from failure


def _exists(spec: str) -> bool:
    """Whether the value of load= or resume= is an existing path."""
    return os.path.exists(os.path.expanduser(spec))


def _local_run(spec: str, outputs: Path) -> Path:
    """The folder of a local run by its id, its folder, or a checkpoint inside it."""
    if not _exists(spec):
        return find_run(outputs, spec)
    path = Path(spec).expanduser().resolve()
    for folder in (path, *path.parents):
        if (folder / "run.json").is_file():
            return folder
    raise UserError(f"resume={spec} is not in a run's folder; use load={spec} to start a new run from its weights")


def _local_checkpoint(spec: str, outputs: Path) -> Path:
    # imports torch, which the error about a mistyped key should not wait for
    from diffusion_forcing.checkpoints.places import resolve

    return resolve(spec, outputs)


def _dotted_keys(mapping: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        yield f"{where}{key}"
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{where}{key}.")


def report(run: Run | NullRun) -> None:
    """Where the run's results are; nothing for a run that keeps nothing."""
    if isinstance(run, NullRun):
        return
    path = run.folder.resolve()
    say(f"run {run.id} is done: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    for name, meaning in (
        ("index.html", "the run's page: open it in a browser"),
        ("pictures", "images and videos"),
        ("tables", "tables, as CSV and JSON"),
        ("forecast.npz", "all sampled paths"),
        ("metrics.json", "the results as numbers; results.json: the same for leaderboards"),
        ("checkpoints", "checkpoints, for load= and resume="),
    ):
        if (path / name).is_file() or ((path / name).is_dir() and any((path / name).iterdir())):
            say(f"  {name:<13} {meaning}")


def run_seeds(words: Sequence[str], first: Plan) -> Run | None:
    """Run `words` with every seed that the plan `first` asks for. Returns the run with the table; None in other processes.

    A failure ends it; finished runs stay, and a line says how to continue.
    """
    settings = first.settings
    seeds = range(settings.seed, settings.seed + settings.seeds)
    results: list[dict[str, Any]] = []
    for number, seed in enumerate(seeds):
        say(f"seed {seed} ({number + 1} of {len(seeds)})")
        try:
            run = start(plan([*words, f"seed={seed}", "seeds=1", f"+name={settings.run_name}_seed{seed}"]))
        except BaseException:
            say(f"{number} of {len(seeds)} seeds are finished; continue with seed={seed} seeds={seeds.stop - seed}")
            raise
        report(run)
        if isinstance(run, Run):
            results.append({"seed": seed, "run": run.id, **numbers(run.folder)})
    return _summarise(first, results) if is_main_process() else None


def numbers(folder: Path) -> dict[str, float]:
    """The numbers in a run's metrics.json."""
    found = read_json(folder / "metrics.json", {})
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def spread(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of every number that all runs have."""
    names = [name for name in results[0] if name not in ("seed", "run") and all(name in row for row in results)]
    return {name: (mean(row[name] for row in results), stdev(row[name] for row in results)) for name in names}


def _summarise(first: Plan, results: Sequence[Mapping[str, Any]]) -> Run:
    """Write the table of `results` as a run, and print it."""
    name, spreads = first.settings.run_name, spread(results)
    means = {key: value for key, (value, _) in spreads.items()}
    deviations = {key: value for key, (_, value) in spreads.items()}
    run = Run.create(Path(first.settings.outputs), f"{name}_seeds")
    run.config(as_yaml(first.config))
    rows = [*results, {"seed": "mean", **means}, {"seed": "std", **deviations}]
    run.table("seeds", rows, caption=f"{len(results)} seeds, mean and sample standard deviation")
    run.summary({**means, **{f"{key}_std": value for key, value in deviations.items()}, "seeds": len(results)})
    run.finish("finished")
    table = Table("result", f"mean of {len(results)} seeds", "± std", title=name)
    for key in means:
        table.add_row(key, f"{means[key]:.4g}", f"{deviations[key]:.2g}")
    Console(highlight=False).print(table)
    report(run)
    say(f"  {run.folder / 'tables' / 'seeds.csv'}: every seed")
    return run
