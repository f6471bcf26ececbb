"""Files that people really have: numbers, columns and times that were once read as something else without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gluonts")

import pandas

from diffusion_forcing.datasets.series.dataset import SeriesOptions, TimeSeries
from diffusion_forcing.datasets.series.files import read_file, typed
from diffusion_forcing.datasets.series.table import Table
from diffusion_forcing.errors import UserError

DAYS = pandas.date_range("2024-01-01", periods=40)
HOURS = pandas.date_range("2024-01-01", periods=60, freq="h")
WEEKS = pandas.date_range("2024-01-01", periods=60, freq="W-MON")
MONTHS = pandas.date_range("2020-01-01", periods=30, freq="MS")
NUMBERS = list(range(60))


def read(folder: Path, text: str | bytes, **options: Any) -> Table:
    (folder / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(folder / "a.csv", **{"freq": None, **options})


def table(header: str, rows: Iterable[Any], separator: str = ",") -> str:
    return "\n".join([header, *(separator.join(map(str, row)) for row in rows)])


def grouped(number: int) -> str:
    return f"{number:,}".replace(",", ".")


# ------------------------------------------------------------------------------------------------------ numbers


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


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (table("t,a", [("2024-01-01,1", 5), ("2024-01-02,2", 5)]), "decimal comma"),
        (table("t,a", [("2024-01-01", 1), ("2024-01-02", 2), ("2024-01-03", "3x4")]), "3x4"),
        (table("t,a", [(day.date(), f"{n} p" if n % 2 else f"{n} e") for n, day in enumerate(DAYS)]), "0 e"),
        (table("t,a", [(day.date(), "3½") for day in DAYS]), "3½"),
        (table("date,hour,a", [(day.date(), h, 0) for day in DAYS for h in range(1, 26)]), "25 hours"),
        (table("country,2000,2001,2002", [("DE", 1, 2, 3), ("FR", 1, 2, 3)]), "row a time"),
    ],
)
def test_a_file_that_is_no_table_of_numbers_says_where(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert named in str(caught.value)


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
        (table("t,a", [(f"{h:%Y%m%d%H}", 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("t,a", [(f"{h:%Y%m%d%H%M}", 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("t,a", [(f"{h:%Y%m%d%H%M%S}", 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("t,a", [(f"{h:%Y%m%d %H%M}", 0) for h in HOURS]), "h", "2024-01-01T00:00:00"),
        (table("pop,year", [(1_400_000_000 + n, 1960 + n) for n in range(40)]), "Y-DEC", "1960-01-01T00:00:00"),
        (table("m,a", [(f"{m:%b-%y}", 0) for m in MONTHS]), "M", "2020-01-01T00:00:00"),
        (table("m,a", [(f"{m:%B %Y}", 0) for m in MONTHS]), "M", "2020-01-01T00:00:00"),
        (table("m,a", [(f"{m.month}/{m.year}", 0) for m in MONTHS]), "M", "2020-01-01T00:00:00"),
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
        (table("date,a", [(45292 + n, 0) for n in range(30)]), "D", "2024-01-01T00:00:00"),
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


def test_rows_of_a_header_make_the_names(tmp_path: Path) -> None:
    head = "Price,Close,Close\nTicker,ABC,0700.HK\nDate,,\n"
    found = read(tmp_path, head + "\n".join(f"{day.date()},{n},{n + 1}" for n, day in enumerate(DAYS)))
    assert found.names == ("Close ABC", "Close 0700.HK")
    assert len(found) == 40


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ([f"{h:%H:%M}" for h in HOURS[:24]], "without a date"),
        ([f"{d:%d-%b}" for d in DAYS], "no year"),
        ([f"{d:%d.%m.}" for d in DAYS], "no year"),
        ([f"{2000 + n / 12:.4f}" for n in range(40)], "fraction such as 2000.0833"),
        ([f"令和6年1月{n + 1}日" for n in range(30)], "'令和6年1月1日' is not a date"),
        ([*(f"{d:%Y-%m-%d}" for d in DAYS), "Total"], "'Total' in row 42"),
    ],
)
def test_nothing_is_added_to_a_time_that_is_not_there(tmp_path: Path, times: list[str], why: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, table("t,a", [(time, n) for n, time in enumerate(times)]))
    assert why in str(caught.value)


def test_numbers_that_are_taken_for_years_are_named(tmp_path: Path) -> None:
    found = read(tmp_path, table("nr,a", [(1900 + n, n) for n in range(40)]))
    assert "'nr'" in found.notes[0]
    assert "dataset.time_column" in found.notes[0]


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


# ------------------------------------------------------------------------------------------- advice, checkpoints


@pytest.mark.parametrize("name", ["a", "1", "empty (m²)", 'a "b"', "O'Neill", "a,b", "null", "back\\slash", "a=b: c"])
def test_advice_can_be_typed(name: str) -> None:
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    (word,) = shlex.split(typed("dataset.leave_out", name))
    assert OverridesParser.create().parse_override(word).value() == [name]
    (word,) = shlex.split(typed("dataset.time_column", name, many=False))
    assert OverridesParser.create().parse_override(word).value() == name


def data_of(folder: Path, header: str, **options: Any) -> TimeSeries:
    names = header.split(",")
    values = {"t": DAYS.date, "a": [10.0] * 40, "b": [1000.0] * 40, "x": [1.0] * 40}
    pandas.DataFrame({name: values[name] for name in names}).to_csv(folder / "a.csv", index=False)
    known: dict[str, Any] = {"prediction_length": 2, "test_windows": 2, "validation_windows": 2}
    return TimeSeries(SeriesOptions(source="csv", path=str(folder / "a.csv"), **{**known, **options}))


def test_series_are_matched_to_a_trained_forecaster_by_name(tmp_path: Path) -> None:
    trained = {**data_of(tmp_path, "t,a,b").spec._asdict(), "has_gaps": True, "season": 7}
    data = data_of(tmp_path, "t,x,b,a")
    data.match(trained)
    assert data.table.names == ("a", "b")
    assert data.table.values[0].tolist() == [10, 1000]
    assert (data.spec.has_gaps, data.spec.season, data.spec.prediction_length) == (True, 7, 2)
    assert "'x'" in data.table.notes[-1]
    older = {name: value for name, value in trained.items() if name not in ("change_std", "season_std", "season")}
    data = data_of(tmp_path, "t,x,b,a")
    data.match({**older, "mean": [1.0, 2.0]})
    assert data.spec.mean.tolist() == [1, 2]
    assert data.spec.change_std.shape == (2,)


def test_another_series_or_step_is_refused_by_name(tmp_path: Path) -> None:
    trained = data_of(tmp_path, "t,a,b").spec._asdict()
    with pytest.raises(UserError, match=r"'b'.*'x'"):
        data_of(tmp_path, "t,a,x").match(trained)
    with pytest.raises(UserError, match=r"steps of h.*steps of D"):
        data_of(tmp_path, "t,a,b").match({**trained, "freq": "h"})
