"""The command line's grammar: `key=value`, `+key=value`, `++key=value`, `~key`, `group=choice`.

It is Hydra's grammar, read by Hydra's own parser, with three mercies: values that are names or paths (`load=`, `resume=`, `name=`,
`outputs=`) are plain text, so that a run id such as 12e45678 does not become infinity and a path may hold `=`; text that the grammar
cannot read and that opens no bracket or quote is plain text too (a maze written in `#`); and `+` is never needed for a key: whether
a key exists is decided by the typed options, which know the nearest valid one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_forcing.errors import UserError

# Where the yaml files are and which choices there are: folder listings, no yaml read, no Hydra (so that --help is instant).

FOLDER = "configurations"
PACKAGE_FOLDER = Path(__file__).resolve().parents[1] / FOLDER


def folders() -> list[Path]:
    """The folders searched, first one wins: the user's `configurations/` where they stand, then the package's."""
    own = Path.cwd() / FOLDER
    return [own.resolve(), PACKAGE_FOLDER] if own.is_dir() and own.resolve() != PACKAGE_FOLDER else [PACKAGE_FOLDER]


def group_names() -> list[str]:
    """Every folder that holds yaml files, as Hydra names it: `dataset`, `algorithm/architecture`."""
    found = set()
    for root in folders():
        found |= {file.parent.relative_to(root).as_posix() for file in root.rglob("*.yaml") if file.parent != root}
    return sorted(found)


def choices_of(group: str, *, bases: bool = False) -> dict[str, Path]:
    """The yaml files of `group` by choice (`mine/small` for files in folders below), with or without the bases others build on."""
    found: dict[str, Path] = {}
    for root in reversed(folders()):
        folder = root / group
        for file in sorted(folder.rglob("*.yaml")):
            found[file.relative_to(folder).with_suffix("").as_posix()] = file
    return {
        name: file for name, file in sorted(found.items()) if bases or not (name == "base" or name.endswith("_base"))
    }


def first_comment(file: Path) -> str:
    """The yaml file's first line when it is a comment: what --help says about a choice."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        line = lines.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""


TRACKING = "tracking"
"""The one group of which several files may be chosen: tracking=[wandb,tensorboard]."""
TEXT_KEYS = frozenset({"load", "resume", "name", "outputs"})
_ASSIGNMENT = re.compile(r"(?P<sign>\+{0,2})(?P<key>[A-Za-z_]\w*(?:\.\w+)*)=(?P<value>.*)", re.DOTALL)
_EXAMPLES = "write key=value, lists as [1,2], and text with brackets or commas in quotes: 'key=\"a,b\"'"


@dataclass(frozen=True, kw_only=True)
class Override:
    """One word of the command line. `key` is dotted; for a group it is the group's name, `value` the choice or None."""

    text: str
    key: str
    value: Any
    delete: bool = False
    group: bool = False


def parse(word: str, groups: frozenset[str]) -> Override:
    """One override. Raises UserError for what cannot be read; `groups` are the names that choose a yaml file."""
    if not word.strip():
        raise UserError(f"an override is empty; {_EXAMPLES}")
    plain = _ASSIGNMENT.fullmatch(word)
    if plain and plain["key"] in TEXT_KEYS:
        return Override(text=word, key=plain["key"], value=_text(plain["value"]))
    try:
        parsed = OverridesParser.create().parse_override(word)
    except (RecursionError, ValueError) as failure:  # brackets in thousands, a number of thousands of digits
        raise UserError(f"cannot read '{_beginning(word)}': its value is too deep or too long") from failure
    except HydraException as failure:
        if plain and plain["key"] not in groups and plain["value"][:1] not in set("[{('\""):
            return Override(text=word, key=plain["key"], value=plain["value"])
        raise UserError(_unreadable(word, failure)) from failure
    key = parsed.key_or_group
    if not key:
        raise UserError(f"'{word}' names no key; {_EXAMPLES}")
    if re.split(r"[./]", key)[0] == "hydra":
        raise UserError(f"'{word}': Hydra's own settings are not used here; outputs=FOLDER says where runs go")
    if parsed.is_sweep_override():
        raise UserError(
            f"'{word}' asks for several runs; one is made at a time: start one for each value, or write a list as [1,2]"
        )
    is_group = "/" in key or parsed.package is not None or key in groups
    try:
        value = parsed.value()
    except HydraException as failure:
        raise UserError(_unreadable(word, failure)) from failure
    several = key == TRACKING and isinstance(value, list) and all(isinstance(name, str) for name in value)
    if is_group and not parsed.is_delete() and not (value is None or isinstance(value, str) or several):
        raise UserError(
            f"'{word}': {key} takes the name of one yaml file, got {value!r}; single keys are set by {key}.<key>=…"
        )
    return Override(text=word, key=key, value=value, delete=parsed.is_delete(), group=is_group)


def apply_(config: DictConfig, override: Override) -> None:
    """Set or delete one key of `config` in place; parents that do not exist are made (the typed options judge them later)."""
    try:
        if override.delete:
            _delete_(config, override)
        else:
            OmegaConf.update(config, override.key, override.value, merge=True, force_add=True)
    except RecursionError as failure:
        raise UserError(f"cannot apply '{_beginning(override.text)}': its key is too deep") from failure
    except OmegaConfBaseException as failure:
        raise UserError(f"cannot apply '{override.text}': {first_line(failure)}") from failure


def _delete_(config: DictConfig, override: Override) -> None:
    parent_key, _, last = override.key.rpartition(".")
    parent = OmegaConf.select(config, parent_key) if parent_key else config
    if not isinstance(parent, DictConfig) or last not in parent:
        raise UserError(f"cannot delete '{override.key}': there is no such key")
    if override.value is not None and parent[last] != override.value:
        raise UserError(
            f"cannot apply '{override.text}': {override.key} is {parent[last]!r}; ~{override.key} removes it whatever it is"
        )
    del parent[last]


def first_line(failure: BaseException) -> str:
    """The first line of an exception's message: OmegaConf and Hydra put the advice below it."""
    lines = str(failure).strip().splitlines()
    return lines[0].strip() if lines else type(failure).__name__


def _text(value: str) -> str | None:
    """A value that is text whatever it looks like: quotes around it are taken off, `null` and `None` are None."""
    if value in ("null", "None"):
        return None
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _beginning(word: str) -> str:
    return word if len(word) <= 60 else f"{word[:60]}…"


def _unreadable(word: str, failure: BaseException) -> str:
    if word.startswith("-"):
        return f"unknown option '{word}'; settings are written key=value, and --help lists everything"
    if "=" not in word:
        return f"'{word}' has no value: write {word}=VALUE"
    return f"cannot read '{word}' ({first_line(failure)}); {_EXAMPLES}"
