"""Reading the guides: their python blocks, their commands, their links, and files they show whole.

Marks, each an HTML comment on the last line of text before a block:
    <!-- not run: why -->      a python block that is not executed, a command that is not composed
    <!-- file: NAME -->        the block is the whole of the file NAME in a project of the reader's own
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("README*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!`)\[[^\]\[]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$|\bsrc=\"([^\"]+)\"", re.MULTILINE)
"""`[text](target)`, `[name]: target` and `<img src="target">`."""
_COMMANDS = ("python -m main ", "diffusion-forcing ")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins at, and the mark before it (`not run`, `file` or "") with its value."""

    page: Path
    language: str
    text: str
    line: int
    mark: str = ""
    value: str = ""


def page_name(page: object) -> str:
    """The name of a test of this page."""
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()].rstrip("\n").rpartition("\n")[2].strip()
        mark = re.fullmatch(r"<!-- (not run|file): (.+) -->", before)
        found.append(
            Block(
                page,
                fence[1],
                fence[2],
                text[: fence.start()].count("\n") + 2,
                *(mark.groups() if mark else ("", "")),
            )
        )
    return found


def runnable(page: Path) -> list[Block]:
    """The python blocks of a page that are to be executed, in order, in one namespace."""
    return [block for block in blocks(page) if block.language == "python" and not block.mark]


def commands(page: Path) -> list[tuple[str, str]]:
    """Every command in a block that is not a program's text, and the error it shows: the words after `python -m main` or
    `diffusion-forcing`, continued lines joined, comments dropped; and the text of an `error:` line right below it, "" without one."""
    found: list[tuple[str, str]] = []
    for block in blocks(page):
        if block.language in ("python", "yaml") or block.mark:
            continue
        lines = [line.strip() for line in block.text.replace("\\\n", " ").splitlines()]
        for line, below in zip(lines, [*lines[1:], ""], strict=True):
            line = line.split("  #")[0].strip().removeprefix("$ ")
            for start in _COMMANDS:
                if line.startswith(start):
                    error = below.removeprefix("error: ") if below.startswith("error: ") else ""
                    found.append((line.removeprefix(start).strip(), error))
    return found


def programs(page: Path) -> list[str]:
    """The files of our programs that a page runs: `python -m benchmarks.x` and `python examples/x.py`."""
    text = "".join(block.text for block in blocks(page) if not block.mark)
    found = re.findall(r"^(?:\$ )?python (?:-m (benchmarks[.\w]*)|((?:examples|tools)/\S+))", text, re.MULTILINE)
    return [file or f"{module.replace('.', '/')}.py" for module, file in found]


def links(page: Path) -> list[str]:
    """Targets of the relative links and images of a page: `file`, `file#heading` or `#heading`."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = ["".join(link) for link in _LINK.findall(text)]
    return [target for target in targets if "://" not in target and not target.startswith("mailto:")]


def anchors(page: Path) -> set[str]:
    """The #heading of each heading of a page, as GitHub makes it."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def make_targets(page: Path) -> set[str]:
    """Words after `make` in blocks and in inline code."""
    text = page.read_text(encoding="utf-8")
    return set(re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE))


def shown_files(page: Path) -> dict[str, str]:
    """Name and text of the files that a page shows whole."""
    return {block.value: block.text for block in blocks(page) if block.mark == "file"}
