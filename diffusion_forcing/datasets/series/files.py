"""A CSV or Parquet file of time series, as people and programs write them, becomes a `Table`. Nothing is filled in.

Cells are read as text, the column of times is chosen (`times.py`), the others become numbers by marks that are decided
for the whole file. What was left out, and what was in doubt, is a line each in
`Table.notes`; what is wrong names the column and the cell.
"""

from __future__ import annotations

import csv
import functools
import io
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, Literal

import chardet
import numpy as np
import pandas
from chardet import EncodingEra
from numpy.typing import NDArray

from diffusion_forcing.datasets.parquet import read_table
from diffusion_forcing.datasets.series.table import Table, regular
from diffusion_forcing.datasets.series.times import (
    KINDS,
    NOT_TIMES,
    Kind,
    freq_of,
    is_time,
    joined,
    parse_times,
    to_naive,
)
from diffusion_forcing.errors import UserError, did_you_mean, first_line
from diffusion_forcing.limits import Refused, check_limit, gunzip, reading

# -------------------------------------------------------------------------------------------------------------- numbers
# Numbers as people write them. Whether 1.006 is a thousand and six or one and six thousandths is decided once for a
# whole file.
#
# A cell proves its decimal mark by its form: `12,5`, `0,125`, `1.234,5` and `1.999.950` leave no choice, `1.006` does. A
# column in which nothing is proven follows the other columns of the file; if those prove nothing either, the reading in
# which it jumps less; else the separator.

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
        for decimal in (mark, other):
            values = np.abs(self.numbers(decimal)[0])
            jumps[decimal] = float(np.abs(np.diff(np.log(values[values > 0]))).sum())
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


# ----------------------------------------------------------------------------------------------------------------- text
# The text of a table: its encoding, what separates its cells, where its header is. Every cell stays text.

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


# ---------------------------------------------------------------------------------------------------- a file as a table

SAMPLE = 50
"""Cells of a column that say whether it may hold times."""
MOSTLY = 0.5
"""Share of cells that are numbers, above which a column is one of numbers with something wrong in it, and not one of
words."""
_WORDS = """
    date datetime time timestamp ts t ds day month year quarter week period when utc unix epoch mtu hour hours hr
    datum zeit zeitstempel uhrzeit tag monat jahr quartal woche stunde fecha hora data ora heure jour mois année
    日期 时间 时刻 年 月 日 时 年份 月份"""
TIME_WORDS = frozenset(_WORDS.split())
ROW_WORDS = frozenset(
    ["index", "idx", "id", "row", "rownum", "nr", "no", "no.", "#", "level_0", "序号", "编号", "行号"]
)
PARTS = {
    "-": frozenset(["month", "monat", "mon", "mo", "mes", "mois", "period", "месяц", "月", "月份"]),
    "-Q": frozenset(["quarter", "quartal", "qtr", "trimestre", "季度"]),
    "-W": frozenset(["week", "woche", "kw", "wk", "semaine", "semana", "周"]),
    "-D": frozenset(["doy", "yday", "jday", "julian", "jd", "dayofyear"]),
}
"""Columns that say more of a year, and what stands between. D: the day of the year."""
DAYS = frozenset(["day", "tag", "dom", "dy", "jour", "dia", "日"])
HOURS = frozenset(["hour", "hours", "hr", "he", "stunde", "uhrzeit", "time", "heure", "hora", "时"])
CALENDAR = ("year", "month", "day", "hour", "minute", "quarter", "dayofweek", "dayofyear")
CALENDAR_WORDS = TIME_WORDS | {"weekday", "dow", "dayofweek", "doy", "minute", "wochentag", "kw", "season", "星期"}
"""Names of columns that repeat a part of the time, and hold nothing to forecast."""
_UNNAMED = re.compile(r"column_\d+|Unnamed: \d+(\.\d+)*")
MINUTES = frozenset(["minute", "minutes", "min", "mn"])


def read_file(
    path: str | Path,
    *,
    freq: str | None,
    time_column: str | None = None,
    series_column: str | None = None,
    value_column: str | None = None,
    columns: tuple[str, ...] = (),
    leave_out: tuple[str, ...] = (),
    day_first: bool | None = None,
    time_zone: str | None = None,
    decimal: Decimal | None = None,
) -> Table:
    """The table in `path`: wide (a column of times, a column a series) or, with `series_column` and `value_column`,
    long (a row an observation). time_column: null is the one that most surely holds times. columns: the series to take;
    none named: all that are numbers, but for `leave_out`. day_first, time_zone: as for `parse_times` and `to_naive`.
    decimal: null is what the file's numbers prove."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"dataset.path {file} does not exist; give a CSV or Parquet file")
    if bool(series_column) != bool(value_column):
        raise UserError("a long table needs both dataset.series_column and dataset.value_column")
    with reading(file, "give a CSV or Parquet file"):
        frame, separator, notes = _frame(file)
        table = _Cells(file, frame, notes, day_first)
        keys = [table.column(series_column, "series_column")] if series_column else []
        named = [table.column(value_column, "value_column")] if value_column else []
        time, times = table.times(time_column, keys, named)
        frame = table.frame
        if times.iloc[0] > times.iloc[-1]:  # the newest first
            frame, times = frame[::-1].reset_index(drop=True), times[::-1].reset_index(drop=True)
        again = pandas.DataFrame({"time": times, "series": frame[keys[0]] if keys else ""}).duplicated()
        dotted = bool(frame[time].astype("string").str.match(r"\d{1,2}\.\d{1,2}\.").fillna(False).any())
        times, zone, more = to_naive(times, time_zone, again)
        notes += more
        table.frame = frame = frame[times.notna()].reset_index(drop=True)
        times = times[times.notna()].reset_index(drop=True)

        rest = [name for name in frame.columns if name not in table.used]
        if columns and not keys:
            named = [table.column(name, "columns", rest) for name in columns]
        elif not keys:
            leave_out_checked(leave_out, rest)
        chosen = named or [name for name in rest if name not in leave_out]
        others = [frame[name] for name in rest if name not in chosen]
        numbers = functools.partial(
            read_numbers, others=others, separator=separator, dotted_dates=dotted, decimal=decimal
        )
        wide = table.numbers(chosen, times, numbers, named=bool(named))
        if keys:
            names = frame[keys[0]].astype("string").fillna("")
            if (names == "").any():
                notes.append(f"left out: {int((names == '').sum())} rows without a name in '{keys[0]}'")
            wide = wide.assign(series=names.to_numpy(), time=times.to_numpy())[(names != "").to_numpy()]
            table.check_once(wide.duplicated(["time", "series"]), wide["time"], chosen)
            wide = wide.pivot(index="time", columns="series", values=named[0])
            leave_out_checked(leave_out, list(wide.columns))
            kept = [table.column(name, "columns", list(wide.columns)) for name in columns] or list(wide.columns)
            wide = wide[[name for name in kept if name not in leave_out]]
        else:
            table.check_once(times.duplicated(), times, chosen)
            wide = wide.set_axis(pandas.DatetimeIndex(times))
        wide = wide.sort_index()
        if freq is None and freq_of(wide.index) is None:
            wide = wide[wide.notna().any(axis=1)]  # rows without a value may hide the rhythm
        return regular(wide, freq, str(file), zone=zone, notes=tuple(notes))


def typed(option: str, value: str, *, many: bool = True) -> str:
    """`dataset.columns=[value]` (many) or `dataset.time_column=value` as one types it in a shell, quoted where it must
    be."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return f"{option}=[{value}]" if many else f"{option}={value}"
    inner = '"' + value.replace('"', '\\"') + '"'
    return shlex.quote(f"{option}=[{inner}]" if many else f"{option}={inner}")


def leave_out_checked(leave_out: tuple[str, ...], names: list[str]) -> None:
    """UserError where `leave_out` names what is not a series, or all of them."""
    for name in leave_out:
        if name not in names:
            raise UserError(f"dataset.leave_out names '{name}', which is not a series{did_you_mean(name, names)}")
    if names and not set(names) - set(leave_out):
        raise UserError("dataset.leave_out names every series; keep at least one")


def _frame(file: Path) -> tuple[pandas.DataFrame, str, list[str]]:
    """The file as text (Parquet: as it was written), what separates its cells, and what was left out."""
    if file.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise UserError(f"{file} is a spreadsheet; save it as CSV, and give that")
    if file.suffix.lower() in (".parquet", ".pq"):
        frame, separator, notes = read_table(file).to_pandas(), ",", list[str]()
        if frame.index.name or not isinstance(frame.index, pandas.RangeIndex):
            frame = frame.reset_index()
        frame.columns = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]
        frame = frame.reset_index(drop=True)
    else:
        frame, separator, notes = read_text(file)
    if not len(frame) or not len(frame.columns):
        raise UserError(f"{file} is empty; give a table with a column of times and a row a time")
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise UserError(f"{file} has two columns with the name '{name[:80]}'; rename one")
    return frame, separator, notes


class _Cells:
    """The cells of a file. notes: a line for each thing that was left out or in doubt; used: columns that times and
    names are made of."""

    def __init__(self, file: Path, frame: pandas.DataFrame, notes: list[str], day_first: bool | None) -> None:
        self.file, self.frame, self.notes, self.day_first = file, frame, notes, day_first
        self.used: set[str] = set()

    def column(self, name: str, option: str, names: list[str] | None = None) -> str:
        """`name`, if there is such a column; UserError otherwise."""
        names = list(map(str, self.frame.columns)) if names is None else names
        if name not in names:
            raise UserError(
                f"{self.file} has no column '{name}' (dataset.{option}){did_you_mean(name, names)}; "
                f"it has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
            )
        return name

    def times(self, named: str | None, keys: list[str], values: list[str]) -> tuple[str, pandas.Series]:
        """The column of times, and the times, perhaps made of several columns."""
        frame, file = self.frame, self.file
        first, *others = frame.columns
        if _kind(pandas.Series([first])) and all(
            re.fullmatch(r"[+-]?\d+([.,]\d+)*|column_\d+", name) for name in others
        ):
            raise UserError(f"{file} has no line of names at its top; add one, such as time,a,b,c")
        if named:
            time = self.column(named, "time_column")
            kind: Kind = _kind(frame[time]) or "text"
        else:
            time, kind = self._time_column([name for name in frame.columns if name not in values])
            if kind != "text" and not _words(time) & TIME_WORDS:
                self.notes.append(
                    f"the times are the numbers of '{time}', read as {kind}s; dataset.time_column names another"
                )
        self.used = {time, *keys}

        def of(words: frozenset[str]) -> str | None:
            """Uses the first column with one of these words in its name."""
            name = next((name for name in frame.columns if name not in self.used and _words(name) & words), None)
            self.used |= {name} if name else set()
            return name

        def come_twice(times: pandas.Series) -> bool:
            return bool(frame.assign(time=times).duplicated(["time", *keys]).any())

        def text(name: str) -> pandas.Series:
            return _known(frame[name]).astype("string").str.replace(r"\.0+$", "", regex=True)

        # a year, and what other columns say of it
        cells = _known(frame[time])
        if kind == "year" and come_twice(cells):
            between, part = next(((mark, name) for mark, words in PARTS.items() if (name := of(words))), ("", None))
            if part:
                more = text(part).str.replace(r"^(?:Q|W|KW|M)[ .]*(?=\d)", "", regex=True)
                cells = text(time) + between.rstrip("D") + (more.str.zfill(3) if between == "-D" else more)
            if between == "-" and (day := of(DAYS)):
                cells = cells + "-" + text(day)
        try:
            times = parse_times(cells, day_first=self.day_first)[0]
        except NOT_TIMES:
            raise UserError(
                f"{file}: column '{time}' is not made of times ({_why_not(cells)}); name another with dataset.time_column"
            ) from None
        if times.isna().any():
            missing = int(times.isna().sum())
            raise UserError(f"{file}: column '{time}' has {missing} rows without a time; remove or complete them")

        # a day, and a time of day in other columns
        if times.dt.tz is None and (times == times.dt.normalize()).all() and come_twice(times):
            for name in [name for name in frame.columns if name not in self.used]:
                of_day = joined(times, _known(frame[name]), named=bool(_words(name) & HOURS))
                if of_day is not None:
                    self.used |= {name}
                    if come_twice(of_day) and (minute := of(MINUTES)):
                        of_day += pandas.to_timedelta(pandas.to_numeric(frame[minute]), unit="min")
                    return time, of_day
        return time, times

    def _time_column(self, names: list[str]) -> tuple[str, Kind]:
        """The column that most surely holds times: dates as text before numbers, names such as `date` before others,
        many times before few."""
        looks = {name: _known(self.frame[name].head(4 * SAMPLE)).dropna().head(SAMPLE) for name in names}
        firsts = {name: str(cells.iloc[0]) if len(cells) else "" for name, cells in looks.items()}
        numeric = {name for name, cell in firsts.items() if re.fullmatch(r"[+-]?\d*[.,]?\d+", cell)}
        kinds = {name: kind for name in names if name not in numeric and (kind := _kind(looks[name]))}
        if "text" not in kinds.values():
            for name in names:
                if name in numeric and re.fullmatch(r"\d{4,19}(\.\d+)?|\d\d\.\d{4}", firsts[name]):
                    kind = _kind(looks[name])
                    if kind and (kind != "serial" or _words(name) & TIME_WORDS):
                        kinds[name] = kind
        if kinds:
            sure = {
                name: (kind != "text", not _words(name) & TIME_WORDS, KINDS.index(kind), -self.frame[name].nunique())
                for name, kind in kinds.items()
            }
            best = min(sure, key=sure.__getitem__)
            return best, kinds[best]
        why = {name: _why_not(looks[name]) for name in names}
        near = [name for name in names if re.search("without a date|no year|in row", why[name])]
        first, rest = (near or names)[0], f", nor is any other of {len(names)}" if len(names) > 1 else ""
        hint = "write whole times, such as 2024-01-31 13:00" if near else "name the right one with dataset.time_column"
        if sum(_kind(pandas.Series([name])) is not None for name in names) > 0.5 * len(names):
            hint = "the times seem to be the names of the columns: write the table with a row a time"
        raise UserError(f"{self.file}: column '{first}' is not made of times ({why[first]}){rest}; {hint}")

    def numbers(
        self, names: list[str], times: pandas.Series, read: Callable[..., Any], *, named: bool
    ) -> pandas.DataFrame:
        """The columns among `names` that are series; UserError for one that nearly is, or that was `named` and is
        none."""
        found: dict[str, Any] = {}
        left: dict[str, str] = {}
        texts = {}
        for name in names:
            column = self.frame[name]
            is_typed = pandas.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pandas.PeriodDtype)
            if is_typed or (not named and _words(name) & TIME_WORDS and _kind(column) in ("text", "stamp", "epoch")):
                left[name] = "times"
            elif pandas.api.types.is_numeric_dtype(column):
                found[name] = column.astype("float64").to_numpy(na_value=np.nan)
            else:
                texts[name] = column.astype("string").astype(object)
        numbers, wrong, notes = read(texts)
        found |= numbers
        self.notes += notes
        for name, error in wrong.items():
            if named or not (error.share >= MOSTLY or _words(name) & {"id", "uuid", "guid", "hash"}):
                raise UserError(
                    f"{self.file} has a value that is not a number: '{error.cell}' in column '{name}' at "
                    f"{times.iloc[error.row]}; leave the cell empty where nothing is known, or the column out: "
                    f"{typed('dataset.leave_out', name)}"
                )
            left[name] = str(error)
        if not named:
            left |= {name: why for name, values in found.items() if (why := _why_no_series(name, values, times))}
        found = {name: found[name] for name in names if name in found and name not in left}
        # Columns that have no name and no value are not worth a word.
        said = [f"'{name}' ({why})" for name, why in left.items() if why != "no value" or not _UNNAMED.fullmatch(name)]
        if not any(np.isfinite(values).any() for values in found.values()):
            among = ", ".join(f"'{name}'" for name in names[:5]) or "its columns"
            reason = f" ({'; '.join(said[:3])})" if said else ""
            raise UserError(
                f"{self.file} has no column of numbers among {among}{reason}; name the series with dataset.columns"
            )
        if said:
            more = f" and {len(said) - 8} more" if len(said) > 8 else ""
            self.notes.insert(len(self.notes) - len(notes), f"left out: {', '.join(said[:8])}{more}")
        return pandas.DataFrame(found)

    def check_once(self, doubled: pandas.Series, times: pandas.Series, numbers: list[str]) -> None:
        """UserError where a time comes twice; it says what may be the matter."""
        if not doubled.any():
            return
        frame = self.frame
        values = [name for name in numbers if pandas.to_numeric(frame[name], errors="coerce").notna().any()]
        others = [name for name in frame.columns if name not in values]
        keys = [name for name in others if not frame.assign(time=times).duplicated(["time", name]).any()]
        advice = "keep one row a time, or name dataset.series_column and dataset.value_column of a long table"
        if doubled.mean() < 0.05 and (times.dt.normalize() != times).any():
            advice = "keep one row a time, or give dataset.time_zone=Europe/Berlin or another, where clocks go back"
        elif keys and values:
            advice = f"if this is a long table: {typed('dataset.series_column', keys[0], many=False)} "
            advice += typed("dataset.value_column", values[0], many=False)
        raise UserError(
            f"{self.file} has {int(doubled.sum())} duplicate times, first {times[doubled].iloc[0]}; {advice}"
        )


def _why_no_series(name: str, values: NDArray[np.float64], times: pandas.Series) -> str:
    """Why a column of numbers is not a series to forecast; "" where it is one."""
    words, unnamed = _words(name), bool(_UNNAMED.fullmatch(name))
    if not np.isfinite(values).any():
        return "no value"
    whole, steps = bool((values == np.floor(values)).all()), np.diff(values)
    in_order = len(np.unique(values)) == len(values) if unnamed else (steps > 0).all() or (steps < 0).all()
    if (unnamed or name.lower() in ROW_WORDS) and len(values) > 1 and whole and in_order:
        return "numbers of rows"
    if words & CALENDAR_WORDS:
        parts = [getattr(times.dt, part) for part in CALENDAR] + [times.dt.isocalendar().week]
        if any(np.array_equal(values, part + shift) for part in parts for shift in (0, 1)):
            return "part of the date"
    return "identities" if "id" in words and whole else ""


def _kind(cells: pandas.Series) -> Kind | None:
    try:
        return parse_times(_known(cells.head(SAMPLE)))[1]
    except NOT_TIMES:
        return None


def _why_not(cells: pandas.Series) -> str:
    """Why a column does not hold times: the first cell that is none behind some that are, or what it looks like."""
    known = cells.dropna()
    try:
        parse_times(known)
    except NOT_TIMES as error:
        if len(known) and is_time(str(known.iloc[0])):
            wrong = next((row for row, cell in known.head(100 * SAMPLE).items() if not is_time(str(cell))), None)
            if wrong is not None:
                return f"'{known[wrong]}' in row {wrong + 2}"
        return first_line(error)
    return "numbers such as these are not times"


def _known(cells: pandas.Series) -> pandas.Series:
    """Cells without the marks of a missing value."""
    return cells.mask(is_missing(cells)) if cells.dtype == object or pandas.api.types.is_string_dtype(cells) else cells


def _words(name: str) -> frozenset[str]:
    """The words of a column's name, in lower case."""
    lower = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return frozenset(re.split(r"[\W_]+", lower.replace("day of year", "doy")))
