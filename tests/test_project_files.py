"""The files around the package: what services read is valid, and says the same as the files that it repeats."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import diffusion_forcing
from tools import site_pages

ROOT = Path(__file__).resolve().parents[1]
YAML = sorted(
    [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff", ROOT / "mkdocs.yml"]
)
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def pins(name: str, python: str = "3.11") -> dict[str, str]:
    """What a file of constraints pins for a Python."""
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                assert pin.name not in found, line
                found[pin.name] = str(pin.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("file", YAML, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_yaml_file_is_a_mapping(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def steps(jobs: dict[str, Any]) -> list[str]:
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def test_the_workflow_runs_targets_that_exist() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    named = {match for step in steps(jobs) for match in re.findall(r"^make ([a-z-]+)(?: PYTHON=python)?$", step)}
    named |= {row["target"] for row in jobs["test"]["strategy"]["matrix"]["include"]}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named == {"check", "test", "test-fast", "test-lowest", "test-extras", "docs"}
    assert named <= targets


def test_the_workflow_tests_every_python_from_the_oldest_that_is_allowed() -> None:
    rows = yaml.safe_load(WORKFLOW.read_text())["jobs"]["test"]["strategy"]["matrix"]["include"]
    oldest = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    minors = [int(row["python"].split(".")[1]) for row in rows]
    assert minors == list(range(int(oldest[1]), int(oldest[1]) + len(minors)))
    classifiers = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert [int(minor) for minor in classifiers] == minors


def test_every_python_has_one_pin_of_the_same_packages() -> None:
    assert set(pins("constraints.txt", "3.10")) == set(pins("constraints.txt", "3.11"))


def test_versions_are_repeated_as_they_are() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks[0]["rev"] == "v" + pins("constraints.txt")["ruff"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == diffusion_forcing.__version__


def test_every_extra_is_tried_by_itself() -> None:
    commands = runpy.run_path(str(ROOT / "tools" / "try_extras.py"))["COMMANDS"]
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert set(commands) == {"bare", *re.findall(r"^(\w+) = \[", section, re.MULTILINE)}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is part of Python from 3.11 on")
def test_the_lowest_versions_are_those_of_the_requirements() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest: dict[str, set[str]] = {}
    for line in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        found = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?([^;]*)(?:;.*)?", line)
        assert found is not None
        bound = re.search(r"[>=]=([\d.]+)", found[2])
        if bound is not None:
            lowest.setdefault(found[1], set()).add(bound[1] + ".0" * (2 - bound[1].count(".")))
    assert {name: {version} for name, version in pins("constraints-lowest.txt").items()} == lowest


INSTRUCTIONS = {"FROM", "RUN", "USER", "WORKDIR", "COPY", "EXPOSE", "CMD", "ENV", "ARG", "ENTRYPOINT"}


def test_the_dockerfile_is_well_formed_and_uses_what_the_context_has() -> None:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    assert lines[0][0] == "FROM"
    assert {instruction for instruction, _ in lines} <= INSTRUCTIONS
    for instruction, rest in lines:
        if instruction in ("CMD", "ENTRYPOINT"):
            assert all(isinstance(word, str) for word in yaml.safe_load(rest))
        elif instruction == "RUN":
            assert shlex.split(rest)  # quotes are closed
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    needed = {"Makefile", "pyproject.toml", "constraints.txt", "main.py", "tools", "diffusion_forcing", "pretrained"}
    needed |= {"template", "README.md", "LICENSE"}  # the wheel's own files
    assert {name for name in needed if any(fnmatch.fnmatch(name, pattern) for pattern in kept)} == needed
    stamps = [word for _, rest in lines for word in rest.split() if word.startswith(".venv/.has-")]
    extras = set(re.findall(r"\$\(call needs,(\w+)\)", (ROOT / "Makefile").read_text()))
    assert {stamp.removeprefix(".venv/.has-") for stamp in stamps} == {"planning", "play"} <= extras


def public_names() -> set[str]:
    """Every name that the package or a package inside it exports by `__all__`."""
    packages = [
        file.parent
        for file in (ROOT / "diffusion_forcing").rglob("__init__.py")
        if "\n__all__" in file.read_text("utf-8")
    ]
    names = {f"{package.relative_to(ROOT)}".replace("/", ".") for package in packages}
    assert {"diffusion_forcing", "diffusion_forcing.diffusion"} <= names
    return {name for module in names for name in importlib.import_module(module).__all__} - {"__version__"}


def test_every_public_name_is_on_a_page_of_the_api_and_has_a_docstring() -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("gluonts")
    places = re.findall(r"^::: (\S+)$", "".join(site_pages.api_pages().values()), re.MULTILINE)
    assert len(places) == len(set(places))
    assert public_names() <= {place.rpartition(".")[2] for place in places}
    for place in places:
        module, _, name = place.rpartition(".")
        documented = getattr(importlib.import_module(module), name)
        assert not callable(documented) or len((inspect.getdoc(documented) or "").split()) > 3, place


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = "".join(page.read_text("utf-8") for page in (tmp_path / "api").glob("*.html"))
    named = set(re.findall(r'id="diffusion_forcing\.[\w.]*?(\w+)"', pages))
    assert public_names() <= named
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        page = (tmp_path / "notebooks" / f"{notebook.stem}.html").read_text("utf-8")
        assert "data:image/png;base64," in page and notebook.stem in (tmp_path / "index.html").read_text("utf-8")
