"""A run from its command line to its last task: composes, checks, builds every part once, top-down, and steps aside.

Whatever can be wrong is found in the order of what it costs: the command line, the yaml files, the checkpoint named, the options of the
three parts, the tasks' names; only then is a folder made and something built.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.experiments.processes import is_main_process
from diffusion_forcing.launch.compose import as_yaml, compose, compose_on, resolved
from diffusion_forcing.launch.fetch import asks_wandb, fetch_checkpoint, fetch_run
from diffusion_forcing.launch.options import build_options, read_part
from diffusion_forcing.launch.overrides import first_line, group_names, parse
from diffusion_forcing.launch.settings import Settings
from diffusion_forcing.launch.slurm import ClusterOptions, is_new_job, requeued_when_preempted
from diffusion_forcing.launch.structure import adopt_, check_task
from diffusion_forcing.tracking.run import NullRun, Run
from diffusion_forcing.tracking.tracker import TrackedRun, Tracker
from diffusion_forcing.tracking.wandb import WandbOptions

# More memory than there is, asked for by a size that somebody chose, is said in one line.


@contextlib.contextmanager
def too_large_is_said() -> Iterator[None]:
    """What asks for more memory than there is becomes a UserError: it is a size that somebody chose."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as failure:
        reason = first_line(failure)
        wants_memory = any(words in str(failure) for words in ("allocate memory", "not enough memory", "out of memory"))
        too_large = "overflow" in str(failure) and "size" in str(failure)  # more bytes than can be counted
        if not isinstance(failure, (MemoryError, torch.OutOfMemoryError)) and not (wants_memory or too_large):
            raise
        raise UserError(
            f"there is not enough memory ({reason}); make it smaller: the batch_size of the task, the sizes of the network, or the data's"
        ) from failure


# Who is told of a run beside its own folder: the sections of `tracking`, each a class by `_target_` and its options.


def read_trackers(config: Mapping[str, Any], *, everywhere: Sequence[str] = ()) -> list[tuple[type[Tracker], Any]]:
    """Class and options of each tracker in `config`, which is resolved; one whose `mode` is disabled is left out."""
    sections = config.get("tracking") or {}
    if not isinstance(sections, Mapping):
        raise UserError(f"tracking is a group of trackers, chosen as tracking=[wandb,tensorboard]; got {sections!r}")
    found = []
    for name, section in sections.items():
        where = f"tracking.{name}"
        if not isinstance(section, Mapping):
            raise UserError(f"{where} is a tracker, with _target_ and its options; got {section!r}")
        cls, options = read_part(section, where, everywhere=everywhere)
        if not issubclass(cls, Tracker):
            raise UserError(
                f"{where}._target_ names a class that is no diffusion_forcing.tracking.tracker.Tracker: {cls.__name__}"
            )
        if getattr(options, "mode", None) != "disabled":
            found.append((cls, options))
    return found


_PARTS = ("dataset", "algorithm", "experiment")
_RUN_FOLDER = "DIFFUSION_FORCING_RUN"
"""Environment variable that tells the further ranks, started by Lightning with the same command, where rank 0 writes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that was checked, nothing built: what `start` needs."""

    settings: Settings
    config: DictConfig
    classes: dict[str, type]
    options: dict[str, Any]
    checkpoint: Path | None
    resumed: Path | None
    taken: tuple[str, ...] = ()
    """What the checkpoint's structure changed, as key=value."""
    trackers: tuple[tuple[type[Tracker], Any], ...] = ()
    """Class and options of each that is told of the run, beside its folder."""
    new_job: bool = False
    """Whether `resumed` is a run that was made for a Slurm job and begins only now."""
    cluster: ClusterOptions | None = None
    """Where to submit it instead of running it here."""


def plan(words: Sequence[str]) -> Plan:
    """Read the command line and the yaml files, and check all of it. Raises UserError; builds no part, makes no file but what
    comes from W&B."""
    given = _given(words)
    outputs = Path(given.get("outputs") or "outputs")
    resumed = _run_here_or_fetched(given["resume"], outputs, words) if given.get("resume") else None
    new_job = False
    if resumed is None:
        config = compose(words)
    else:
        config = compose_on(_saved_config(resumed), words)
        new_job = is_new_job(resumed)
        config["resume" if new_job else "load"] = None if new_job else given.get("load")
    mapping = resolved(config)
    everywhere = list(_dotted(mapping))
    settings = build_options(Settings, mapping, "", everywhere=everywhere)
    spec = settings.resume or settings.load
    if resumed is not None and not new_job and not _is_there(str(spec)):  # an id, not one of its checkpoints
        spec = str(resumed)
    tracked = "wandb" in (mapping.get("tracking") or {})
    checkpoint = (
        _checkpoint_here_or_fetched(spec, Path(settings.outputs), settings.wandb, tracked=tracked) if spec else None
    )
    taken = []
    if checkpoint and settings.load and not new_job:
        check_task(mapping, checkpoint)
        taken = adopt_(config, checkpoint, given)
    mapping = resolved(config) if taken else mapping
    parts = {where: read_part(mapping[where], where, everywhere=everywhere) for where in _PARTS}
    classes = {where: part[0] for where, part in parts.items()}
    options = {where: part[1] for where, part in parts.items()}
    check_tasks(classes["experiment"], options["experiment"].tasks)
    check_steps(classes["experiment"], classes["algorithm"], options["experiment"].tasks)
    check_parts(classes, options)
    trackers = read_trackers(mapping, everywhere=everywhere)
    return Plan(
        settings=settings,
        config=config,
        classes=classes,
        options=options,
        checkpoint=checkpoint,
        resumed=resumed,
        taken=tuple(taken),
        trackers=tuple(trackers),
        new_job=new_job,
        cluster=None if settings.cluster is None else build_options(ClusterOptions, settings.cluster, "cluster"),
    )


def start(checked: Plan) -> Run | NullRun:
    """Build the parts and run the tasks in order. Returns the run, finished; a run that fails is marked so and the error goes on."""
    run = open_run(checked)
    run.config(as_yaml(_to_save(checked.config)))
    with requeued_when_preempted(f"go on with resume={run.id}"), finishing(run), too_large_is_said():
        if isinstance(run, TrackedRun):
            run.follow([cls(options) for cls, options in checked.trackers], resolved(checked.config))
        perform(checked, run)
    return run


def perform(checked: Plan, run: Any) -> None:
    """Build the three parts and run the tasks in order; results go to `run`."""
    import torch

    from diffusion_forcing.experiments import loader as randomness

    settings, classes, options = checked.settings, checked.classes, checked.options
    if settings.debug:
        _rehearse(checked)
    randomness.seed_all(settings.seed)
    torch.autograd.set_detect_anomaly(settings.debug)
    experiment = classes["experiment"](
        options["experiment"],
        dataset=classes["dataset"](options["dataset"]),
        algorithm=classes["algorithm"](options["algorithm"]),
        run=run,
        seed=settings.seed,
        debug=settings.debug,
        load=checked.checkpoint if checked.resumed is None or checked.new_job else None,
        resume=checked.checkpoint if checked.resumed and not checked.new_job else None,
    )
    for task in options["experiment"].tasks:
        experiment.run_task(task)


def _rehearse(checked: Plan) -> None:
    """debug=True: every task once over one batch, for an experiment that can."""
    import torch

    from diffusion_forcing.experiments import loader as randomness
    from diffusion_forcing.experiments.debug import rehearse

    if not hasattr(checked.classes["experiment"], "one_batch"):
        return
    randomness.seed_all(checked.settings.seed)
    torch.autograd.set_detect_anomaly(True)
    say = _say_on_stderr if is_main_process() else lambda line: None
    rehearse(checked.classes, checked.options, seed=checked.settings.seed, load=checked.checkpoint, say=say)


def _say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def finishing(run: Run | NullRun) -> Iterator[None]:
    """Marks `run` finished, interrupted or failed, whichever ends the block."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        run.finish("interrupted")
        raise
    except BaseException:
        run.finish("failed")
        raise
    finally:
        os.environ.pop(_RUN_FOLDER, None)
    run.finish("finished")


def check_tasks(experiment: type, tasks: Sequence[str]) -> None:
    """Raises UserError for a name that is no task of the experiment, before anything is built."""
    from diffusion_forcing.experiments.base import task_names

    known = task_names(experiment)
    for task in tasks:
        if task not in known:
            near = did_you_mean(task, known)
            raise UserError(f"experiment.tasks: '{task}' is no task{near}; there are: {', '.join(known)}")


def check_steps(experiment: type, algorithm: type, tasks: Sequence[str]) -> None:
    """Raises UserError for a task that runs on Lightning, of an algorithm that has no step for it."""
    from lightning.pytorch import LightningModule

    from diffusion_forcing.experiments.base import BaseExperiment

    for task in ("training", "validation", "test"):
        on_lightning = getattr(experiment, task, None) is getattr(BaseExperiment, task)
        own = getattr(algorithm, f"{task}_step", None)
        if task in tasks and on_lightning and own in (None, getattr(LightningModule, f"{task}_step")):
            raise UserError(f"experiment.tasks: {algorithm.__name__} has no {task}_step, which the task '{task}' calls")


def check_parts(classes: Mapping[str, type], options: Mapping[str, Any]) -> None:
    """Raises UserError where the parts do not go together: an algorithm of another task, or what the experiment's own
    `check(dataset=…, algorithm=…, experiment=…)` finds in their options, where it has one."""
    tasks = {where: getattr(classes[where], "task", "") for where in ("experiment", "algorithm")}
    if all(tasks.values()) and tasks["experiment"] != tasks["algorithm"]:
        raise UserError(
            f"experiment is for {tasks['experiment']} and algorithm for {tasks['algorithm']}; "
            "choose two that go together, as in experiment=exp_planning algorithm=df_planning"
        )
    check = getattr(classes["experiment"], "check", None)
    if callable(check):
        check(**options)


def _is_there(spec: str) -> bool:
    """Whether `spec`, from load= or resume=, is a path that exists; UserError for one that no path can be."""
    try:
        return Path(spec).exists()
    except OSError as failure:
        raise UserError(f"load= or resume= names no checkpoint and no run: {failure.strerror} ({spec})") from failure


def run_folder(spec: str, outputs: Path) -> Path:
    """The folder of the run that `resume=spec` means: a run's id, its folder, or a checkpoint inside it."""
    path = Path(spec)
    if not _is_there(spec):
        return Run.find(outputs, spec)
    for folder in (path.resolve(), *path.resolve().parents):
        if (folder / "run.json").is_file():
            return folder
    raise UserError(f"resume={spec} is not in a run's folder; to start a new run from its weights use load={spec}")


def _checkpoint(spec: str, outputs: Path) -> Path:
    """The checkpoint on the disk. Imported here: it needs torch, whose import a mistyped key should not wait for."""
    from diffusion_forcing.checkpoints.resolve import resolve

    return resolve(spec, outputs)


def _checkpoint_here_or_fetched(spec: str, outputs: Path, wandb: WandbOptions, *, tracked: bool) -> Path:
    """The checkpoint that load= means, on the disk or from W&B."""
    try:
        return _checkpoint(spec, outputs)
    except UserError as here:
        if _is_there(spec) or not asks_wandb(spec, wandb, tracked=tracked):
            raise
        return _from_wandb(fetch_checkpoint, spec, outputs, wandb, here)


def _run_here_or_fetched(spec: str, outputs: Path, words: Sequence[str]) -> Path:
    """The folder of the run that resume= means, here or from W&B."""
    try:
        return run_folder(spec, outputs)
    except UserError as here:
        said = compose([word for word in words if word.lstrip("+").startswith(("wandb.", "tracking="))])
        wandb = build_options(WandbOptions, OmegaConf.to_container(said["wandb"]), "wandb")
        if _is_there(spec) or not asks_wandb(spec, wandb, tracked="wandb" in (said.get("tracking") or {})):
            raise
        return _from_wandb(fetch_run, spec, outputs, wandb, here)


def _from_wandb(fetch: Callable[..., Path], spec: str, outputs: Path, wandb: WandbOptions, here: UserError) -> Path:
    try:
        return fetch(spec, outputs, wandb)
    except UserError as there:
        raise UserError(f"{here}; nor from W&B: {there}") from there


def open_run(checked: Plan) -> Run | NullRun:
    """The run's folder, new or resumed; on a further rank one that keeps nothing."""
    if not is_main_process():
        return NullRun(checked.resumed or Path(os.environ.get(_RUN_FOLDER, "outputs/null-run")))
    if checked.resumed is not None:
        run = TrackedRun.open(checked.resumed)
    else:
        run = TrackedRun.create(Path(checked.settings.outputs), checked.settings.run_name)
    os.environ[_RUN_FOLDER] = str(run.folder.resolve())
    return run


def _given(words: Sequence[str]) -> dict[str, Any]:
    """What the command line says about single keys, the last word for each."""
    groups = frozenset(group_names())
    overrides = [parse(word, groups) for word in words]
    return {override.key: override.value for override in overrides if not override.delete and not override.group}


def _saved_config(folder: Path) -> str:
    try:
        return (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise UserError(f"run {folder} cannot be resumed: its config.yaml cannot be read ({failure})") from failure


def _to_save(config: DictConfig) -> DictConfig:
    """The configuration without the word that resumed it: the saved file describes the run, not this start of it."""
    saved = config.copy()
    saved["resume"] = None
    return saved


def _dotted(mapping: dict[str, Any], where: str = "") -> list[str]:
    """Every key of a nested mapping, dotted."""
    keys: list[str] = []
    for key, value in mapping.items():
        keys.append(f"{where}{key}")
        if isinstance(value, dict):
            keys.extend(_dotted(value, f"{where}{key}."))
    return keys
