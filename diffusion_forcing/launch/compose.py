"""The yaml files and the command line become one mapping, and each of its sections a class with its typed options.

A `configurations/` folder in the working directory comes first on the search path, the package's own second. Hydra composes the chosen
files, the values of the command line are applied on top, and every complaint of Hydra or OmegaConf becomes one line. A composed
configuration keeps its interpolations (`${dataset.gamma}`), so that a saved one can be changed and resolved again.

The grammar of the command line (`key=value`, `+key=value`, `++key=value`, `~key`, `group=choice`) is Hydra's, read by Hydra's own parser,
with four exceptions:

- The values of `load=`, `resume=`, `name=` and `outputs=` are plain text: a run id such as 12e45678 is no number, and a path may hold `=`.
- The value of a key that names a file or folder (`dataset.path=`, `dataset.save_dir=`) may hold commas.
- Other text that the grammar cannot read is plain text too, unless it opens a bracket or a quote (a maze written in `#`).
- `+` is never needed: the typed options decide whether a key exists, and name the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffusion_forcing.errors import UserError, did_you_mean, first_line, require
from diffusion_forcing.launch.choices import FOLDER, PACKAGE_FOLDER, choices_of, folders, group_names
from diffusion_forcing.options import build_options

TARGET = "_target_"
"""The key that names a section's class."""
TRACKING = "tracking"
"""The only group that takes several choices: tracking=[wandb,tensorboard]."""
TEXT_KEYS = frozenset({"load", "resume", "name", "outputs"})
PATH_ENDINGS = ("path", "save_dir", "folder", "root")
"""Last words of keys that name a file or a folder."""
_ASSIGNMENT = re.compile(r"\+{0,2}(?P<key>[A-Za-z_]\w*(?:\.\w+)*)=(?P<value>.*)", re.DOTALL)
_EXAMPLES = "write key=value, lists as [1,2], and text with brackets or commas in quotes: 'key=\"a,b\"'"


@dataclass(frozen=True, kw_only=True)
class Override:
    """One argument. `key` is dotted; for a group it is the group's name and `value` the choice or None."""

    text: str
    key: str
    value: Any
    delete: bool = False
    group: bool = False


def parse(word: str, groups: frozenset[str]) -> Override:
    """One argument. groups: the names that choose a yaml file. Raises UserError if it cannot be read."""
    require(bool(word.strip()), f"an override is empty; {_EXAMPLES}")
    plain = _ASSIGNMENT.fullmatch(word)
    if plain and plain["key"] in TEXT_KEYS:
        return Override(text=word, key=plain["key"], value=_unquoted(plain["value"]))
    try:
        parsed = OverridesParser.create().parse_override(word)
        key = parsed.key_or_group
        value = None if parsed.is_sweep_override() else parsed.value()
    except (RecursionError, ValueError) as failure:
        raise UserError(f"cannot read '{_beginning(word)}': its value is nested too deeply or too long") from failure
    except HydraException as failure:
        if plain and plain["key"] not in groups and plain["value"][:1] not in set("[{('\""):
            return Override(text=word, key=plain["key"], value=plain["value"])
        if "=" not in word:
            raise UserError(f"'{word}' has no value: write {word}=VALUE") from failure
        raise UserError(f"cannot read '{word}' ({first_line(failure)}); {_EXAMPLES}") from failure
    require(bool(key), f"'{word}' has no key; {_EXAMPLES}")
    if re.split(r"[./]", key)[0] == "hydra":
        raise UserError(f"'{word}': Hydra's own settings are not used; set the folder of runs with outputs=FOLDER")
    if parsed.is_sweep_override():
        if plain and plain["key"].rpartition(".")[2] in PATH_ENDINGS:
            return Override(text=word, key=plain["key"], value=plain["value"])
        raise UserError(
            f"'{word}' is a sweep, which is not supported: start one run per value, or write a list as [1,2] "
            f"and text with commas in quotes: '{key}=\"a,b\"'"
        )
    is_group = "/" in key or parsed.package is not None or key in groups
    several = key == TRACKING and isinstance(value, list) and all(isinstance(name, str) for name in value)
    if is_group and not parsed.is_delete() and not (value is None or isinstance(value, str) or several):
        raise UserError(f"'{word}': {key} must be the name of one yaml file; set single keys with {key}.KEY=VALUE")
    return Override(text=word, key=key, value=value, delete=parsed.is_delete(), group=is_group)


def apply_(config: DictConfig, override: Override) -> None:
    """Set or delete one key of `config` in place. Missing parents are created; the typed options check them later."""
    try:
        if not override.delete:
            OmegaConf.update(config, override.key, override.value, merge=True, force_add=True)
            return
        parent_key, _, last = override.key.rpartition(".")
        parent = OmegaConf.select(config, parent_key) if parent_key else config
        if not isinstance(parent, DictConfig) or last not in parent:
            raise UserError(f"cannot delete '{override.key}': there is no such key")
        if override.value is not None and parent[last] != override.value:
            raise UserError(
                f"cannot apply '{override.text}': {override.key} is {parent[last]!r}; write ~{override.key}"
            )
        del parent[last]
    except RecursionError as failure:
        raise UserError(f"cannot apply '{_beginning(override.text)}': its key is nested too deeply") from failure
    except OmegaConfBaseException as failure:
        raise UserError(f"cannot apply '{override.text}': {first_line(failure)}") from failure


def _unquoted(value: str) -> str | None:
    if value in ("null", "None"):
        return None
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _beginning(word: str) -> str:
    return word if len(word) <= 60 else f"{word[:60]}…"


SAMPLED_BY = {
    "matrix_for": {"full_sequence": "full_sequence", "teacher_forcing": "autoregressive"},
    "chunk_for": {"full_sequence": -1},
}
"""Resolvers for yaml: `${matrix_for:${.noise_level},otherwise}` is how a network trained with that noise level is sampled. The first
repeats `diffusion.noise_levels.MATRICES`, whose import would load torch."""
for _name, _values in SAMPLED_BY.items():
    OmegaConf.register_new_resolver(
        _name, lambda kind, otherwise, values=_values: values.get(kind, otherwise), replace=True
    )


def _of_map(key: str, body: str, text: Any, frame_skip: Any) -> Any:
    """`${of_map:KEY,BODY,${.maze_map},${.frame_skip}}` in the yaml of a maze of one's own: KEY as it follows from the map."""
    from diffusion_forcing.environments.mazes.layout import options_of_map

    return options_of_map(text, body, frame_skip)[key]


OmegaConf.register_new_resolver("of_map", _of_map, replace=True)

CHOICES = "choices"
"""Top-level key of a composed configuration: the yaml file chosen in each group, which resume= compares."""
PARTS = ("dataset", "algorithm", "experiment")
_DEFAULT_GROUPS = (*PARTS, "cluster", TRACKING)


def read_overrides(words: Iterable[str]) -> list[Override]:
    """The command line's arguments, parsed."""
    groups = frozenset(group_names())
    return [parse(word, groups) for word in words]


def compose(words: Sequence[str]) -> DictConfig:
    """The configuration of a new run. words: the command line's overrides."""
    overrides = read_overrides(words)
    chosen = [override for override in overrides if override.group]
    for override in chosen:
        _check_choice(override)
    # cluster is null by default, and Hydra refuses to override it with null
    config = _compose_files(
        [_hydra_word(override) for override in chosen if override.key != "cluster" or override.value is not None]
    )
    config[CHOICES].update({TRACKING: ["local"], **{override.key: override.value for override in chosen}})
    return _apply_all_(config, overrides)


def compose_on(saved: str, words: Sequence[str]) -> DictConfig:
    """The configuration of a resumed run: its saved yaml text with the command line's values on top.

    A resumed run keeps its dataset, algorithm and experiment. Its trackers may change. It runs on a cluster only if the
    command line says so: the saved text may come from elsewhere, and a cluster's template is a program.
    """
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(saved)):
            raise ValueError("it has an alias (*), which config.yaml never has")
        config = OmegaConf.create(saved)
        if not isinstance(config, DictConfig) or not isinstance(config.get(CHOICES), DictConfig):
            raise ValueError(f"it has no mapping '{CHOICES}'")
        config["cluster"] = None
        return _compose_on(config, words)
    except UserError:
        raise
    except Exception as failure:  # the parser asserts too
        raise UserError(f"the run's saved config.yaml cannot be read: {first_line(failure)}") from failure


def check_targets(config: Mapping[str, Any], typed: Collection[str], *, own: bool) -> None:
    """UserError for a class in a saved configuration that is not installed in this package, nor typed again.

    With `own`, the classes are allowed too that the yaml files of the same choices name today.

    config: resolved. typed: the keys that the command line sets.
    """
    trackers = config.get(TRACKING)
    sections = {part: config[part] for part in PARTS}
    if isinstance(trackers, Mapping):
        sections |= {f"{TRACKING}.{name}": section for name, section in trackers.items()}
    for where, section in sections.items():
        target = section.get(TARGET) if isinstance(section, Mapping) else None
        if not isinstance(target, str) or target.startswith("diffusion_forcing.") or f"{where}.{TARGET}" in typed:
            continue
        group, _, name = where.partition(".")
        choice = name or config[CHOICES].get(group)
        chosen = f"[{choice}]" if name else choice
        if (
            not own
            or choice not in choices_of(group)
            or target != OmegaConf.select(_compose_files([f"{group}={chosen}"]), f"{where}.{TARGET}")
        ):
            raise UserError(
                f"the saved {where}.{TARGET} is {target}, which is not part of this package, nor what a yaml file in "
                f"{FOLDER}/{group} here names for {group}={choice}; if you trust it, pass {where}.{TARGET}={target}"
            )


def _compose_on(config: DictConfig, words: Sequence[str]) -> DictConfig:
    overrides = read_overrides(words)
    for override in overrides:
        if not override.group:
            continue
        if override.key in (TRACKING, "cluster"):
            _check_choice(override)
        if override.key == TRACKING:
            names = _names(override.value)
            _track_(config, names)
            if "wandb" in names and config["wandb"]["mode"] == "disabled":
                config["wandb"]["mode"] = None
        elif override.key == "cluster":
            config["cluster"] = override.value and _compose_files([_hydra_word(override)])["cluster"]
        elif config[CHOICES].get(override.key) != override.value:
            raise UserError(
                f"resume= keeps {override.key}={config[CHOICES].get(override.key)}, got '{override.text}'; "
                "use load= to start a new run from its weights"
            )
    return _apply_all_(config, overrides)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries and lists, interpolations followed. Has a mapping for each of the three parts."""
    for part in PARTS:
        if OmegaConf.is_missing(config, part) or not isinstance(config._get_node(part), DictConfig):
            choice = config[CHOICES].get(part)
            is_empty = choice is not None and part in config
            empty = f"{part}/{choice}.yaml is empty: it needs at least _target_, the class to build"
            raise UserError(empty if is_empty else _choose(part))
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as failure:
        key = getattr(failure, "full_key", None) or first_line(failure)
        raise UserError(f"{key} has no value; give {key}=VALUE") from failure
    except OmegaConfBaseException as failure:
        below: BaseException | None = failure
        while below is not None:
            if isinstance(below, UserError):  # a resolver's
                raise below from failure
            below = below.__cause__ or below.__context__
        key = getattr(failure, "full_key", None)
        hint = ""
        if str(key).startswith("algorithm.") and re.search(r"key 'dataset\.\w+' not found", str(failure)):
            names = config[CHOICES]
            hint = (
                f": algorithm={names.get('algorithm')} needs it, dataset={names.get('dataset')} does not have it; choose "
                f"another dataset or another algorithm and experiment (algorithm={', '.join(choices_of('algorithm'))})"
            )
        raise UserError(f"{f'{key}: ' if key else ''}{first_line(failure)}{hint}") from failure
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def as_yaml(config: DictConfig) -> str:
    """The configuration as yaml text, interpolations kept: the content of a run's config.yaml."""
    return OmegaConf.to_yaml(config)


def _apply_all_(config: DictConfig, overrides: Iterable[Override]) -> DictConfig:
    """Apply the values of the command line in place."""
    for override in overrides:
        if override.key.split(".")[0] == CHOICES:
            raise UserError(f"'{override.text}': choose a file by its group, as in dataset=NAME")
        if not override.group:
            apply_(config, override)
    # the released code chooses W&B by wandb.mode alone
    names = _names(config[CHOICES].get(TRACKING))
    if OmegaConf.select(config, "wandb.mode") in ("online", "offline") and "wandb" not in names:
        _track_(config, [*names, "wandb"])
    return config


def _track_(config: DictConfig, names: Sequence[str]) -> None:
    """Choose the trackers `names`. Those that were chosen before keep their options."""
    before = config.get(TRACKING) or {}
    composed = _compose_files([f"{TRACKING}=[{','.join(names)}]"])
    found = composed.get(TRACKING) or OmegaConf.create({})
    config[TRACKING] = OmegaConf.merge(found, {key: value for key, value in before.items() if key in found})
    # the saved configuration of an older version has fewer keys
    config["wandb"] = OmegaConf.merge(composed["wandb"], config.get("wandb") or {})
    config[CHOICES][TRACKING] = list(names)


def _names(choice: Any) -> list[str]:
    """`tracking` takes one name or a list."""
    return [choice] if isinstance(choice, str) else list(choice or ())


def _check_choice(override: Override) -> None:
    """UserError if the group or the choice does not exist."""
    if override.key == TRACKING and isinstance(override.value, list):
        for name in override.value:
            _check_choice(replace(override, value=name))
        return
    group, choice = override.key.partition("@")[0], override.value
    if choice is None and group in PARTS and not override.delete:
        raise UserError(_choose(group))
    known = choices_of(group)
    if not known and group not in _DEFAULT_GROUPS:
        groups = group_names()
        raise UserError(
            f"'{override.text}': there is no group '{group}'{did_you_mean(group, groups)}; groups: {', '.join(groups)}"
        )
    if choice is not None and not override.delete and choice not in known:
        raise UserError(f"{group}={choice} does not exist{did_you_mean(choice, known)}; choices: {', '.join(known)}")


def _choose(group: str) -> str:
    return f"{group} is not set: choose one with {group}=NAME; choices: {', '.join(choices_of(group))}"


def _hydra_word(override: Override) -> str:
    """The override as Hydra wants it: `+` only for groups that config.yaml does not list."""
    word = override.text.lstrip("+")
    if override.key == TRACKING and override.value is None:
        return f"{TRACKING}=[]"
    return word if override.key in _DEFAULT_GROUPS or override.delete else f"+{word}"


class _UsersFolderFirst(SearchPathPlugin):
    """Puts the user's folder in front of the package's on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(folders()):
            if folder != PACKAGE_FOLDER:
                search_path.prepend("diffusion-forcing", f"file://{folder}")


def _compose_files(group_words: list[str]) -> DictConfig:
    """Compose the yaml files of the chosen groups, with their choices under CHOICES."""
    GlobalHydra.instance().clear()
    Plugins.instance().register(_UsersFolderFirst)
    try:
        with initialize_config_dir(str(PACKAGE_FOLDER), version_base="1.3", job_name="diffusion-forcing"):
            composed = hydra_compose("config", overrides=group_words, return_hydra_config=True)
    except MissingConfigException as failure:
        group, _, name = str(failure.missing_cfg_file or "").rpartition("/")
        known = choices_of(group, bases=True) if group else {}
        raise UserError(
            f"{first_line(failure).rstrip('.')}{did_you_mean(name, known)}; choices: {', '.join(known)}"
        ) from failure
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        place = f"{mark.name.removeprefix(f'{Path.cwd()}/')} line {mark.line + 1}" if mark else "a yaml file"
        raise UserError(f"{place} is not valid yaml: {failure.problem or failure.context}") from failure
    except RecursionError as failure:
        raise UserError("cannot compose the yaml files: nested too deeply, or a defaults list is circular") from failure
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as failure:
        raise UserError(f"cannot compose the yaml files: {first_line(failure)}") from failure
    choices = {group: choice for group, choice in composed.hydra.runtime.choices.items() if "hydra/" not in group}
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    OmegaConf.set_struct(config, False)
    config[CHOICES] = choices
    return config


_METHODS = {
    "experiment": ("run_task",),
    "algorithm": ("training_step", "configure_optimizers"),
    "dataset": ("training", "validation"),
}
"""The methods by which a class of each kind is recognised, most specific kind first."""


def read_part(section: Mapping[str, Any], where: str, *, everywhere: Sequence[str] = ()) -> tuple[type, Any]:
    """The class and the options of one section: `dataset`, `algorithm`, `experiment` or a tracker."""
    target = section.get(TARGET)
    if not isinstance(target, str) or not target:
        raise UserError(f"{where}.{TARGET} must be a class, as package.module.Class; got {target!r}")
    cls = import_class(target, f"{where}.{TARGET}")
    kinds = [kind for kind, methods in _METHODS.items() if all(callable(getattr(cls, name, None)) for name in methods)]
    if kinds and where in _METHODS and kinds[0] != where:
        raise UserError(f"{where}.{TARGET}={target} is a class for {kinds[0]}, not for {where}")
    options = getattr(cls, "Options", None)
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        raise UserError(f"{where}.{TARGET}={target} needs a class attribute Options, a frozen dataclass of its options")
    values = {key: value for key, value in section.items() if key != TARGET}
    return cls, build_options(options, values, where, everywhere=everywhere)


def import_class(target: str, where: str) -> type:
    """The class at a dotted path. Raises UserError if it does not exist or its module cannot be imported."""
    module_name, _, name = target.rpartition(".")
    require(bool(module_name), f"{where}={target} is not a dotted path; write package.module.Class")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # the installed command does not add the user's folder
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as failure:
        missing = failure.name or module_name
        if f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"{where}={target}: there is no module '{missing}' in {here} or among the installed packages"
            ) from failure
        # our own tasks need more than the package's dependencies
        package = "'diffusion-forcing[planning]'" if module_name.startswith("diffusion_forcing.") else missing
        raise UserError(f"{where}={target} needs the package '{missing}': pip install {package}") from failure
    except UserError:
        raise
    except SyntaxError as failure:
        raise UserError(f"{where}={target}: {failure.filename} line {failure.lineno}: {failure.msg}") from failure
    except Exception as failure:
        raise UserError(
            f"{where}={target}: its import failed with {type(failure).__name__}: {failure} (debug=True shows where)"
        ) from failure
    found = getattr(module, name, None)
    if not isinstance(found, type):
        public = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise UserError(f"{where}={target}: '{module_name}' has no class '{name}'{did_you_mean(name, public)}")
    return found
