"""`diffusion-forcing new NAME`: a project of one's own to begin with, written from the template that ships with the package.

The template is a whole project called my_project (template/my_project in the checkout, in the package where it is installed); its name is
replaced in file names and texts, and nothing else is.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.report import say

TEMPLATE_NAME = "my_project"
_RENAMED = {"gitignore": ".gitignore"}
"""Files that lie in the template under a name without effect."""
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "outputs", "data")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def new(words: Sequence[str]) -> None:
    """The command behind `new`; `words` is what follows it."""
    if len(words) != 1 or words[0].startswith("-"):
        raise UserError(f"new takes the name of one project, got {len(words)}: diffusion-forcing new my_project")
    folder = Path(words[0]).expanduser()
    name = write_project(folder)
    say(f"wrote {folder}: a dataset, an algorithm, an experiment with a task of its own, their yaml, and tests")
    say("try:")
    say(f"  cd {folder}")
    say(
        "  diffusion-forcing dataset=my_dataset algorithm=my_algorithm experiment=my_experiment experiment.tasks=[training,my_task]"
    )
    say(f"  python -m pytest      {name}'s own tests")


def write_project(folder: Path) -> str:
    """Write the template as the project `folder`, and return its name, the folder's.

    UserError for a name that cannot be, and where something is there already.
    """
    name = folder.resolve().name
    check_name(name)
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is there already and not empty; give another name, or remove it")
        there = folder.exists()
        if there and not folder.is_dir():
            raise UserError(f"{folder} is there already and no folder; give another name")
        try:
            _write(template(), folder, name)
        except OSError:
            if not there:
                shutil.rmtree(folder, ignore_errors=True)  # half a project helps nobody
            raise
        return name
    except OSError as failure:
        raise UserError(
            f"cannot write {folder}: {failure.strerror or failure}; stand in a folder you may write to"
        ) from failure


def check_name(name: str) -> None:
    """UserError for what cannot be the name of a Python package, or is one's already."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        near = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
        hint = f"; write {near}" if _NAME.fullmatch(near) and not keyword.iskeyword(near) else ""
        raise UserError(
            f"'{name}' cannot be a project's name: it names a Python package, so lower-case letters, digits and _, a letter first{hint}"
        )
    if name in sys.stdlib_module_names or name in ("tests", "configurations", "outputs", "data") or _is_installed(name):
        raise UserError(
            f"'{name}' cannot be a project's name: a Python package or folder is called so already; write my_{name}"
        )


def template() -> Path:
    """The folder of the template: beside the package in a checkout, inside it where it is installed."""
    package = Path(__file__).resolve().parents[1]
    places = [place / "template" / TEMPLATE_NAME for place in (package.parent, package)]
    found = next((place for place in places if (place / "pyproject.toml").is_file()), None)
    if found is None:
        raise UserError(
            f"the template of a project is not there (looked in {places[0]} and {places[1]}); install diffusion-forcing again"
        )
    return found


def _write(source: Path, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = sorted(source.iterdir())
    left_out = _LEFT_OUT(str(source), [entry.name for entry in entries])
    for entry in entries:
        if entry.name in left_out:
            continue
        target = folder / _RENAMED.get(entry.name, entry.name.replace(TEMPLATE_NAME, name))
        if entry.is_dir():
            _write(entry, target, name)
        else:
            target.write_text(entry.read_text("utf-8").replace(TEMPLATE_NAME, name), "utf-8")


def _is_installed(name: str) -> bool:
    """Whether `import name` finds something that is not merely a folder where one stands."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None and not Path(found.origin).is_relative_to(Path.cwd())
