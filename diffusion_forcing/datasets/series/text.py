"""The text of a table: its encoding, what separates its cells, where its header is. Every cell stays text."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import chardet
import pandas
from chardet import EncodingEra

from diffusion_forcing.datasets.series.numbers import is_number
from diffusion_forcing.datasets.series.times import is_time
from diffusion_forcing.limits import Refused, check_limit, gunzip

SEPARATORS = (",", ";", "\t", "|")
HEAD = 200
"""Rows at the beginning that decide what the separator and the number of columns are."""
HEADER_ROWS = 4
"""The most rows that a header has: names, and such as tickers or units below them."""
_LATIN = """windows-1252 windows-1250 windows-1254 windows-1257 windows-1258 iso-8859-2 iso8859-15 iso8859-16
    macroman maclatin2 cp437 cp850 cp852"""
"""Encodings of languages whose letters are mostly ASCII's."""
ERAS = EncodingEra.ALL & ~EncodingEra.MAINFRAME
_UNITS = re.compile(r"°[CFK]\b|m[²³]|µg|€")
_SMALL = "a-zß-öø-ÿāăąćčďđēęěğīıłńňōőŕřśşšťţūůűźżžșț"
_ODD = re.compile(
    rf"(?:[a-z]|[A-Z](?=.[a-z]))[^\W\d_²³µ{_SMALL}]|[^\W\d_][^\w\s\x21-\x7f°²³µ€’·–-]+[^\W\d_]|[\x80-\x9f¡¿¤¬]"
)
"""Large letters behind small ones, signs inside of words: text of another encoding."""


def read_text(file: Path) -> tuple[pandas.DataFrame, str, list[str]]:
    """The cells of a CSV file, what separates them, and one line for each thing that was left out. `Refused` for
    what is no table."""
    check_limit("TEXT_BYTES", file.stat().st_size, "text")
    text = _decoded(file.read_bytes())
    separator, text = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows = [row for row in ([cell.strip() for cell in row] for row in reader) if any(row)]
    width = Counter(len(row) for row in rows[:HEAD] if len(row) > 1).most_common(1)[0][0]

    # the header is the first row of that width; remarks are above it
    first = next(number for number, row in enumerate(rows) if len(row) == width)
    above = rows[first - 1] if first else []
    if 1 < len(above) == width - 1 and not any(row[-1] for row in rows if len(row) == width):
        rows, first, width = [row[: width - 1] for row in rows], first - 1, width - 1  # every row ends in a separator
    elif 1 < len(above) == width - 1 and _is_data(rows[first]):
        if [row[0] for row in rows[first : first + HEAD]] != [str(n + 1) for n in range(min(HEAD, len(rows) - first))]:
            raise Refused(
                f"has {len(above)} names and rows of {width} cells; a decimal comma needs another separator, such as ;"
            )
        first -= 1
        rows[first] = ["", *above]  # R numbers its rows and gives the numbers no name
    elif width > 2 and first and rows[first - 1][0].startswith("#") and len(above) == width:
        first -= 1
    body = rows[first + 1 :]
    more = list(takewhile(lambda row: not _is_data(row), body[: HEADER_ROWS - 1]))
    more = more if any(_is_data(row) for row in body[len(more) : len(more) + 1]) else []
    names = _names(rows[first], more)
    notes = (
        [f"rows below the names belong to the header: {'; '.join(' '.join(filter(None, row))[:40] for row in more)}"]
        if more
        else []
    )

    # rows of one cell are remarks; what stands in every row is a cell
    kept, remarks = [], []
    for row in body[len(more) :]:
        if len(row) == 1 or row == rows[first]:
            remarks.append(row[0])
        elif any(row[width:]):
            raise Refused(f"has {width} names and a row of {len(row)} cells, {' '.join(row)[:60]!r}")
        else:
            kept.append(row[:width] + [""] * (width - len(row)))
    if remarks:
        notes.append(f"left out: {len(remarks)} rows of one cell, first '{remarks[0][:40]}'")
    return pandas.DataFrame(kept, columns=names, dtype=object), separator, notes


def _decoded(content: bytes) -> str:
    """The text of a file, gzipped or not: UTF-8, UTF-16 or UTF-32, else what its lines beyond ASCII most likely are."""
    if content[:2] == b"\x1f\x8b":
        content = gunzip(content)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        encoding = chardet.detect(content)["encoding"] or ""
        if not encoding.lower().startswith("utf-"):
            raise Refused("is not text")
        return content.decode(encoding)
    if b"\x1b$" not in content:  # ISO-2022-JP is of ASCII's bytes
        text = content.decode("utf-8-sig", errors="replace")
        broken, beyond = text.count("\ufffd"), len(re.findall(r"[^\x00-\x7f]", text))
        if 5 * broken <= beyond - broken:
            return text
    return content.decode(_encoding_of(content), errors="replace")


def _encoding_of(content: bytes) -> str:
    """The most likely encoding of text that is not Unicode; Windows-1252 is the most frequent one of Latin letters."""
    beyond = b"\n".join(re.findall(rb"[^\r\n]*[\x80-\xff\x1b][^\r\n]*", content[:1_000_000]))
    runs = re.findall(rb"[\x80-\xff]+", beyond)
    is_latin = runs and max(map(len, runs)) <= 2 and sum(map(len, runs)) < len(re.findall(rb"[A-Za-z]", beyond))
    found = chardet.detect_all(
        beyond, ignore_threshold=True, include_encodings=_LATIN.split() if is_latin else None, encoding_era=ERAS
    )

    def likely(guess: Any) -> float:
        text = beyond.decode(guess["encoding"] or "cp1252", errors="replace")
        if is_latin and _ODD.search(text):
            return 0.0
        usual = 2 if guess["encoding"] == "Windows-1252" else 1
        return guess["confidence"] * usual * (10 if is_latin and _UNITS.search(text) else 1)

    return max(found, key=likely)["encoding"] or "cp1252"


def _separator(text: str) -> tuple[str, str]:
    """The separator that gives most rows the same number of cells, and the text without Excel's line that names it."""
    named = re.match(r"sep=(.)\r?\n", text)
    if named:
        return named[1], text[named.end() :]
    head = [line for line in text.splitlines()[:HEAD] if line.strip() and not line.startswith("#")]
    found: dict[str, tuple[int, int, int]] = {}
    for separator in (*SEPARATORS, " "):
        widths = [len(row) for row in csv.reader(head, delimiter=separator, skipinitialspace=True)]
        if max(widths, default=0) < 2 or (separator == " " and found):
            continue
        width, count = Counter(width for width in widths if width > 1).most_common(1)[0]
        longest = max(len(list(run)) for value, run in groupby(widths) if value == width)
        found[separator] = count, longest, width
    if not found:
        raise Refused("has no row of two cells, separated by a comma, semicolon, tab or bar" if head else "is empty")
    return max(found, key=found.__getitem__), text


def _is_data(row: list[str]) -> bool:
    return any(is_number(cell) or is_time(cell) for cell in row)


def _names(header: list[str], more: list[list[str]]) -> list[str]:
    """A name for every column; what stands below it in the header joins it where it would come twice."""
    names = [name.lstrip("#").strip() if number == 0 else name for number, name in enumerate(header)]
    for row in more:
        if sum(map(bool, row)) == 1:  # pandas' row of the index's name
            names = [below or name for name, below in zip(names, row, strict=False)] + names[len(row) :]
        elif len(set(names)) < len(names):
            names = [f"{name} {below}".strip() for name, below in zip(names, row, strict=False)] + names[len(row) :]
    repeated: Counter[str] = Counter()
    unique: dict[str, None] = {}
    for number, name in enumerate(names):
        name = found = name or f"column_{number + 1}"
        while found in unique:
            repeated[name] += 1
            found = f"{name}.{repeated[name]}"
        unique[found] = None
    return list(unique)
