"""The prose says what is so: no document is cited that is not here, no name is used that the code does not have."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

from tests.docs.blocks import FENCE, PAGES, ROOT, page_name

WRITTEN = ("diffusion_forcing", "tests", "benchmarks", "examples", "tools", "template", "docs", "pretrained", ".ci")
"""Folders of which every text is read for citations; the files beside them are too."""
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".lua", ""}
ELSEWHERE = re.compile(r"\b(?:METHOD|LAYOUT|INTERFACE)\b(?:\.md)?|\bissues? #?\d+\b", re.MULTILINE)
"""Documents that were never published."""
DOCUMENT = re.compile(r"\bdocs/[\w/]+\.md\b")
SECTION = re.compile(r"docs/method\.md §(\d+)(?:(?:, | and )§(\d+))*")

SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
DOTTED = re.compile(r"_?[A-Za-z]\w*(?:\._?[A-Za-z]\w*)+(?=\(|$)")
CAMEL = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z]+[a-z0-9]*)+(?=\(|$)")
SNAKE = re.compile(r"_?[a-z]\w*(?=\()|_?[a-z]\w*_\w+$")
FILE_SUFFIX = re.compile(r"\.(?:py|md|json|jsonl|yaml|yml|csv|npz|npy|ckpt|pt|html|safetensors|sh|txt|log|png|hdf5)$")
UNSPELT = {"LeRobotDataset", "LeRobotDataset.create", "step_out", "err_vs_f64", "fvd_samples", "fid_samples", "ee.qw"}
"""Names that our sources do not spell: of other packages, of recordings and data sets, of keys put together from parts."""


def texts() -> list[Path]:
    """Every text of the repository but this one."""
    files = [file for folder in WRITTEN for file in (ROOT / folder).rglob("*")]
    files += ROOT.glob("*")
    return [
        file
        for file in sorted(files)
        if file.is_file() and file.suffix in SUFFIXES and "__pycache__" not in file.parts and file != Path(__file__)
    ]


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """Our sources."""
    folders = ("diffusion_forcing", "benchmarks", "examples", "tools", "template")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}


@functools.cache
def members() -> dict[str, set[str]]:
    """What each of our classes has: methods, fields and attributes, its bases' too where those are ours."""
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for node in [node for tree in trees().values() for node in ast.walk(tree)]:
        if isinstance(node, ast.ClassDef):
            inside = list(ast.walk(node))
            found = {item.name for item in inside if isinstance(item, ast.FunctionDef)}
            found |= {item.id for item in inside if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
            found |= {
                item.attr for item in inside if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
            }
            own[node.name] = own.get(node.name, set()) | found
            bases.setdefault(node.name, set()).update(ast.unparse(base).rpartition(".")[2] for base in node.bases)
    for _ in range(5):  # as deep as our classes inherit
        for name, above in bases.items():
            own[name].update(*(own.get(base, set()) for base in above))
    return own


@functools.cache
def defined() -> frozenset[str]:
    """Every identifier, and every word of a string that is no docstring, in our sources; and every key of a yaml."""
    words: set[str] = {folder.name for folder in (ROOT / "pretrained").iterdir()}
    for file, tree in trees().items():
        words.update((file.stem, file.parent.name))
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            for field in ("id", "attr", "name", "arg", "module", "asname"):
                if isinstance(name := getattr(node, field, None), str):
                    words.update(re.findall(r"\w+", name))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                words.update(re.findall(r"\w+", node.value))
    for file in (ROOT / "diffusion_forcing" / "configurations").rglob("*.yaml"):
        words.update(re.findall(r"\w+", file.read_text(encoding="utf-8")))
        words.add(file.stem)
    for page in PAGES:  # what a page defines itself
        words.update(re.findall(r"\w+", "".join(fence[2] for fence in FENCE.finditer(page.read_text("utf-8")))))
    return frozenset(words)


def exists(name: str) -> bool:
    """Whether every part of a dotted name is spelt in our sources, what follows a class of ours being in that class."""
    parts = name.split(".")
    of_class = all(
        attribute in members()[owner] for owner, attribute in itertools.pairwise(parts) if owner in members()
    )
    return of_class and set(parts) <= defined()


def names(text: str) -> list[str]:
    """What looks like code of ours in the inline code of a page: `a.b`, `CamelCase`, `call(` and `snake_case`."""
    found = []
    for span in SPAN.findall(FENCE.sub("", text)):
        if " " in span or "/" in span or "=" in span.partition("(")[0] or FILE_SUFFIX.search(span):
            continue
        for pattern in (DOTTED, CAMEL, SNAKE):
            if match := pattern.match(span):
                found.append(match[0])
                break
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=page_name)
def test_every_name_in_the_text_of_a_page_exists(page: Path) -> None:
    """The log is left out: it keeps the names of its day."""
    unknown = [name for name in names(page.read_text(encoding="utf-8")) if name not in UNSPELT and not exists(name)]
    assert not unknown


def test_names_are_found_in_inline_code_alone() -> None:
    text = (
        "`Sampler.denoise` `_ddim(x)` `a_b` `GradientGuidance` `dataset.x=3` `file.md` `a b.c`\n```\n`No.thing`\n```\n"
    )
    assert names(text) == ["Sampler.denoise", "_ddim", "a_b", "GradientGuidance"]
    assert exists("Sampler.denoise") and exists("Video.forcing")  # a method, and an attribute of the class above it
    assert not exists("Sampler.normal")  # spelt in our sources, but not of this class
    assert not exists("_no_such_name")


def test_only_documents_of_this_repository_are_cited() -> None:
    dangling = []
    for file in texts():
        text = file.read_text(encoding="utf-8", errors="ignore")
        found = [match[0] for match in ELSEWHERE.finditer(text)]
        found += [match[0] for match in DOCUMENT.finditer(text) if not (ROOT / match[0]).exists()]
        dangling += [f"{file.relative_to(ROOT)}: {citation}" for citation in found]
    assert not dangling


def test_a_cited_section_of_the_method_exists() -> None:
    sections = set(re.findall(r"^## (\d+)\.", (ROOT / "docs" / "method.md").read_text(encoding="utf-8"), re.MULTILINE))
    missing = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in texts()
        for match in SECTION.finditer(file.read_text(encoding="utf-8", errors="ignore"))
        if not set(re.findall(r"§(\d+)", match[0])) <= sections
    ]
    assert sections and not missing


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=page_name)
def test_no_line_of_a_front_page_is_longer_than_120_characters(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [number for number, line in enumerate(lines, start=1) if len(line) > 120]
