"""`diffusion-forcing new NAME`: a project of the user's own, written from the template that ships with the package.

The template is a complete project called my_project (template/my_project in the checkout, inside the package where it is installed). Its name
is replaced in file names and texts.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_forcing.errors import UserError, explaining_os_errors, require
from diffusion_forcing.terminal import say

TEMPLATE_NAME = "my_project"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "outputs", "data")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def new(words: Sequence[str]) -> None:
    """The command; words: its arguments."""
    is_name = len(words) == 1 and not words[0].startswith("-")
    require(is_name, f"new takes the name of one project, got {len(words)}: diffusion-forcing new my_project")
    folder = Path(words[0]).expanduser()
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
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        near = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
        hint = f"; write {near}" if _NAME.fullmatch(near) and not keyword.iskeyword(near) else ""
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
    left_out = _LEFT_OUT(str(source), [entry.name for entry in entries])
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
