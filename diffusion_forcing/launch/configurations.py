"""Where the yaml files are and which choices there are: folder listings, no yaml read, no Hydra (so that --help is instant)."""

from __future__ import annotations

from pathlib import Path

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
