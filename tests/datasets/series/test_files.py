"""Files of time series as people write them: separators, decimal commas, day first, zones, epochs, quarters, marks of what is missing."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gluonts")

import pandas

from diffusion_forcing.datasets.series.files import read_file
from diffusion_forcing.datasets.series.steps import checked_freq, lags_of, season_of
from diffusion_forcing.errors import UserError


def read(folder: Path, text: str | bytes, name: str = "a.csv", **how: Any) -> Any:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(content)
    return read_file(folder / name, **{"freq": None, **how})


def dated(times: Any) -> str:
    """A wide file with these times, series a: 0, 1, …"""
    return "time,a\n" + "\n".join(f"{time},{number}" for number, time in enumerate(times))


DAYS = pandas.date_range("2024-01-01", periods=40, freq="D")
HOURS = pandas.date_range("2024-01-01", periods=100, freq="h")
MONTHS = pandas.date_range("2020-01-01", periods=30, freq="MS")
BERLIN = pandas.date_range("2024-10-26", periods=60, freq="h", tz="Europe/Berlin")


@pytest.mark.parametrize(
    ("times", "freq", "start"),
    [
        (DAYS.strftime("%d.%m.%Y"), "D", "2024-01-01"),
        (DAYS.strftime("%d/%m/%Y"), "D", "2024-01-01"),
        (DAYS.strftime("%m/%d/%Y"), "D", "2024-01-01"),
        (DAYS[:12].strftime("%d.%m.%y"), "D", "2024-01-01"),  # nothing but the rhythm tells day from month
        (DAYS[:12].strftime("%m/%d/%y"), "D", "2024-01-01"),
        (MONTHS.strftime("%d.%m.%Y"), "M", "2020-01"),  # every day is the first: read month first they would be days
        (DAYS.strftime("%Y%m%d"), "D", "2024-01-01"),
        (DAYS.strftime("%d-%b-%y"), "D", "2024-01-01"),
        (HOURS.strftime("%Y-%m-%dT%H:%M:%SZ"), "h", "2024-01-01 00:00"),
        (HOURS.strftime("%d.%m.%Y %H:%M"), "h", "2024-01-01 00:00"),
        (HOURS.strftime("%m/%d/%Y %I:%M %p"), "h", "2024-01-01 00:00"),
        ([str(t.date()) if t.hour == 0 else str(t) for t in HOURS], "h", "2024-01-01 00:00"),  # as spreadsheets do
        (HOURS.astype("int64") // 10**9, "h", "2024-01-01 00:00"),
        (HOURS.astype("int64") // 10**6, "h", "2024-01-01 00:00"),
        ([t.isoformat() for t in BERLIN], "h", "2024-10-25 22:00"),  # clocks go back: UTC
        (range(1950, 2000), "Y-DEC", "1950"),
        (MONTHS.strftime("%Y%m"), "M", "2020-01"),
        (MONTHS.strftime("%YM%m"), "M", "2020-01"),
        (MONTHS.strftime("%b %Y"), "M", "2020-01"),
        ([f"{year}Q{quarter}" for year in range(2000, 2008) for quarter in (1, 2, 3, 4)], "Q-DEC", "2000Q1"),
        ([f"Q{quarter} {year}" for year in range(2000, 2008) for quarter in (1, 2, 3, 4)], "Q-DEC", "2000Q1"),
        (pandas.date_range("2000-01-01", periods=20, freq="QS"), "Q-DEC", "2000Q1"),
        (pandas.date_range("2000-01-01", periods=20, freq="YS"), "Y-DEC", "2000"),
        ([f"2020-W{week:02d}" for week in range(1, 40)], "W-MON", "2019-12-24/2019-12-30"),
    ],
)
def test_times_are_read_in_any_form_and_their_step_is_found(tmp_path: Path, times: Any, freq: str, start: str) -> None:
    table = read(tmp_path, dated(times))
    assert (table.freq, table.start) == (freq, start)
    assert table.values[:, 0].tolist() == list(range(len(times)))


def test_day_first_can_be_said(tmp_path: Path) -> None:
    text = "time,a\n01/02/2024,1\n01/03/2024,2\n01/04/2024,3\n"
    assert read(tmp_path, text, day_first=True).freq == "M"
    assert read(tmp_path, text, day_first=False).freq == "D"


def test_local_times_without_a_zone_are_told_theirs(tmp_path: Path) -> None:
    text = dated(BERLIN.tz_localize(None))
    with pytest.raises(UserError, match=r"1 duplicate times, first 2024-10-27 02:00:00.*give dataset\.time_zone"):
        read(tmp_path, text)
    table = read(tmp_path, text, time_zone="Europe/Berlin")
    assert table.values[:, 0].tolist() == list(range(60))
    assert table.start == "2024-10-25 22:00"
    with pytest.raises(UserError, match="'Berlin', which is not a zone"):
        read(tmp_path, text, time_zone="Berlin")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t;a;b\n01.01.2024;1.234,5;7\n02.01.2024;12,25;8\n03.01.2024;-0,5;9\n", [[1234.5, 7], [12.25, 8], [-0.5, 9]]),
        ('t,a\n2024-01-01,"1,234"\n2024-01-02,"2,345,678.5"\n2024-01-03,3\n', [[1234], [2345678.5], [3]]),
        ("t\ta\n2024-01-01\t1\n2024-01-02\t-\n2024-01-03\t3\n", [[1], [np.nan], [3]]),
        ("t|a\n2024-01-01|1\n2024-01-02|n.a.\n2024-01-03|?\n", [[1], [np.nan], [np.nan]]),
        ("t,a\n2024-01-01,1 000\n2024-01-02,2 500\n2024-01-03,12\n", [[1000], [2500], [12]]),
        ("t,a\n2024-01-01,$1.50\n2024-01-02,$2\n2024-01-03,\n", [[1.5], [2], [np.nan]]),
        ("t,a\n2024-01-01,10%\n2024-01-02,20 %\n2024-01-03,30%\n", [[10], [20], [30]]),
        ("t,a\n2024-01-01,True\n2024-01-02,False\n2024-01-03,\n", [[1], [0], [np.nan]]),
        ("t,a,weather\n2024-01-01,1,sun\n2024-01-02,2,rain\n2024-01-03,3,\n", [[1], [2], [3]]),  # words are no series
        ("a, t,\n1, 2024-01-01,\n2, 2024-01-02,\n3, 2024-01-03,\n", [[1], [2], [3]]),  # times elsewhere, an empty end
    ],
)
def test_numbers_are_read_as_they_are_written(tmp_path: Path, text: str, expected: Any) -> None:
    np.testing.assert_allclose(read(tmp_path, text).values, np.array(expected, np.float32), equal_nan=True)


ENCODINGS = {
    "Zeit;Länge": "utf-8-sig utf-16 utf-16-le utf-16-be utf-32 cp1252 cp850 mac_roman",
    "Zeit;Temperatur °C;Preis €;PM µg/m³": "cp1252",
    "Date;Température prévue": "cp1252 mac_roman iso8859-15",
    "Datum;Spotřeba elektřiny": "cp1250 iso8859-2",
    "Data;Sprzedaż": "cp1250",
    "Tarih;Satış;Sıcaklık": "cp1254",
    "Дата;Продажи;Цена": "cp1251 koi8-r cp866 iso8859-5 utf-16-le",
    "Дата;Ціна": "cp1251",
    "Ημερομηνία;Πωλήσεις": "cp1253",
    "日付;売上;気温": "shift_jis euc_jp iso2022_jp utf-16-be",
    "日期;一;温度": "gb18030 utf-16-le utf-16-be",
    "日期;銷售額": "big5",
    "날짜;판매량": "euc_kr",
}


@pytest.mark.parametrize(
    ("header", "encoding"), [(header, encoding) for header, names in ENCODINGS.items() for encoding in names.split()]
)
def test_encodings_and_compression_are_found(tmp_path: Path, header: str, encoding: str) -> None:
    cells = header.count(";")
    rows = [f"{day.date()}" + f";{number}" * cells for number, day in enumerate(DAYS)]
    content = "\n".join([header, *rows]).encode(encoding)
    assert read(tmp_path, content).names == tuple(header.split(";")[1:])
    assert len(read(tmp_path, gzip.compress(content), "a.csv.gz")) == 40


def test_one_broken_byte_does_not_change_the_other_letters(tmp_path: Path) -> None:
    content = dated(DAYS).replace("time,a", "Zeit,Größe in Öre äöü").encode() + b"\n# cut \xc3"
    assert read(tmp_path, content).names == ("Größe in Öre äöü",)


def test_parquet_with_zones_periods_and_numbers_as_text(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"when": BERLIN, "a": [f"{n},5" for n in range(60)], "b": range(60)})
    frame.to_parquet(tmp_path / "a.parquet")
    table = read_file(tmp_path / "a.parquet", freq=None)
    assert (table.freq, table.names) == ("h", ("a", "b"))
    assert table.values[3].tolist() == [3.5, 3]
    pandas.DataFrame({"a": range(40)}, index=pandas.period_range("2020-01", periods=40, freq="M")).to_parquet(
        tmp_path / "p.parquet"
    )
    assert read_file(tmp_path / "p.parquet", freq=None).freq == "M"


def test_rows_without_a_value_do_not_hide_the_rhythm(tmp_path: Path) -> None:
    rows = [f"{month.date()},{number}" for number, month in enumerate(MONTHS)]
    rows.insert(7, "2020-07-17,")
    assert read(tmp_path, "t,a\n" + "\n".join(rows)).freq == "M"


def test_a_column_without_any_value_is_left_out_and_named(tmp_path: Path) -> None:
    table = read(tmp_path, "t,a,b\n2024-01-01,1,\n2024-01-02,2,\n2024-01-03,3,\n")
    assert table.names == ("a",)
    assert "'b'" in table.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,a\n2024-01-01,1\n2024-01-02,2\n2024-01-03,12x\n", "'12x' in column 'a' at 2024-01-03"),
        ("2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n", "has no line of names"),
        ("n,a\n7,1\n9,2\n9,3\n", r"'n' is not made of times.*nor is any other of 2"),
        ("who,day,much\nx,2024-01-01,1\ny,2024-01-01,2\n", r"dataset\.series_column=who dataset\.value_column=much"),
        ("year,half,a\n2000,1,1\n2000,2,2\n2001,1,3\n", "1 duplicate times"),
        ("t,a\n2024-01-01,\n2024-01-02,\n", "no column of numbers among 'a'"),
        (
            "t,a\n2024-01-01 00:00:01,1\n2024-01-01 00:10:03,2\n2024-01-01 00:20:04,3\n2024-01-01 00:30:04,3\n",
            "most often it is",
        ),
        (b"PK\x03\x04\x00\x00\x00", "it is not text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_spreadsheet_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save it as CSV"):
        read(tmp_path, "x", "a.xlsx")


@pytest.mark.parametrize(
    ("freq", "checked", "lags"),
    [
        ("QS-OCT", "Q-DEC", (1, 4)),
        ("YS-JAN", "Y-DEC", (1,)),
        ("BQE-DEC", "Q-DEC", (1, 4)),
        ("W-SAT", "W-SAT", (1, 52)),
        ("15min", "15min", (1, 4, 12, 24, 48, 96, 672)),
        ("30min", "30min", (1, 4, 12, 24, 48)),
        ("4h", "4h", (1, 6, 42)),
        ("BMS", "M", (1, 12)),
        ("60min", "h", (1, 24, 168)),
        ("86400s", "D", (1, 7, 14)),
        ("ms", "ms", (1,)),
    ],
)
def test_frequencies_are_brought_to_periods_and_lags_to_days_and_weeks(
    freq: str, checked: str, lags: tuple[int, ...]
) -> None:
    assert checked_freq(freq) == checked
    assert lags_of(checked) == lags


@pytest.mark.parametrize(
    ("lags", "freq", "length", "season"),
    [
        ((1, 24, 168), "h", 1000, 168),
        ((1, 24, 168), "h", 100, 24),
        ((1, 2), "B", 100, 5),
        ((1,), "Y-DEC", 100, 1),
        ((1, 12), "M", 20, 1),
    ],
)
def test_the_season_is_the_longest_that_a_history_shows(
    lags: tuple[int, ...], freq: str, length: int, season: int
) -> None:
    assert season_of(lags, freq, length) == season
