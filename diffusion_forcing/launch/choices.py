"""The configuration groups and their choices, from folder listings alone: no yaml is parsed, so that --help is instant."""

from __future__ import annotations

from pathlib import Path

FOLDER = "configurations"
PACKAGE_FOLDER = Path(__file__).resolve().parents[1] / FOLDER


def folders() -> list[Path]:
    """The configuration folders, first match wins: `configurations/` in the working directory, then the package's."""
    own = (Path.cwd() / FOLDER).resolve()
    return [own, PACKAGE_FOLDER] if own.is_dir() and own != PACKAGE_FOLDER else [PACKAGE_FOLDER]


def group_names() -> list[str]:
    """Every folder that holds yaml files, as Hydra names it: `dataset`, `algorithm/architecture`."""
    files = [(file, root) for root in folders() for file in root.rglob("*.yaml")]
    return sorted({file.parent.relative_to(root).as_posix() for file, root in files if file.parent != root})


def choices_of(group: str, *, bases: bool = False) -> dict[str, Path]:
    """The yaml files of `group` by choice (`mine/small` for subfolders). bases: include those that others build on."""
    found: dict[str, Path] = {}
    for root in reversed(folders()):
        for file in (root / group).rglob("*.yaml"):
            found[file.relative_to(root / group).with_suffix("").as_posix()] = file
    return {name: found[name] for name in sorted(found) if bases or not (name == "base" or name.endswith("_base"))}


def first_comment(file: Path) -> str:
    """The comment in the first line of a yaml file: what --help says about this choice."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        line = lines.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""
