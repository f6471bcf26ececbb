"""Numbers as people write them. Whether 1.006 is a thousand and six or one and six thousandths is decided once for a
whole file.

A cell proves its decimal mark by its form: `12,5`, `0,125`, `1.234,5` and `1.999.950` leave no choice, `1.006` does. A
column in which nothing is proven follows the other columns of the file; if those prove nothing either, the reading in
which it jumps less; else the separator.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas
from numpy.typing import NDArray

Decimal = Literal["point", "comma"]
_MARKS = """- -- --- – — ? . .. ... : * n.a. n/a na n.a nan null (null) \\n none nil missing k.a. n.d. nd n/d 缺失 无
    #n/a #na <na> -nan -1.#ind 1.#qnan #div/0! #value! #ref!"""
MISSING = frozenset(["", *_MARKS.split()])
"""Marks of a missing value, in lower case."""
_TRUTHS = {"true": 1.0, "yes": 1.0, "on": 1.0, "wahr": 1.0, "ja": 1.0, "vrai": 1.0, "oui": 1.0, "是": 1.0}
_TRUTHS |= {"false": 0.0, "no": 0.0, "off": 0.0, "falsch": 0.0, "nein": 0.0, "faux": 0.0, "non": 0.0, "否": 0.0}
_SCALES = """k=3 tsd=3 tsd.=3 thousand=3 tausend=3 千=3 万=4 萬=4 lakh=5 m=6 mn=6 mm=6 mio=6 mio.=6 million=6 millionen=6
    百万=6 crore=7 亿=8 億=8 b=9 bn=9 mrd=9 mrd.=9 billion=9 milliarden=9 t=12 trillion=12"""
SCALES = {name: 10.0 ** int(power) for name, power in (pair.split("=") for pair in _SCALES.split())}
"""Factors behind a number, in lower case. A column of nothing but `m`, `mm`, `b` or `t` has a unit."""
_UNITS_TOO = {"m", "mm", "b", "t"}
_CURRENCIES = "%$€£¥"
_SENTINELS = (99, 99.9, 99.99, 999, 999.9, 999.99, 9999, 9999.9, 99999)
"""Numbers, or less than 0, that instruments write where they measured nothing."""
_SAME = str.maketrans("−–—‐‑﹣－＋．，％０１２３４５６７８９’＇", "-------+.,%0123456789''", "\u200b\u200e\u200f\ufeff")
_BODY = r"(?:\d[\d.,]*|[.,]\d+)(?:[eE][+-]?\d+)?"
_CELL = re.compile(
    r"(?P<before>[^\d.,+\-]*)(?P<sign>[+-]?)\s*(?P<affix>[^\d.,+\-]*)"
    rf"(?P<body>{_BODY})(?P<after>(?:[^\d+\-][^\d]*)?)(?P<minus>-?)"
)
_LONGEST = 200
"""Characters of a cell that can be a number."""
_GROUPS = re.compile(r"(?<=\d)[\s'_](?=\d{3}(?!\d))")
_OPEN = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")
"""A number of which nothing tells thousands from decimals."""


class NotNumbersError(ValueError):
    """Cells that are no numbers: how many, the first of them, and its row."""

    def __init__(self, share: float, cell: str, row: int) -> None:
        super().__init__(f"{share:.0%} of the cells are no numbers, first '{cell}'")
        self.share, self.cell, self.row = share, cell, row


def is_missing(cells: pandas.Series) -> pandas.Series:
    """Which cells of text mark a missing value."""
    return cells.isna() | cells.astype("string").str.lower().isin(MISSING).fillna(True)


def is_number(cell: str) -> bool:
    """Whether a cell can be a number, whatever its marks mean; with words beside it it may be a name."""
    part = _parts(cell)
    return part is not None and not re.search(r"[^\W\d]{2,}", part["before"] + part["after"])


def read_numbers(
    columns: Mapping[str, pandas.Series],
    others: Sequence[pandas.Series] = (),
    *,
    separator: str,
    dotted_dates: bool,
    decimal: Decimal | None,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NotNumbersError], list[str]]:
    """Columns of text as numbers, NaN where a cell is missing; the columns with cells that are no numbers; and a line
    for each doubt.

    others: columns of the same file that prove its decimal mark where `columns` do not.
    """
    texts = {name: _Text(cells) for name, cells in columns.items()}
    votes = Counter(text.proven for text in texts.values() if text.proven and text.mostly)
    if not votes and decimal is None:
        beside = [_Text(cells) for cells in others if cells.dtype == object]
        votes = Counter(text.proven for text in beside if text.proven and text.mostly)
    usual = votes.most_common(1)[0][0] if votes else None
    numbers, wrong, notes = {}, {}, []
    for name, text in texts.items():
        try:
            mark: Decimal = decimal or text.proven or usual or text.likely(separator, dotted_dates)
            numbers[name], unit = text.numbers(mark)
        except NotNumbersError as error:
            wrong[name] = error
            continue
        if text.doubtful and not (decimal or text.proven or usual):
            other = "point" if mark == "comma" else "comma"
            notes.append(
                f"'{text.doubtful}' in '{name}' is read with a decimal {mark}; dataset.decimal={other} reads it otherwise"
            )
        if unit:
            notes.append(f"'{unit}' is taken as the unit of '{name}'")
        sizes = np.unique(np.abs(numbers[name][np.isfinite(numbers[name])]))
        if len(sizes) > 1 and sizes[-1] in _SENTINELS and sizes[-1] > 5 * sizes[-2]:
            notes.append(f"{sizes[-1]:g} in '{name}' is read as a value; empty the cells if it marks what is missing")
    return numbers, wrong, notes


class _Text:
    """A column of text: what is plainly a number already, and the other cells taken apart."""

    def __init__(self, cells: pandas.Series) -> None:
        self.cells = cells.reset_index(drop=True)
        self.plain = pandas.to_numeric(self.cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        rest = self.cells[~np.isfinite(self.plain)]
        rest = rest[~is_missing(rest)]
        self.rest = rest[~rest.str.fullmatch(r"[+-]?inf(inity)?", case=False)]
        comma = self.rest.str.fullmatch(r"[+-]?\d+,\d+").all()
        comma = comma and not self.rest.str.fullmatch(rf"[+-]?{_OPEN.pattern}").all()
        if comma:  # the most frequent form, read at once
            self.plain[self.rest.index] = pandas.to_numeric(self.rest.str.replace(",", "."))
            self.rest = self.rest[:0]
        self.parts = {cell: _parts(cell) for cell in self.rest.unique()}
        self.known = int(np.isfinite(self.plain).sum()) + len(self.rest)
        self.mostly = self.rest.map(lambda cell: self.parts[cell] is None).sum() < 0.5 * max(1, self.known)
        bodies = [part["body"] for part in self.parts.values() if part]
        proofs: Counter[Decimal] = Counter(filter(None, map(_proof, bodies)))
        self.doubtful = next((body for body in bodies if _OPEN.fullmatch(body)), "")
        pointed = self.cells[np.isfinite(self.plain) & self._holds(r"\.")]
        for part in (pointed[:100], pointed[100:]):  # most columns prove their mark at once
            if not proofs and len(part):
                proofs = Counter(filter(None, map(_proof, part.str.strip().str.lstrip("+-"))))
                self.doubtful = self.doubtful or str(part.iloc[0])
        self.proven = "comma" if comma else proofs.most_common(1)[0][0] if proofs else None

    def _holds(self, pattern: str) -> NDArray[np.bool_]:
        return self.cells.str.contains(pattern).fillna(False).to_numpy(bool)

    def likely(self, separator: str, dotted_dates: bool) -> Decimal:
        """The decimal mark of a column that proves none: with which it jumps less, else what goes with the separator
        and the dates."""
        mark: Decimal = "comma" if "," in self.doubtful else "point"
        other: Decimal = "point" if mark == "comma" else "comma"
        if not self.doubtful:
            return "point"
        jumps = {}
        for reading in (mark, other):
            values = np.abs(self.numbers(reading)[0])
            jumps[reading] = float(np.abs(np.diff(np.log(values[values > 0]))).sum())
        if min(jumps.values()) < 0.5 * max(jumps.values()):
            return min(jumps, key=jumps.__getitem__)
        if mark == "comma":
            return "comma" if separator == ";" or dotted_dates else "point"
        return "comma" if dotted_dates and separator in ";\t" else "point"

    def numbers(self, decimal: Decimal) -> tuple[NDArray[np.float64], str]:
        """The numbers, and their unit where they have one. NotNumbersError for cells that are none."""
        found = np.where(np.isfinite(self.plain), self.plain, np.nan)
        if decimal == "comma":  # the points of a plain number are of thousands
            pointed = self._holds(r"^\s*[+-]?[1-9]\d{0,2}\.\d{3}\s*$")
            found[pointed] = np.round(1000 * found[pointed])
        if not len(self.rest):
            return found, ""
        parts = [part for part in self.parts.values() if part]
        words = {part["after"] for part in parts} - {""}
        scaled = all(word.lower() in SCALES for word in words) and not words <= _UNITS_TOO
        units = {f"{part['before']} {'' if scaled else part['after']}".strip() for part in parts} - {""}
        one_unit = units <= set(_CURRENCIES) or (len(units) == 1 and len(self.rest) >= 0.5 * self.known)
        answers = {_TRUTHS[cell.lower()] for cell in self.parts if cell.lower() in _TRUTHS}
        truths = _TRUTHS if len(answers) == 2 else {"true": 1.0, "false": 0.0}
        values: dict[str, float | None] = {}
        for cell, part in self.parts.items():
            value = None
            if part and (one_unit or not (part["before"] or (part["after"] and not scaled))):
                value = _value(part, "." if decimal == "point" else ",")
                value = value * SCALES[part["after"].lower()] if value and scaled and part["after"] else value
            values[cell] = truths.get(cell.lower(), value)
        wrong = self.rest[self.rest.map(lambda cell: values[cell] is None).astype(bool)]
        if len(wrong):
            raise NotNumbersError(len(wrong) / self.known, str(wrong.iloc[0]), int(wrong.index[0]))
        found[self.rest.index] = self.rest.map(values)
        return found, next(iter(units - set(_CURRENCIES)), "")


def _parts(cell: str) -> dict[str, str] | None:
    """Sign, affix, body and what is after it; None for a cell that is no number."""
    if len(cell) > _LONGEST:
        return None
    text = re.sub(r'^="(.*)"$', r"\1", cell.strip().translate(_SAME))  # as Excel keeps text
    if text.startswith("(") and text.endswith(")"):
        text = "-" + text[1:-1]  # as accountants write
    found = _CELL.fullmatch(_GROUPS.sub("", text).strip())
    if not found or (found["sign"] and found["minus"]) or re.search("[¼-¾⅐-⅞]", text):
        return None
    sign = found["sign"] or found["minus"]
    before = (found["before"] + found["affix"]).strip()
    return {
        "sign": sign,
        "before": before,
        "body": found["body"],
        "after": found["after"].strip().rstrip(_CURRENCIES).rstrip(),
    }


def _proof(body: str) -> Decimal | None:
    """The decimal mark that a number's form proves."""
    marks = [mark for mark in body if mark in ".,"]
    if not marks or _OPEN.fullmatch(body):
        return None
    last: Decimal = "point" if marks[-1] == "." else "comma"
    if len(marks) == 1 or marks[0] != marks[-1]:
        return last if marks.count(marks[-1]) == 1 else None
    if not re.fullmatch(r"\d{1,3}([.,]\d{2,3})*[.,]\d{3}", body) or len(set(marks)) > 1:
        return None
    return "comma" if last == "point" else "point"


def _value(part: dict[str, str] | None, point: str) -> float | None:
    if part is None:
        return None
    whole, mark, decimals = part["body"].partition(point)
    group = "." if point == "," else ","
    if group in whole and not re.fullmatch(rf"\d{{1,3}}(\{group}\d{{2,3}})*\{group}\d{{3}}", whole):
        return None
    try:
        value = float(f"{part['sign']}{whole.replace(group, '')}{'.' if mark else ''}{decimals}")
    except ValueError:
        return None
    return value if np.isfinite(value) else None
