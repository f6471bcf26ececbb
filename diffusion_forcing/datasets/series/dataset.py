"""Time series as windows for forecasting: where they come from, how they are split, what they are scaled by.

A window is `context_length` steps of history and `prediction_length` steps to forecast. The last `test_windows` windows
are the test, as in GluonTS's rolling evaluation; the `validation_windows` before them validate; training windows end
before those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from diffusion_forcing.datasets.batch import Method, SeriesBatch, SeriesSpec
from diffusion_forcing.datasets.series import table as tables
from diffusion_forcing.datasets.series.files import leave_out_checked, read_file, typed
from diffusion_forcing.datasets.series.smoothing import Base, choose, seasons_of
from diffusion_forcing.datasets.series.synthetic import SyntheticWindows, synthetic_table
from diffusion_forcing.datasets.series.table import Table
from diffusion_forcing.datasets.series.times import count_and_unit, lags_of, season_of
from diffusion_forcing.errors import UserError, did_you_mean, require
from diffusion_forcing.options import Count, Natural, check_limits

Source = Literal["ecb", "load", "csv", "gluonts", "synthetic"]
ECB = ("AUD", "GBP", "CAD", "CHF", "JPY", "NZD", "SGD", "SEK")
OF_FILES = (
    *("freq", "time_column", "series_column", "value_column", "columns", "leave_out", "day_first", "time_zone"),
    "decimal",
)
"""Options that say how a file is read."""
SMALLEST_STD = 1e-12
"""Of the mean: a variate that moves less is constant, and is scaled by 1."""
SHOWN, SHOWN_STEPS = 2**32, 700
"""Seed and length of the synthetic table that validates and is drawn; no table of the training part has this seed."""
LOWER, TALLEST = 0.5, 3.0
"""Times the lowest value that was seen of a series that was never negative: no path is below. Times the highest of one
that is smoothed by its logarithm: none is above."""
MOST_WINDOWS = 5
FEWEST_STEPS = 3
"""Before the first window that is kept from training."""
NATURAL_TOPS = (1.0, 100.0)
"""A share or a percentage that reaches one of these goes no higher."""


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """`dataset=ts_*`. prediction_length, context_length: in steps; null: the data set's own, and as long as the
    prediction. test_windows, validation_windows: null: 5, or as many as leave half of the
    data to train on. decimal: the mark in the file's numbers; null: what they prove. known_future: series whose values to
    come are known when a forecast is made. epoch_windows: the fewest windows of an epoch; where there are fewer, all
    are shown several times."""

    source: Source
    name: str = ""
    path: str | None = None
    freq: str | None = None
    time_column: str | None = None
    day_first: bool | None = None
    time_zone: str | None = None
    decimal: Literal["point", "comma"] | None = None
    series_column: str | None = None
    value_column: str | None = None
    columns: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    currencies: tuple[str, ...] = ECB
    variates: Count = 2000
    prediction_length: Count | None = None
    context_length: Count | None = None
    test_windows: Natural | None = None
    validation_windows: Natural | None = None
    lags: tuple[Count, ...] | None = None
    known_future: tuple[str, ...] = ()
    epoch_windows: Count = 3200

    def __post_init__(self) -> None:
        check_limits("dataset", self)
        if self.source == "csv":
            require(bool(self.path), "dataset=ts_csv needs dataset.path=<a CSV or Parquet file>")
            require(self.prediction_length is not None, "dataset=ts_csv needs dataset.prediction_length=<steps>")
        require(bool(self.currencies), "dataset.currencies is empty; name at least one, such as GBP")


class _Split(NamedTuple):
    """A table, the steps of a window, and where the windows of each part end, in steps from the table's beginning."""

    table: Table
    context_length: int
    prediction_length: int
    test_ends: list[int]
    validation_ends: list[int]
    training_end: int


class TimeSeries:
    """Windows of one table: `training()`, `validation()`, `test()`, and the `spec` that a forecaster is built from. The
    table is read by `prepare()`, or when it is first needed."""

    Options = SeriesOptions

    def __init__(self, options: SeriesOptions) -> None:
        self.options = options

    def prepare(self, progress: bool = True) -> None:
        """Read the table. UserError where it cannot be had, or is too short."""
        _ = self.split

    @cached_property
    def split(self) -> _Split:
        """The table and its windows."""
        options = self.options
        table, ends, length = self._read()
        for name in options.known_future:
            if name not in table.names:
                raise UserError(
                    f"dataset.known_future names '{name}', which is not a series{did_you_mean(name, table.names)}; "
                    f"there are: {_listed(table.names)}"
                )
        known = np.isin(table.names, options.known_future)
        require(not known.all(), "dataset.known_future names every series; leave out at least one, to be forecast")
        require(
            table.variates <= options.variates,
            f"the table has {table.variates:,} series, dataset.variates allows {options.variates:,}; "
            "raise it, or name some with dataset.columns",
        )
        context = options.context_length or length
        end = ends[0] if ends else _end(table, known)
        asked = options.test_windows, options.validation_windows
        left = end - length * sum(count or 0 for count in asked) - max(context + length + 1, end // 2)
        few = int(np.clip(left // (length * (asked.count(None) or 1)), 1, MOST_WINDOWS))
        test, validating = (few if count is None else count for count in asked)
        ends = ends or _windows_before(end, test, length)
        validation = _windows_before(ends[0] - length if ends else end, validating, length)
        first = min([*ends[:1], *validation[:1], end + length]) - length
        if first < FEWEST_STEPS:
            raise self._too_short(table, context, length, first)
        return _Split(table, context, length, ends, validation, first)

    def _too_short(self, table: Table, context: int, length: int, first: int) -> UserError:
        options = self.options
        return UserError(
            f"{options.path or options.name or options.source}: {len(table)} steps are too few: the windows to test and to "
            f"validate, {length} steps each, leave {max(0, first)} to train on, and a window has {context} + {length}. Give "
            f"at least {3 * length + context + 1} steps, or a shorter dataset.prediction_length"
        )

    def _read(self) -> tuple[Table, list[int], int]:
        """The table, where test windows end if its source says so, and the steps to forecast."""
        options, ends = self.options, list[int]()
        length = options.prediction_length or 1
        match options.source:
            case "csv":
                return (
                    read_file(options.path or "", **{name: getattr(options, name) for name in OF_FILES}),
                    ends,
                    length,
                )
            case "ecb":
                table = tables.read_ecb(options.currencies)
            case "load":
                table = tables.read_simbench(options.variates)
            case "synthetic":
                values = synthetic_table(np.random.default_rng(SHOWN), SHOWN_STEPS, season=7)
                table = Table(values, "2000-01-01", "D", tuple(f"{number}" for number in range(values.shape[1])))
            case "gluonts":
                table, ends, own = tables.read_gluonts(options.name, options.path, options.variates)
                length = options.prediction_length or own
        if options.leave_out:
            leave_out_checked(options.leave_out, list(table.names))
            table = table.only([name for name in table.names if name not in options.leave_out])
        return table, ends, length

    def match(self, trained: Mapping[str, Any]) -> None:
        """Take the series of a forecaster that was trained before, by their names and in its order, with its
        statistics, lags and season.

        trained: `SeriesSpec` as its checkpoint holds it; without names, the forecaster takes any series. UserError where
        a series is missing or the time between steps is another. Series that it does not know are left out. Gaps are no
        obstacle: a network that was trained without any is not conditioned on them.
        """
        table = self.table
        if self.options.context_length is None and "context_length" in trained and "names" not in trained:
            self.split = self.split._replace(context_length=int(trained["context_length"]))
        if "freq" not in trained:
            return
        theirs, ours = trained["freq"], table.freq
        if count_and_unit(theirs) != count_and_unit(ours):
            raise UserError(
                f"the forecaster was trained on steps of {theirs}, the data has steps of {ours}; "
                f"give such data, or dataset.freq={theirs}"
            )
        names = list(trained.get("names", table.names))
        missing = [name for name in names if name not in table.names]
        new = [name for name in table.names if name not in names]
        if missing:
            raise UserError(
                f"the forecaster was trained on the series {_listed(names)}; the data lacks {_listed(missing)}"
                + (f" and has {_listed(new)}, which it does not know" if new else "")
                + "; give the same series under the same names, or train a new forecaster"
            )
        note = f"left out: {_listed(new)}, which the forecaster was not trained on"
        table = replace(table.only(names), notes=(*table.notes, note) if new else table.notes)
        self.split = self.split._replace(table=table)
        lags = tuple(trained["lags"]) if self.options.lags is None else self.options.lags
        own = {} if "methods" in trained else self._spec(lags)._asdict()  # released, or an older one
        lengths = {"context_length": self.context_length, "prediction_length": self.prediction_length}
        spec = SeriesSpec.from_plain({**own, **trained, **lengths, "lags": lags})
        self.spec = _widened(spec, table.values[: self.known_until])

    @cached_property
    def spec(self) -> SeriesSpec:
        """What the forecaster is built from."""
        return self._spec(lags_of(self.table.freq) if self.options.lags is None else self.options.lags)

    def _spec(self, lags: tuple[int, ...]) -> SeriesSpec:
        return spec_of(
            self.table, self.training_end, lags, self.context_length, self.prediction_length, self.known_until
        )

    @cached_property
    def base(self) -> Base:
        """The base forecasts of the table, by the methods of `spec`."""
        return Base(self.table.values, self.spec.methods, self.known_until)

    def base_before(self, end: int) -> Base:
        """Base forecasts by methods that were chosen on the first `end` steps alone."""
        methods = choose(self.table.values[:end], self.prediction_length, seasons_of(self.table.freq, end))
        return Base(self.table.values, methods, end)

    table = property(lambda self: self.split.table)
    context_length = property(lambda self: self.split.context_length, doc="Steps of history in a window.")
    prediction_length = property(lambda self: self.split.prediction_length, doc="Steps to forecast.")
    test_ends = property(lambda self: self.split.test_ends, doc="Where each test window ends.")
    validation_ends = property(lambda self: self.split.validation_ends, doc="Where each validation window ends.")
    training_end = property(lambda self: self.split.training_end, doc="One past the last step that is trained on.")

    @property
    def known_until(self) -> int:
        """One past the last step before the test windows' forecasts: simple methods are chosen on what lies before."""
        return self.test_ends[0] - self.prediction_length if self.test_ends else self.end

    @property
    def known_future(self) -> NDArray[np.bool_]:
        """(V,): which series' values to come are known."""
        return np.isin(self.table.names, self.options.known_future)

    @property
    def end(self) -> int:
        """One past the last step of which a series that is to be forecast was observed."""
        return _end(self.table, self.known_future)

    def future(self) -> SeriesWindows:
        """The one window that begins to forecast at `end`."""
        return self.windows([self.end + self.prediction_length])

    def training(self) -> SeriesWindows | SyntheticWindows:
        """Every window of the training part; several times where there are fewer than `epoch_windows`. Of synthetic
        series, `epoch_windows` of other tables."""
        if self.options.source == "synthetic":
            return SyntheticWindows(self.options.epoch_windows, self.context_length, self.prediction_length)
        ends = list(range(self.context_length + self.prediction_length, self.training_end + 1))
        if len(ends) < 2:
            raise self._too_short(self.table, self.context_length, self.prediction_length, self.training_end)
        return self.windows(ends * -(-self.options.epoch_windows // len(ends)))

    def validation(self) -> SeriesWindows:
        """The validation windows."""
        return self.windows(self.validation_ends)

    def test(self) -> SeriesWindows:
        """The test windows."""
        return self.windows(self.test_ends)

    def windows(self, ends: list[int]) -> SeriesWindows:
        """The windows that end before steps `ends`, behind the data too."""
        spec = self.spec
        return SeriesWindows(self.table, ends, spec.lags, self.context_length, self.prediction_length, self.base)


def _end(table: Table, known: NDArray[np.bool_]) -> int:
    """One past the last step of which a series that is not `known` was observed."""
    observed = np.flatnonzero(table.observed[:, ~known].any(axis=1))
    return int(observed[-1]) + 1 if len(observed) else len(table)


def _windows_before(end: int, count: int, length: int) -> list[int]:
    """Where `count` windows end that lie `length` steps apart, the last at `end`."""
    return [end - n * length for n in reversed(range(count))]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def spec_of(
    table: Table,
    training_end: int,
    lags: tuple[int, ...],
    context: int,
    prediction: int,
    known_until: int | None = None,
) -> SeriesSpec:
    """The specification of a table whose first `training_end` steps are trained on, and whose first `known_until` (None:
    as many) the simple methods are chosen on."""
    known = table.values[: training_end if known_until is None else known_until]
    part = table.values[:training_end]
    empty = ~np.isfinite(known).any(axis=0)
    if empty.any():
        column = int(empty.argmax())
        name, values = table.names[column], np.flatnonzero(table.observed[:, column])
        since = f", the first is at {table.times(int(values[0]), 1)[0]}" if len(values) else ""
        raise UserError(
            f"series '{name}' has no value in the {len(known)} steps to train on{since}; "
            f"leave it out: {typed('dataset.leave_out', name)}"
        )
    methods = choose(known, prediction, seasons_of(table.freq, len(known)))
    part = part if np.isfinite(part).any(axis=0).all() else known  # a series that begins late
    mean, std = np.nanmean(part, axis=0), np.nanstd(part, axis=0)
    least = SMALLEST_STD * np.maximum(np.abs(mean), SMALLEST_STD)
    return SeriesSpec(
        variates=table.variates,
        freq=table.freq,
        date_features=table.dates().shape[1],
        lags=lags,
        context_length=context,
        prediction_length=prediction,
        mean=mean,
        std=np.where(std > least, std, 1.0),
        has_gaps=bool(~table.observed.all()),
        names=table.names,
        season=season_of(lags_of(table.freq), table.freq, len(known)),
        methods=methods,
        **_ranges(known, methods),
    )


def _ranges(values: NDArray[np.float64], methods: Sequence[Sequence[Method]]) -> dict[str, tuple[Any, ...]]:
    """`lowest`, `highest` and `whole` of a specification, by values (T, V)."""
    lows, highs = np.fmin.reduce(values), np.fmax.reduce(values)
    return {
        "lowest": tuple(LOWER * float(low) if low >= 0 else None for low in lows),
        "highest": tuple(
            float(high) if low >= 0 and high in NATURAL_TOPS else TALLEST * float(high) if found[0].logarithm else None
            for low, high, found in zip(lows, highs, methods, strict=True)
        ),
        "whole": tuple(bool(whole) for whole in ((values == np.round(values)) | ~np.isfinite(values)).all(axis=0)),
    }


def _widened(spec: SeriesSpec, values: NDArray[np.float64]) -> SeriesSpec:
    """`spec` with ranges that newer values (T, V) fit in too; a series without any keeps its range."""
    if not spec.whole:
        return spec
    found: dict[str, Any] = _ranges(values, spec.methods)
    seen: list[bool] = [bool(known.any()) for known in np.isfinite(values).T]

    def both(name: str, choice: Any) -> tuple[Any, ...]:
        pairs = zip(getattr(spec, name), found[name], seen, strict=True)
        return tuple(
            old if not own or old is None else None if new is None else choice(old, new) for old, new, own in pairs
        )

    highest = tuple(
        old if old in NATURAL_TOPS and not high > old else new
        for old, new, high in zip(spec.highest, both("highest", max), np.fmax.reduce(values), strict=True)
    )
    return spec._replace(lowest=both("lowest", min), highest=highest, whole=both("whole", min))


class SeriesWindows(Dataset[SeriesBatch]):
    """Windows of `table` that end before step `ends[i]`, context + prediction steps long; what lies before the table is
    not observed.

    A window may end behind the table: those steps are to be forecast and were not observed.
    """

    def __init__(
        self,
        table: Table,
        ends: Sequence[int],
        lags: tuple[int, ...],
        context_length: int,
        prediction_length: int,
        base: Base,
    ) -> None:
        self.table = table
        self.ends = np.asarray(ends, dtype=np.int64)
        self.lags = np.asarray(lags, dtype=np.int64)
        self.context_length, self.prediction_length, self.base = context_length, prediction_length, base
        self._spread = base.spread(-context_length, prediction_length)
        self._dates = table.dates(more=max(0, int(self.ends.max(initial=0)) - len(table)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> SeriesBatch:
        """Window `index` as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SeriesBatch:
        """Windows `indices` as one batch."""
        ends = self.ends[np.asarray(indices)]
        length = self.context_length + self.prediction_length
        steps = ends[:, None] - length + np.arange(length)
        values, observed = self._at(steps)
        dates = self._dates[np.clip(steps, 0, len(self._dates) - 1)]
        before = steps[:, :, None] - self.lags
        lagged, known = self._at(before)
        known &= (before < (ends - self.prediction_length)[:, None, None])[..., None]
        origins = np.clip(ends - self.prediction_length, 1, None)
        base = self.base.forecast(origins, -self.context_length, self.prediction_length)
        spread = self._spread * self.base.liveliness[origins][:, None]
        logarithm = np.tile(self.base.logarithm, (len(ends), 1))
        parts = (values, observed, dates, np.where(known, lagged, 0.0), known, base, spread, logarithm)
        return SeriesBatch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))

    def _at(self, steps: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Values (…, V) and whether they were observed, at `steps`: (…), which may lie outside of the table."""
        inside = (steps >= 0) & (steps < len(self.table))
        rows = np.where(inside, steps, 0)
        observed = self.table.observed[rows] & inside[..., None]
        return np.where(observed, self.table.values[rows], 0.0), observed
