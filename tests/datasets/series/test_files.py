"""Files of time series as people and programs write them: what is read, what is left out and named, what is refused."""

from __future__ import annotations

import gzip
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gluonts")

import pandas
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffusion_forcing.datasets.series.dataset import SeriesOptions, TimeSeries
from diffusion_forcing.datasets.series.files import read_file, typed
from diffusion_forcing.datasets.series.table import Table
from diffusion_forcing.datasets.series.times import checked_freq, lags_of, season_of
from diffusion_forcing.errors import UserError

DAYS = pandas.date_range("2024-01-01", periods=40)
HOURS = pandas.date_range("2024-01-01", periods=60, freq="h")
WEEKS = pandas.date_range("2024-01-01", periods=60, freq="W-MON")
MONTHS = pandas.date_range("2020-01-01", periods=30, freq="MS")
QUARTERS = pandas.date_range("2000-01-01", periods=20, freq="QS")
BERLIN = pandas.date_range("2024-10-26", periods=60, freq="h", tz="Europe/Berlin")


def read(folder: Path, text: str | bytes, name: str = "a.csv", **options: Any) -> Table:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(folder / name, **{"freq": None, **options})


def table(header: str, rows: Iterable[Any], separator: str = ",") -> str:
    return "\n".join([header, *(separator.join(map(str, row)) for row in rows)])


def dated(times: Iterable[Any]) -> str:
    """A file with these times and a series a: 0, 1, …"""
    return table("t;a", [(time, n) for n, time in enumerate(times)], ";")


def grouped(number: int) -> str:
    return f"{number:,}".replace(",", ".")


# -------------------------------------------------------------------------------------------------- text, shapes


def test_a_long_table_and_parquet_are_the_same_table(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"time": DAYS, "a": 10.0 * np.arange(40), "b": 10.0 * np.arange(40) + 1})
    expected = read(tmp_path, frame.to_csv(index=False))
    assert (expected.freq, expected.names, expected.start) == ("D", ("a", "b"), "2024-01-01")
    assert np.array_equal(expected.values, frame[["a", "b"]])
    frame.to_parquet(tmp_path / "w.parquet")
    long = frame.melt(id_vars="time", var_name="who", value_name="much").sample(frac=1, random_state=0)
    options = {"time_column": "time", "series_column": "who", "value_column": "much"}
    for found in (
        read_file(tmp_path / "w.parquet", freq="D"),
        read(tmp_path, long.to_csv(index=False), freq="D", **options),
    ):
        assert found.names == expected.names
        assert np.array_equal(found.values, expected.values)


def test_gaps_and_nan_are_not_observed_and_nothing_is_filled(tmp_path: Path) -> None:
    rows = [
        ("2024-01-01 00:00", 1, 2),
        ("2024-01-01 02:00", "", 4),
        ("2024-01-01 01:00", 5, "inf"),
        ("2024-01-01 05:00", 7, 8),
    ]
    found = read(tmp_path, table("time;a;b", rows, ";"), freq="H")
    assert found.freq == "h"
    assert found.observed.tolist() == [[True, True], [True, False], [False, True], [False] * 2, [False] * 2, [True] * 2]
    assert np.isnan(found.values[3]).all()


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
    content = dated(DAYS).replace("t;a", "Zeit;Größe in Öre äöü").encode() + b"\n# cut \xc3"
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


def test_remarks_before_the_header_are_skipped_and_a_header_that_looks_like_one_is_not(tmp_path: Path) -> None:
    rows = "\n".join(f"2023-01-{day:02d},{day}" for day in range(1, 9))
    (tmp_path / "a.csv").write_text(f"# from somewhere\n# two, even, of them\ntime,a\n{rows}")
    (tmp_path / "b.csv").write_text(f"#time,a\n{rows}")
    for name in ("a.csv", "b.csv"):
        assert read_file(tmp_path / name, freq=None).names == ("a",)


def test_rows_of_a_header_make_the_names(tmp_path: Path) -> None:
    head = "Price,Close,Close\nTicker,ABC,0700.HK\nDate,,\n"
    found = read(tmp_path, head + "\n".join(f"{day.date()},{n},{n + 1}" for n, day in enumerate(DAYS)))
    assert found.names == ("Close ABC", "Close 0700.HK")
    assert len(found) == 40


# ------------------------------------------------------------------------------------------------------ numbers


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


@pytest.mark.parametrize(
    ("separator", "write", "first"),
    [
        (";", lambda n: grouped(1_999_990 + n), 1_999_990),
        (";", lambda n: grouped(990 + n), 990),  # 990 … 999, 1.000: thousands, or it would fall by 998
        (";", lambda n: f"1.234,{50 + n}", 1234.5),
        (";", lambda n: f"-1\u00a0234,{10 + n}", -1234.1),
        (";", lambda n: f"1\u202f234\u202f{100 + n}", 1_234_100),
        (",", lambda n: f"1’234’{100 + n}.5", 1_234_100.5),
        (",", lambda n: f'"{990 + n:,}"', 990),
        (",", lambda n: f'"12,34,{567 + n}"', 1_234_567),
        (",", lambda n: f'"-1,{100 + n}"', -1100),
        (",", lambda n: f'"({1000 + n:,}.50)"', -1000.5),
        (",", lambda n: f"{100 + n}-", -100),
        (",", lambda n: f"−{n}.5", -0.5),
        (",", lambda n: f"１{n}．５", 10.5),
        (",", lambda n: f"{1 + n}.5K", 1500),
        (",", lambda n: f"{1 + n}.5M" if n % 2 == 0 else f"{n}K", 1.5e6),
        (",", lambda n: f"${1 + n}.5B", 1.5e9),
        (",", lambda n: f"{1 + n}.5万", 15_000),
        (",", lambda n: f"{1 + n}.5 million", 1.5e6),
        (";", lambda n: f"{1 + n},5 Mrd. €", 1.5e9),
        (";", lambda n: f"R$ 1.{100 + n},50", 1100.5),
        (",", lambda n: f'="{1 + n}"', 1),
        (",", lambda n: f"\u200b{1 + n}", 1),
        (",", lambda n: "yes" if n % 3 else "no", 0),
        (";", lambda n: f"{n},5 °C", 0.5),
        (";", lambda n: f"{n},5 %", 0.5),
        (";", lambda n: f"{n},5E-03", 0.0005),
    ],
)
def test_a_number_is_read_as_it_is_written(
    tmp_path: Path, separator: str, write: Callable[[int], str], first: float
) -> None:
    text = table(f"t{separator}a", [(day.date(), write(n)) for n, day in enumerate(DAYS)], separator)
    found = read(tmp_path, text)
    assert found.names == ("a",)
    assert found.values[0, 0] == pytest.approx(first)
    assert np.isfinite(found.values).all()


def test_one_column_proves_the_decimal_comma_of_the_others(tmp_path: Path) -> None:
    rows = [(day.strftime("%d.%m.%Y"), grouped(950 + 7 * n), f"{12 + n},0") for n, day in enumerate(DAYS)]
    found = read(tmp_path, table("datum;umsatz;quote", rows, ";"))
    assert found.values[:, 0].tolist() == [950 + 7 * n for n in range(40)]
    assert found.notes == ()
    alone = read(tmp_path, table("datum;umsatz;quote", rows, ";"), columns=("umsatz",))
    assert np.array_equal(alone.values[:, 0], found.values[:, 0])


def test_what_nothing_proves_is_named_and_can_be_said(tmp_path: Path) -> None:
    text = table("t,a", [(day.date(), f"1.{n + 100}") for n, day in enumerate(DAYS)])
    found = read(tmp_path, text)
    assert found.values[0, 0] == 1.1
    assert "1.100" in found.notes[0]
    assert "dataset.decimal=comma" in found.notes[0]
    assert read(tmp_path, text, decimal="comma").values[0, 0] == 1100


def test_large_values_keep_their_small_changes(tmp_path: Path) -> None:
    text = table("t,kwh", [(day.date(), f"{1.2e9 + 24.3 * n:.1f}") for n, day in enumerate(DAYS)])
    found = read(tmp_path, text)
    np.testing.assert_allclose(np.diff(found.values[:, 0]), 24.3, atol=1e-5)
    options = SeriesOptions(
        source="csv", path=str(tmp_path / "a.csv"), prediction_length=2, test_windows=2, validation_windows=2
    )
    data = TimeSeries(options)
    np.testing.assert_allclose(np.diff(data.test()[0].values[0, :, 0]), 24.3, atol=1e-5)
    assert data.spec.std[0] == pytest.approx(24.3 * np.arange(data.training_end).std())


def test_columns_that_are_not_series_are_left_out_and_named(tmp_path: Path) -> None:
    columns = {
        "": lambda n, day: 3 * n % 40,  # rows that were shuffled
        "date": lambda n, day: day.date(),
        "sales": lambda n, day: 7 * n % 5,
        "weather": lambda n, day: "sun" if n % 2 else "rain",
        "nothing": lambda n, day: "",
        "store_id": lambda n, day: 7,
        "Unnamed: 0.1": lambda n, day: n,
        "index": lambda n, day: n + 2 * (n > 5),  # rows that were filtered
        "uuid": lambda n, day: f"{n:04x}",
        "year": lambda n, day: day.year,
        "weekday": lambda n, day: day.dayofweek,
    }
    rows = [[write(n, day) for write in columns.values()] for n, day in enumerate(DAYS)]
    found = read(tmp_path, table(",".join(columns), rows))
    assert found.names == ("sales",)
    for name in {*columns, "column_1"} - {"", "date", "sales"}:
        assert f"'{name}'" in found.notes[0] or "more" in found.notes[0]


@pytest.mark.parametrize("mark", [-999, 9999.9])
def test_a_number_that_may_mark_what_is_missing_is_named(tmp_path: Path, mark: float) -> None:
    text = table("t,a", [(day.date(), mark if n == 9 else n) for n, day in enumerate(DAYS)])
    assert f"{abs(mark):g} in 'a'" in read(tmp_path, text).notes[0]
    assert read(tmp_path, text.replace(str(mark), "9")).notes == ()


def test_rows_without_a_name_in_a_long_table_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [(day.date(), who, n) for n, day in enumerate(DAYS) for who in ("x", "y", "")]
    found = read(tmp_path, table("day,who,v", rows), series_column="who", value_column="v")
    assert found.names == ("x", "y")
    assert "40 rows" in found.notes[0]


# -------------------------------------------------------------------------------------------------------- times


def late(hour: int) -> str:
    """Hours that end a day as 24."""
    return f"{hour % 24 + 1:02d}"


@pytest.mark.parametrize(
    ("text", "freq", "first"),
    [
        (table("id,date,a", [(1900 + n, DAYS[n].date(), n) for n in range(40)]), "D", "2024-01-01T00:00:00"),
        (table("date,time,a", [(h.date(), f"{h:%H:%M}", 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("date,time,a", [(f"{h:%d/%m/%Y}", f"{h:%I:%M %p}", 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("date,hour,a", [(h.date(), h.hour, 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("date,time,a", [(h.date(), f"{h:%H%M}", 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("date,time,a", [(HOURS[n].date(), f"{late(n)}:00", 0) for n in range(60)]), "h", "2024-01-01T01:00:00"),
        (table("t,a", [(f"{HOURS[n].date()} {late(n)}:00", 0) for n in range(60)]), "h", "2024-01-01T01:00:00"),
        (table("t,a", [(f"{HOURS[n]:%Y%m%d}{late(n)}", 0) for n in range(60)]), "h", "2024-01-01T01:00:00"),
        (table("pop,year", [(1_400_000_000 + n, 1960 + n) for n in range(40)]), "Y-DEC", "1960-01-01T00:00:00"),
        (table("日期,a", [(f"{d.year}年{d.month}月{d.day}日", 0) for d in DAYS]), "D", "2024-01-01T00:00:00"),
        (table("year,month,a", [(m.year, m.month, 0) for m in MONTHS]), "M", "2020-01-01T00:00:00"),
        (table("Year,Period,a", [(m.year, f"M{m.month:02d}", 0) for m in MONTHS]), "M", "2020-01-01T00:00:00"),
        (table("year,doy,a", [(d.year, d.dayofyear, 0) for d in DAYS]), "D", "2024-01-01T00:00:00"),
        (table("Year,Day of Year,a", [(d.year, d.dayofyear, 0) for d in DAYS]), "D", "2024-01-01T00:00:00"),
        (table("YEAR,MO,DY,HR,a", [(h.year, h.month, h.day, h.hour, 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("year,doy,hour,min,a", [(h.year, h.dayofyear, h.hour, m, 0) for h in HOURS for m in (0, 30)]),
         "30min", "2024-01-01T00:00:00"),
        (table("Jahr,Woche,a", [(w.isocalendar().year, f"KW {w.week}", 0) for w in WEEKS]), "W-MON", "2024-01-01T00:00:00"),
        (table("Date,HE,a", [(HOURS[n].date(), n % 24 + 1, 0) for n in range(60)]), "h", "2024-01-01T01:00:00"),
        (table("date;time;a", [(h.date(), f"{h.hour} Uhr", 0) for h in HOURS], ";"), "h", "2024-01-01T00:00:00"),
        (table("year,qtr,a", [(2000 + n // 4, n % 4 + 1, 0) for n in range(20)]), "Q-DEC", "2000-01-01T00:00:00"),
        (table("No,year,month,day,hour,a", [(n + 1, h.year, h.month, h.day, h.hour, 0) for n, h in enumerate(HOURS)]),
         "h", "2024-01-01T00:00:00"),
        (table("MTU,a", [(f"{h:%d.%m.%Y %H:%M} - {h + pandas.Timedelta('1h'):%d.%m.%Y %H:%M}", 0) for h in HOURS]),
         "h", "2024-01-01T00:00:00"),
        (table("t,a", [(f"{h:%d.%m.%Y %H:%M}-{h + pandas.Timedelta('1h'):%H:%M}", 0) for h in HOURS]),
         "h", "2024-01-01T00:00:00"),
        ("# by a tool\nt;a\n" + table("2023-12-31;0", [(d.date(), 0) for d in DAYS], ";"), "D", "2023-12-31T00:00:00"),
        ("Report for Berlin, Germany\n\n" + table("t;a", [(d.date(), "1,5") for d in DAYS], ";"), "D", "2024-01-01T00:00:00"),
        ("sep=;\n" + table("t;a", [(d.date(), "1,5") for d in DAYS], ";"), "D", "2024-01-01T00:00:00"),
        (table("t;a", [("", "kWh"), *((d.date(), "1,5") for d in DAYS)], ";"), "D", "2024-01-01T00:00:00"),
        (table('"t","a"', [(n + 1, d.date(), 0) for n, d in enumerate(DAYS)]), "D", "2024-01-01T00:00:00"),
        (table("t;a", [(d.date(), "1,5;") for d in DAYS], ";"), "D", "2024-01-01T00:00:00"),
        (table("t,a", [(d.date(), n) for n, d in enumerate(DAYS)][::-1]), "D", "2024-01-01T00:00:00"),
    ],
)  # fmt: skip
def test_times_are_found_where_and_as_they_are(tmp_path: Path, text: str, freq: str, first: str) -> None:
    found = read(tmp_path, text)
    assert (found.freq, found.times(0, 1)) == (freq, [first])
    assert len(found) == np.isfinite(found.values[:, -1]).sum()
    assert found.variates == 1


@pytest.mark.parametrize(
    ("write", "times", "freq"),
    [
        *((form, "weeks", "W-MON") for form in (
            "KW{w:02d} {y}", "KW {w}/{y}", "{y}-W{w:02d}", "{y}W{w:02d}-1", "{y}-KW{w:02d}", "{y} KW{w}", "W{w:02d} {y}",
            "Week {w}, {y}", "{y}/W{w:02d}", "{w:02d}. KW {y}", "{y}-S{w:02d}", "CW{w:02d}/{s:02d}", "{w}/{y} KW",
            "{y}第{w}周", "{y}年第{w}週",
        )),
        *((form, "quarters", "Q-DEC") for form in (
            "{y}Q{q}", "{y}-Q{q}", "Q{q} {y}", "Q{q}-{s:02d}", "{q}Q{s:02d}", "{y}年{q}季度", "T{q} {y}", "{y}T{q}",
        )),
        *((form, "days", "D") for form in (
            "{y}-{j:03d}", "{y}{j:03d}", "{d}. {german} {y}", "{d} {russian} {y}", "{english} {d}, {y}", "{serial}",
            "{matlab}", "{julian}", "{epoch:.9e}", "{d}/{m}/{y} 00.00", "{y}/{m}/{d}", "{y}{m:02d}{d:02d} 0000",
        )),
    ],
)  # fmt: skip
def test_times_are_read_as_they_are_written(tmp_path: Path, write: str, times: str, freq: str) -> None:
    days = {"weeks": WEEKS, "quarters": pandas.date_range("2024-01-01", periods=20, freq="QS"), "days": DAYS}[times]

    def written(day: pandas.Timestamp) -> str:
        of_week, since = day.isocalendar() if times == "weeks" else day, (day - pandas.Timestamp(1970, 1, 1)).days
        months = {"german": ["Januar", "Februar"], "russian": ["января", "февраля"], "english": ["January", "February"]}
        names = {language: two[(day.month - 1) % 2] for language, two in months.items()}
        number = {
            "serial": since + 25569,
            "matlab": since + 719529,
            "julian": since + 2440587.5,
            "epoch": since * 86400,
        }
        parts = {
            "y": of_week.year,
            "s": of_week.year % 100,
            "w": day.week,
            "q": day.quarter,
            "m": day.month,
            "d": day.day,
        }
        return write.format(**parts, j=day.dayofyear, **names, **number)

    found = read(tmp_path, table("date;a", [(written(day), n) for n, day in enumerate(days)], ";"))
    assert (found.freq, found.times(0, 1)[0][:19]) == (freq, days[0].isoformat())
    assert len(found) == len(days)


@pytest.mark.parametrize(
    ("times", "freq", "start"),
    [
        (DAYS.strftime("%d.%m.%Y"), "D", "2024-01-01"),
        (DAYS.strftime("%m/%d/%Y"), "D", "2024-01-01"),
        (DAYS[:12].strftime("%d.%m.%y"), "D", "2024-01-01"),  # nothing but the rhythm tells day from month
        (DAYS[:12].strftime("%m/%d/%y"), "D", "2024-01-01"),
        (MONTHS.strftime("%d.%m.%Y"), "M", "2020-01"),  # every day is the first: read month first they would be days
        (DAYS.strftime("%Y%m%d"), "D", "2024-01-01"),
        (DAYS.strftime("%d-%b-%y"), "D", "2024-01-01"),
        (HOURS.strftime("%Y-%m-%dT%H:%M:%SZ"), "h", "2024-01-01 00:00"),
        (HOURS.strftime("%m/%d/%Y %I:%M %p"), "h", "2024-01-01 00:00"),
        ([str(t.date()) if t.hour == 0 else str(t) for t in HOURS], "h", "2024-01-01 00:00"),  # as spreadsheets do
        (HOURS.astype("int64") // 10**9, "h", "2024-01-01 00:00"),
        (HOURS.astype("int64") // 10**6, "h", "2024-01-01 00:00"),
        ([t.isoformat() for t in BERLIN], "h", "2024-10-25 22:00"),  # clocks go back: UTC
        (
            pandas.date_range("2024-01-01", periods=40, freq="30s").strftime("%Y%m%d %H%M%S"),
            "30s",
            "2024-01-01 00:00:00",
        ),
        (range(1950, 2000), "Y-DEC", "1950"),
        *((MONTHS.strftime(form), "M", "2020-01") for form in ("%Y%m", "%YM%m", "%b %Y", "%b-%y", "%B %Y", "%-m/%Y")),
        *((HOURS.strftime(f"%Y%m%d{form}"), "h", "2024-01-01 00:00") for form in ("%H", "%H%M", "%H%M%S", " %H%M")),
        *((QUARTERS.map(f"{{0.year}}{form}".format), "Q-DEC", "2000Q1") for form in ("Q{0.quarter}", "-{0.month}-1")),
        (pandas.date_range("2000-01-01", periods=20, freq="YS"), "Y-DEC", "2000"),
    ],
)
def test_times_are_read_in_any_form_and_their_step_is_found(tmp_path: Path, times: Any, freq: str, start: str) -> None:
    found = read(tmp_path, dated(times))
    assert (found.freq, found.start) == (freq, start)
    assert found.values[:, 0].tolist() == list(range(len(times)))


def test_numbers_that_are_taken_for_years_are_named(tmp_path: Path) -> None:
    found = read(tmp_path, table("nr,a", [(1900 + n, n) for n in range(40)]))
    assert "'nr'" in found.notes[0]
    assert "dataset.time_column" in found.notes[0]


def test_day_first_can_be_said(tmp_path: Path) -> None:
    text = "time,a\n01/02/2024,1\n01/03/2024,2\n01/04/2024,3\n"
    assert read(tmp_path, text, day_first=True).freq == "M"
    assert read(tmp_path, text, day_first=False).freq == "D"


@pytest.mark.parametrize(
    ("times", "following"),
    [
        (pandas.date_range("2022-01-03", periods=120, freq="W-MON"), "2024-04-22T00:00:00"),
        (pandas.date_range("2022-01-02", periods=120, freq="W-SUN"), "2024-04-21T00:00:00"),
        (pandas.date_range("2020-01-31", periods=30, freq="ME"), "2022-07-31T00:00:00"),
        (pandas.date_range("2020-01-31", periods=30, freq="BME"), "2022-07-29T00:00:00"),
        (pandas.DatetimeIndex([pandas.Timestamp(2020, 1, 15) + pandas.DateOffset(months=n) for n in range(30)]), "2022-07-15T00:00:00"),
        (pandas.date_range("2020-03-31", periods=20, freq="QE"), "2025-03-31T00:00:00"),
        (pandas.date_range("2000-12-31", periods=20, freq="YE"), "2020-12-31T00:00:00"),
        (pandas.date_range("2024-01-01 12:00", periods=40, freq="D"), "2024-02-10T12:00:00"),
        (pandas.date_range("2024-01-01 00:15", periods=40, freq="h"), "2024-01-02T16:15:00"),
        (pandas.date_range("2024-01-01 00:10", periods=40, freq="30min"), "2024-01-01T20:10:00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("gaps", [[], [3, 9, 10]])
def test_forecast_times_continue_those_of_the_file(tmp_path: Path, times: Any, following: str, gaps: list[int]) -> None:
    text = table("t,a", [(time, n) for n, time in enumerate(times) if n not in gaps])
    found = read(tmp_path, text)
    assert found.times(0, len(times)) == [time.isoformat() for time in times]
    assert found.times(len(found), 1) == [following]


def test_rows_without_a_value_do_not_hide_the_rhythm(tmp_path: Path) -> None:
    rows = [f"{month.date()},{number}" for number, month in enumerate(MONTHS)]
    rows.insert(7, "2020-07-17,")
    assert read(tmp_path, "t,a\n" + "\n".join(rows)).freq == "M"


@pytest.mark.parametrize(
    ("start", "steps", "observed", "note"),
    [
        ("2024-10-26", 72, 73, "comes once"),  # 02:00 once where it comes twice: a step was not observed
        ("2024-03-30", 72, 71, "clocks skip"),  # 02:00 where there is none
    ],
)
def test_hours_that_clocks_repeat_or_skip(tmp_path: Path, start: str, steps: int, observed: int, note: str) -> None:
    times = pandas.date_range(start, periods=steps, freq="h")
    text = table("t,a", [(time, n) for n, time in enumerate(times)])
    found = read(tmp_path, text, time_zone="Europe/Berlin")
    assert found.freq == "h"
    assert len(found) == observed
    assert any(note in line for line in found.notes)


def test_local_times_come_back_as_local_times(tmp_path: Path) -> None:
    berlin = pandas.date_range("2024-10-26", periods=240, freq="15min", tz="Europe/Berlin")
    rows = [(time, who, n) for n, time in enumerate(berlin.tz_localize(None)) for who in "xy"]
    options = {"series_column": "who", "value_column": "v", "time_zone": "Europe/Berlin"}
    found = read(tmp_path, table("t,who,v", rows), **options)
    assert found.times(0, 240) == [time.isoformat() for time in berlin]
    days = table("t,a", [(day, n) for n, day in enumerate(pandas.date_range("2024-03-20", periods=30))])
    assert read(tmp_path, days, time_zone="Europe/Berlin").freq == "D"
    offsets = [time.isoformat() for time in pandas.date_range("2024-03-20", periods=30, tz="Europe/Berlin")]
    assert read(tmp_path, table("t,a", [(time, n) for n, time in enumerate(offsets)])).freq == "D"
    seconds = table("t,a", [(int(time.timestamp()), n) for n, time in enumerate(berlin)])
    assert read(tmp_path, seconds, time_zone="Europe/Berlin").times(0, 1) == [berlin[0].isoformat()]


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


# ----------------------------------------------------------------------------------------------------- refusals


DAY = ["2024-01-01", "2024-01-02", "2024-01-03"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "cannot be read as a table|is empty"),
        ("t,a\n", {}, "is empty"),
        (b"PK\x03\x04\x00\x00\x00", {}, "it is not text"),
        (table("t,a", [("2024-01-01,1", 5), ("2024-01-02,2", 5)]), {}, "decimal comma"),
        ("2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n", {}, "has no line of names"),
        (table("country,2000,2001,2002", [("DE", 1, 2, 3), ("FR", 1, 2, 3)]), {}, "row a time"),
        # times
        (table("t,a", zip(["yesterday?", "no", "x"], DAY, strict=True)), {"time_column": "t"}, "'t' is not made of times"),
        ("n,a\n7,1\n9,2\n9,3\n", {}, r"'n' is not made of times.*nor is any other of 2"),
        (dated(f"{h:%H:%M}" for h in HOURS[:24]), {}, "without a date"),
        (dated(f"{d:%d-%b}" for d in DAYS), {}, "no year"),
        (dated(f"{d:%d.%m.}" for d in DAYS), {}, "no year"),
        (dated([*(f"{d:%Y-%m-%d}" for d in DAYS), "Total"]), {}, "'Total' in row 42"),
        (dated(f"{2000 + n / 12:.4f}" for n in range(40)), {}, r"fraction such as 2000\.0833"),
        (dated(f"令和6年1月{n + 1}日" for n in range(30)), {}, "'令和6年1月1日' is not a date"),
        (table("date,hour,a", [(day.date(), h, 0) for day in DAYS for h in range(1, 26)]), {}, "25 hours"),
        (dated([DAY[0], "", DAY[2]]), {"freq": "D"}, "has 1 rows without a time"),
        (dated([DAY[0]] * 2), {"freq": "D"}, "1 duplicate times, first 2024-01-01"),
        ("year,half,a\n2000,1,1\n2000,2,2\n2001,1,3\n", {}, "1 duplicate times"),
        ("who,day,much\nx,2024-01-01,1\ny,2024-01-01,2\n", {}, "dataset.series_column=who dataset.value_column=much"),
        (dated(BERLIN.tz_localize(None)), {}, "1 duplicate times, first 2024-10-27 02:00:00.*give dataset.time_zone"),
        (dated(BERLIN.tz_localize(None)), {"time_zone": "Berlin"}, "'Berlin', which is not a zone"),
        # steps
        (
            dated(["2024-01-01", "2024-01-02", "2024-01-12", "2024-01-13", "2024-01-20", "2024-02-01", "2024-03-01"]),
            {},
            "not from 2024-01-02 to 2024-01-12, 2024-01-13 to 2024-01-20, 2024-01-20 to 2024-02-01 and 1 more;.*as D:",
        ),
        (dated([*DAY[:2], "2024-01-09"]), {}, "cannot be inferred from the timestamps.*give dataset.freq"),
        (dated(f"2023-01-{day} 12:{n}0" for n, day in enumerate(("01", "11", "20", "30"))), {}, "give dataset.freq"),
        (dated(f"{DAY[0]} {time}" for time in ("00:00:01", "00:10:03", "00:20:04", "00:30:04")), {}, "most often it is"),
        (dated(DAY), {"freq": "fortnight"}, "'fortnight', which pandas does not know"),
        (dated(DAY), {"freq": "M"}, "puts several rows into one step, first 2024-01"),
        (dated(["1900-01-01", DAY[0]]), {"freq": "min"}, "more than 20,000,000 numbers, the widest gap being behind 1900-01-01"),
        # numbers
        (table("t,a", zip(DAY, "xyz", strict=True)), {"freq": "D"}, "no column of numbers"),
        (table("t,a", [(day, "") for day in DAY]), {}, "no column of numbers among 'a'"),
        (table("t,a", zip(DAY, "xyz", strict=True)), {"columns": ("a",)}, "a value that is not a number"),
        (table("t,a", zip(DAY, ["1", "2", "12x"], strict=True)), {}, "'12x' in column 'a' at 2024-01-03"),
        (table("t,a", [(day.date(), f"{n} p" if n % 2 else f"{n} e") for n, day in enumerate(DAYS)]), {}, "0 e"),
        (table("t,a", [(day, "3½") for day in DAY]), {}, "3½"),
        # names
        ("t,alpha\n2024-01-01,1\n", {"columns": ("alpah",)}, "no column 'alpah'.*did you mean 'alpha'"),
        ("t,a\n2024-01-01,1\n", {"leave_out": ("b",)}, "leave_out names 'b', which is not a series"),
        ("t,a\n2024-01-01,1\n", {"leave_out": ("a",)}, "names every series"),
        ("t,s,v\n2024-01-01,x,1\n", {"series_column": "s"}, "needs both"),
        ("t,s,v\n" + "2024-01-01,x,1\n" * 2, {"series_column": "s", "value_column": "v"}, "1 duplicate times"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_that_says_why(
    tmp_path: Path, text: str | bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text, **options)
    assert "\n" not in str(caught.value)


def test_a_spreadsheet_and_a_missing_file_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save it as CSV"):
        read(tmp_path, "x", "a.xlsx")
    with pytest.raises(UserError, match=r"nothing\.csv does not exist"):
        read_file("nothing.csv", freq="D")


@pytest.mark.parametrize("name", ["a", "1", "empty (m²)", 'a "b"', "O'Neill", "a,b", "null", "back\\slash", "a=b: c"])
def test_advice_can_be_typed(name: str) -> None:
    (word,) = shlex.split(typed("dataset.leave_out", name))
    assert OverridesParser.create().parse_override(word).value() == [name]
    (word,) = shlex.split(typed("dataset.time_column", name, many=False))
    assert OverridesParser.create().parse_override(word).value() == name
