"""Is every file in a folder whole? Each is read to its end by what reads that kind; hidden names are files still being written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import av
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from diffusion_forcing.checkpoints import format as native


def torn(folder: Path) -> list[str]:
    """What is wrong with the files of `folder`, a line each; empty where all are whole."""
    found = []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            if path.is_symlink():
                path.resolve(strict=True)
            elif path.is_file():
                READERS.get(path.suffix, Path.read_bytes)(path)
            elif native.is_checkpoint(path):
                native.load(path, training=True)  # sizes and sha256 of all files
        except Exception as error:  # whatever a reader says of a torn file
            found.append(f"{path}: {type(error).__name__} {error}")
    return found


def leftovers(folder: Path) -> list[str]:
    """Hidden files and folders: what was being written when a process ended."""
    return [str(path) for path in sorted(folder.rglob(".*"))]


def _read_json(path: Path) -> None:
    json.loads(path.read_text("utf-8"))


def _read_lines(path: Path) -> None:
    text = path.read_text("utf-8")
    if text and not text.endswith("\n"):
        raise ValueError(f"ends in {text[-40:]!r}")
    for line in text.splitlines():
        json.loads(line)


def _read_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


def _read_film(path: Path) -> None:
    with av.open(str(path)) as film:
        for _ in film.decode(video=0):
            pass


def _read_page(path: Path) -> None:
    if not path.read_text("utf-8").rstrip().endswith("</html>"):
        raise ValueError("has no end")


def _read_table(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        list(csv.reader(file, strict=True))


READERS: dict[str, Callable[[Path], object]] = {
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".safetensors": load_file,
    ".png": _read_picture,
    ".mp4": _read_film,
    ".html": _read_page,
    ".yaml": OmegaConf.load,
    ".csv": _read_table,
}
