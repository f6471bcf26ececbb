"""Hooks of mkdocs.yml: the pages of the site that are not in docs/.

What a page links to outside docs/ becomes a page below source/: a text as it is, a program in a block. The public names
of the package become the pages below api/, one for each group of `diffusion_forcing/__init__.py`, with those of the
packages that have an `__all__` of their own. A notebook becomes a page with the outputs that are stored in it.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"diffusion": "method", "networks": "networks", "checkpoints": "checkpoints"}
"""Packages with an `__all__` of their own, and the page for those of its names that are in no group; torch alone imports them."""
ADAPTERS = {"forecasting": ("gluonts.DiffusionForcingEstimator", "gluonts.DiffusionForcingPredictor")}
"""Names for other libraries, which need these to be imported."""
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"""(\]\(|^\[[^\]]+\]: |\bsrc=")([^)\s"#:]+)(?=[)\s"#])""", re.MULTILINE)
_GROUP = re.compile(r"^    # (.+)\n((?:    \"\w+\": \".*\",\n)+)", re.MULTILINE)
_PICTURES = (".png", ".jpg", ".webp", ".svg")
_NAME = re.compile(r'"(\w+)": "(.+)"')


def on_config(config: Any) -> Any:
    """Headings get the anchors that they have on GitHub; the pages of the API enter the navigation."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    (section,) = [entry for entry in config.nav if "API" in entry]
    section["API"] = list(api_pages())
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/, and what they link to in turn."""
    notebooks = {f"notebooks/{path.stem}.md": notebook_page(path) for path in (ROOT / "docs/notebooks").glob("*.ipynb")}
    for page, text in {**api_pages(), **notebooks}.items():
        files.append(File.generated(config, page, content=text))
    waiting = [
        path for file in files.documentation_pages() if file.abs_src_path for path in linked(Path(file.abs_src_path))
    ]
    while waiting:
        path = waiting.pop()
        page = page_of(path)
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=shown(path)))
            waiting += linked(path) if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to the pages below source/."""
    source = page.file.abs_src_path
    return relinked(markdown, Path(source)) if source else markdown


def api_pages() -> dict[str, str]:
    """Page: text, of each group of public names, with those of the packages that are in no group."""
    groups = _GROUP.findall((ROOT / "diffusion_forcing" / "__init__.py").read_text("utf-8"))
    found = {title.removeprefix("the "): _NAME.findall(names) for title, names in groups}
    listed = {name for names in found.values() for name, _ in names}
    places = {title: [f"{home(module, name)}.{name}" for name, module in names] for title, names in found.items()}
    for package, title in PACKAGES.items():
        module = import_module(f"diffusion_forcing.{package}")
        own = [inspect.unwrap(getattr(module, name)) for name in module.__all__ if name not in listed]
        places.setdefault(title, []).extend(
            f"{each.__module__.removeprefix('diffusion_forcing.')}.{each.__name__}" for each in own
        )
    for title, names in ADAPTERS.items():
        places[title].extend(names)
    return {
        f"api/{title.replace(' ', '_')}.md": f"# {title.capitalize()}\n"
        + "".join(f"\n::: diffusion_forcing.{place}\n" for place in entries)
        for title, entries in places.items()
    }


def notebook_page(path: Path) -> str:
    """A notebook as a page: its texts, its code in blocks, and what its cells have printed and drawn."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def home(module: str, name: str) -> str:
    """The module that defines the public `name`, which the package `module` may import only when it is used."""
    folder = ROOT / "diffusion_forcing" / module.replace(".", "/")
    defined = re.compile(rf"^(?:class|def) {name}\b", re.MULTILINE)
    found = (file.stem for file in sorted(folder.glob("*.py")) if defined.search(file.read_text("utf-8")))
    return ".".join([module, *list(found)[:1]])


def target(source: Path, link: str) -> Path:
    """The file or folder that `link` in the text `source` names."""
    return Path(os.path.normpath(source.parent / link))


def linked(source: Path) -> list[Path]:
    """The files outside docs/ that the text `source` links to."""
    parts = _FENCE.split(source.read_text("utf-8"))[::2]
    found = [target(source, link) for part in parts for _, link in _LINK.findall(part)]
    return [path for path in found if path.is_file() and not path.is_relative_to(ROOT / "docs")]


def page_of(path: Path) -> str:
    """The file of the site for a file of the repository."""
    inside = path.relative_to(ROOT)
    if inside.parts[0] == "docs":
        return str(inside.relative_to("docs"))
    return f"source/{inside}" + ("" if path.suffix in (".md", *_PICTURES) else ".md")


def shown(path: Path) -> str | bytes:
    """A page with the content of `path`; a picture as it is."""
    if path.suffix in _PICTURES:
        return path.read_bytes()
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return relinked(text, path)
    return f"# {path.relative_to(ROOT)}\n\n````{path.suffix.removeprefix('.')}\n{text}````\n"


def relinked(text: str, source: Path) -> str:
    """The text of `source` with its relative links as the site has them; a link to a folder leads nowhere."""
    here = os.path.dirname(page_of(source))

    def replaced(match: re.Match[str]) -> str:
        path = target(source, match[2])
        return match[1] + (os.path.relpath(page_of(path), here) if path.is_file() else "#")

    parts = _FENCE.split(text)
    return "".join(part if number % 2 else _LINK.sub(replaced, part) for number, part in enumerate(parts))
