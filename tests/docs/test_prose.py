"""The prose says what is so: no document is cited that is not here, no name is used that the code does not have."""

from __future__ import annotations

import ast
import functools
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
OTHERS = {"LeRobotDataset", "CurrencyConverter", "LeRobotDataset.create", "datasets.v30"}
"""Names of other packages that our sources never spell."""


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
def defined() -> frozenset[str]:
    """Every identifier, and every word of a string that is no docstring, in our sources; and every key of a yaml."""
    words: set[str] = set()
    folders = ("diffusion_forcing", "benchmarks", "examples", "tools", "template", "tests")
    for file in [file for folder in folders for file in (ROOT / folder).rglob("*.py")]:
        words.add(file.stem)
        words.add(file.parent.name)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""  # a docstring
            for field in ("id", "attr", "name", "arg", "module", "asname"):
                words.update(re.findall(r"\w+", str(getattr(node, field, None) or "")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.update(re.findall(r"\w+", node.value))
    for file in (ROOT / "diffusion_forcing" / "configurations").rglob("*.yaml"):
        words.update(re.findall(r"\w+", file.read_text(encoding="utf-8")))
        words.add(file.stem)
    for page in PAGES:  # what a page defines itself
        words.update(re.findall(r"\w+", "".join(fence[2] for fence in FENCE.finditer(page.read_text("utf-8")))))
    return frozenset(words)


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


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=page_name)
def test_every_name_in_the_text_of_a_page_exists(page: Path) -> None:
    """The log is left out: it keeps the names of its day."""
    unknown = [
        name
        for name in names(page.read_text(encoding="utf-8"))
        if name not in OTHERS and not set(name.split(".")) <= defined()
    ]
    assert not unknown


def test_names_are_found_in_inline_code_alone() -> None:
    text = (
        "`Sampler.denoise` `_ddim(x)` `a_b` `GradientGuidance` `dataset.x=3` `file.md` `a b.c`\n```\n`No.thing`\n```\n"
    )
    assert names(text) == ["Sampler.denoise", "_ddim", "a_b", "GradientGuidance"]
    assert {"Sampler", "denoise"} <= defined()
    assert "_ddim" + "x" not in defined()


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
