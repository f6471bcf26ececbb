"""Forecasting at toy size, through the command line: a file of one's own, real rates, load, resume, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gluonts")

from diffusion_forcing.launch.cli import main
from tests.parity.recorded import DATA

pytestmark = pytest.mark.slow

TINY = [
    "algorithm=df_prediction",
    "experiment=exp_prediction",
    "algorithm.z_shape=[16]",
    "algorithm.diffusion.network_size=4",
    "algorithm.diffusion.num_gru_layers=1",
    "algorithm.diffusion.sampling_timesteps=2",
    "algorithm.diffusion.architecture.network_size=16",
    "algorithm.diffusion.architecture.num_layers=1",
    "algorithm.calc_crps_sum=4",
    "experiment.training.max_steps=4",
    "experiment.training.log_every_n_steps=1",
    "experiment.validation.val_every_n_epoch=null",
    "experiment.validation.val_every_n_step=2",
]
CSV = ["dataset=ts_csv", "dataset.path=mine.csv", "dataset.prediction_length=6", "dataset.freq=D"]


@pytest.fixture(autouse=True)
def in_a_folder_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    days = np.datetime64("2023-01-01") + np.arange(150)
    rows = [f"{day},{10 + number % 7},{'' if number % 11 == 3 else 20 + number % 5}" for number, day in enumerate(days)]
    del rows[40]  # a day is missing
    Path("mine.csv").write_text("day,a,b\n" + "\n".join(rows))
    Path("twice.csv").write_text("day,a,b\n" + "\n".join([rows[0], *rows]))


def run(*words: str) -> tuple[Path, dict[str, float]]:
    assert main([*TINY, *words]) == 0
    folder = Path("outputs/latest-run").resolve()
    return folder, json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("network", ["rnn", "transformer"])
def test_a_file_of_ones_own_is_learnt_forecast_loaded_and_resumed(
    network: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, metrics = run(*CSV, f"algorithm.network={network}", "+name=toy")
    said = capfd.readouterr().err
    assert "2 series of 150 steps of D: 90 to train on, then 5 windows to validate and 5 to test, 6 steps each" in said
    assert "the best checkpoint by validation/crps_sum" in said
    assert metrics["forecast/paths"] == 4
    assert metrics["data/missing"] > 0.05
    for name in ("crps_sum", "crps", "nd", "nrmse", "coverage_50", "coverage_80", "coverage_90"):
        assert np.isfinite(metrics[f"forecast/{name}"])
    assert {"test_fans.png", "test_sum.png", "test_calibration.png"} <= {
        p.name for p in (folder / "pictures").iterdir()
    }
    identity = json.loads((folder / "run.json").read_text())["id"]
    sizes = ("z_shape", "network_size", "num_gru", "num_layers")
    _, loaded = run(*CSV, f"load={identity}", "experiment.tasks=[test]")
    assert loaded["forecast/crps_sum"] == metrics["forecast/crps_sum"]
    words = [word for word in TINY if not any(size in word for size in sizes)]
    assert main([*words, *CSV, f"load={identity}", "experiment.tasks=[validation]"]) == 0
    assert main([f"resume={identity}", "experiment.tasks=[training]", "experiment.training.max_steps=6"]) == 0
    steps = {json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
    assert max(steps) == 6


def test_gaps_are_hidden_and_scored_and_filled(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["algorithm.network=transformer", "algorithm.causal=False", "algorithm.together=False"]
    words += ["algorithm.scheduling_matrix=full_sequence", "algorithm.chunk_size=-1", "algorithm.pool=False"]
    folder, metrics = run(*CSV, *words, "experiment.tasks=[training,test,test_imputation,impute]")
    for hidden in ("points_10", "points_50", "blocks_30"):
        for score in ("ours_crps", "interpolation_crps", "last_season_crps", "ours_coverage_90"):
            assert np.isfinite(metrics[f"imputation/{hidden}_{score}"])
    rows = json.loads((folder / "tables/imputed.json").read_text())["rows"]
    assert [row["time"][:10] for row in rows if row["series"] == "a"] == ["2023-02-10"]  # the day that is missing
    assert len({(row["time"], row["series"]) for row in rows}) == len(rows) == 16
    assert all(row["q0.05"] <= row["q0.5"] <= row["q0.95"] for row in rows)
    assert {"test_imputation_gaps.png", "impute_gaps.png"} <= {p.name for p in (folder / "pictures").iterdir()}
    assert "filled 16 missing values" in capfd.readouterr().err
    assert main([*TINY, *CSV, "experiment.tasks=[impute]"]) == 2
    assert "every value needs a token" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["algorithm.scaling=global", "algorithm.use_covariates=False"],
        ["algorithm.together=False", "algorithm.scheduling_matrix=pyramid", "algorithm.chunk_size=-1"],
        ["dataset.leave_out=[GBP,SEK,AUD]", "dataset.currencies=[GBP,SEK,AUD,JPY,CAD,NZD,CHF,SGD,DKK,NOK,HKD]"],
        ["dataset.context_length=60", "algorithm.chunk_size=5", "algorithm.diffusion.ddim_sampling_eta=1.0"],
    ],
)
def test_exchange_rates_in_every_way(words: list[str]) -> None:
    _, metrics = run("dataset=ts_ecb", *words)
    assert metrics["data/series"] == 8
    assert 0 < metrics["forecast/crps_sum"] < 2


def test_seeds_are_runs_of_their_own_and_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    words = [*CSV, "seed=3", "seeds=2", "+name=toy", "experiment.training.max_steps=2"]
    folder, metrics = run(*words)
    assert folder.name.endswith("toy_seeds")
    alone = [run(*words, f"seed={seed}", "seeds=1")[1]["forecast/crps_sum"] for seed in (3, 4)]
    assert alone[0] != alone[1]
    assert metrics["forecast/crps_sum"] == pytest.approx(np.mean(alone))
    assert metrics["forecast/crps_sum_std"] == pytest.approx(np.std(alone, ddof=1))
    table = json.loads((folder / "tables/seeds.json").read_text())["rows"]
    assert [row["seed"] for row in table] == [3, 4, "mean", "std"]
    assert [row["forecast/crps_sum"] for row in table[:2]] == alone
    assert "mean of 2 seeds" in capfd.readouterr().out
    assert main([*TINY, *CSV, "seeds=0"]) == 2
    assert main(["seeds=2", "resume=nothing"]) == 2


def test_the_future_is_forecast_around_what_is_known_of_it() -> None:
    days = (np.datetime64("2023-01-01") + np.arange(156)).astype(str)
    rows = [f"{day},{10 + n**3 % 11 if n < 150 else ''},{20 + n % 5}" for n, day in enumerate(days)]
    Path("mine.csv").write_text("day,a,b\n" + "\n".join(rows))
    words = ["algorithm=df_prediction_small", "experiment.tasks=[training,test,forecast]", "dataset.known_future=[b]"]
    folder, metrics = run(*CSV, *words)
    assert 0 < metrics["forecast/crps_sum"] < 2
    lines = (folder / "tables/forecast.csv").read_text().splitlines()
    assert lines[0] == "time,series,mean,q0.05,q0.1,q0.25,q0.5,q0.75,q0.9,q0.95"
    assert len(lines) == 1 + 6 * 2
    assert lines[1].startswith("2023-05-31T00:00:00,a,")
    told = [line.split(",") for line in lines[1:] if ",b," in line]
    np.testing.assert_allclose(
        np.array([cells[2:] for cells in told], float), np.array([[20 + n % 5] * 8 for n in range(150, 156)]), atol=1e-4
    )
    paths = np.load(folder / "forecast.npz")
    assert paths["samples"].shape == (4, 6, 2)
    assert paths["samples"][:, :, 0].std() > 0
    assert (folder / "pictures/forecast_fans.png").exists()


def test_a_missing_score_says_why_and_stops_no_training(capfd: pytest.CaptureFixture[str]) -> None:
    days = (np.datetime64("2023-01-01") + np.arange(150)).astype(str)
    rows = [f"{day},{'' if 126 <= n < 138 else 10 + n % 7},{n % 5 if n < 90 else ''}" for n, day in enumerate(days)]
    Path("mine.csv").write_text("day,a,ended\n" + "\n".join(rows))
    windows = ["dataset.test_windows=2", "dataset.validation_windows=2"]
    folder, metrics = run(*CSV, *windows, "experiment.patience=1", "experiment.tasks=[training,test]")
    assert "validation/crps_sum is missing: nothing was observed" in capfd.readouterr().err
    assert max(json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()) == 4
    assert np.isfinite(metrics["forecast/crps_sum"])  # of the series that did not end


def test_series_are_matched_by_name_and_forecasts_continue_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    mondays = np.datetime64("2021-01-04") + 7 * np.arange(150)
    for file, names in (("mine.csv", "ab"), ("swapped.csv", "bxa")):
        values = {"a": 10, "b": 1000, "x": 5}
        rows = [f"{day}," + ",".join(str(values[name] + n % 7) for name in names) for n, day in enumerate(mondays)]
        Path(file).write_text("day," + ",".join(names) + "\n" + "\n".join(rows))
    words = [word for word in CSV if "freq" not in word]
    trained, _ = run(*words, "experiment.tasks=[training,test,forecast]")
    other, _ = run(*words, "dataset.path=swapped.csv", f"load={trained}", "experiment.tasks=[test,forecast]")
    assert "left out: 'x'" in capfd.readouterr().err
    tables = [(folder / "tables/forecast.csv").read_text() for folder in (trained, other)]
    assert tables[0] == tables[1]
    assert tables[0].splitlines()[1].startswith("2023-11-20T00:00:00,a,")


def test_a_constant_series_among_two_thousand_is_learnt_and_forecast() -> None:
    drawn = np.random.default_rng(0).normal(size=(80, 2000)).round(2)
    drawn[:, 7] = 3
    days = (np.datetime64("2023-01-01") + np.arange(80)).astype(str)
    names = ",".join(f"s{n}" for n in range(2000))
    rows = [f"{day}," + ",".join(map(str, row)) for day, row in zip(days, drawn, strict=True)]
    Path("mine.csv").write_text(f"day,{names}\n" + "\n".join(rows))
    _, metrics = run(*CSV, "dataset.test_windows=2", "experiment.training.max_steps=2", "algorithm.calc_crps_sum=2")
    assert metrics["data/series"] == 2000
    assert np.isfinite(metrics["forecast/crps"])
    assert np.isfinite(metrics["naive/walk_crps"])


def test_a_data_set_of_gluonts_that_was_placed_by_hand_is_found() -> None:
    import pandas
    from gluonts.dataset.common import MetaData, TrainDatasets
    from gluonts.dataset.jsonl import JsonLinesWriter

    series = [np.arange(90.0) % 7 + n for n in range(3)]

    def entries(length: int) -> list[dict[str, object]]:
        start = pandas.Period("2024-01-01", freq="B")
        return [{"target": one[:length], "start": start, "item_id": str(n)} for n, one in enumerate(series)]

    found = TrainDatasets(
        metadata=MetaData(freq="B", prediction_length=5), train=entries(80), test=[*entries(85), *entries(90)]
    )
    found.save("sets/exchange_rate_nips", writer=JsonLinesWriter(use_gzip=True))
    _, metrics = run("dataset=ts_exchange", "dataset.path=sets", "experiment.training.max_steps=2")
    assert (metrics["data/series"], metrics["data/steps"], metrics["forecast/windows"]) == (3, 90, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*CSV, "dataset.freq=fortnight"], "dataset.freq is 'fortnight', which pandas does not know"),
        ([*CSV, "dataset.path=twice.csv"], "1 duplicate times, first 2023-01-01"),
        ([*CSV, "dataset.path=twice.csv", "dataset.day_frist=true"], "did you mean 'dataset.day_first'"),
        (
            [*CSV, "dataset.known_future=[c]"],
            "dataset.known_future names 'c', which is not a series; there are: 'a', 'b'",
        ),
        ([*CSV, "dataset.known_future=[a,b]"], "names every series"),
        ([*CSV, "dataset.leave_out=[c]"], "dataset.leave_out names 'c', which is not a series"),
        ([*CSV, "dataset.leave_out=[a,b]"], "dataset.leave_out names every series"),
        (["dataset=ts_csv", "dataset.prediction_length=6"], "needs dataset.path"),
        ([*CSV, "dataset.path=nothing.csv"], "nothing.csv does not exist"),
        ([*CSV, "dataset.prediction_length=50"], "150 steps are too few"),
        ([*CSV, "dataset.freq=M"], "puts several rows into one step"),
        ([*CSV, "dataset.columns=[c]"], "has no column 'c'"),
        (["dataset=ts_exchange", "dataset.path=nowhere"], "exchange_rate_nips is not in nowhere"),
        (["dataset=video_dmlab"], "choose dataset=ts_ecb, ts_load, ts_csv"),
        ([*CSV, f"load={DATA / 'ckpt_planning.ckpt'}"], "is a checkpoint for planning"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *words]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]


def test_a_training_that_ends_before_its_first_validation_has_no_best_checkpoint_and_ends_well() -> None:
    for words in (["n_step=100"], ["n_step=null", "n_epoch=1"]):
        assert main([*TINY, *CSV, *(f"experiment.validation.val_every_{word}" for word in words)]) == 0


def test_debug_rehearses_every_task_and_changes_no_number(capfd: pytest.CaptureFixture[str]) -> None:
    tasks = "experiment.tasks=[save_mean_std_metadata,training,test,forecast]"
    _, plain = run(*CSV, tasks)
    capfd.readouterr()
    _, debugged = run(*CSV, tasks, "debug=True")
    said = capfd.readouterr().err
    assert debugged == plain
    assert said.count("works on one batch") == 4
    assert "shapes, stage by stage" in said and "Recurrent" in said


def test_the_model_for_any_file_forecasts_no_further_than_it_was_trained(capfd: pytest.CaptureFixture[str]) -> None:
    """Beyond its 48 steps all paths are the base forecast's, and one line says so."""
    assert main(["forecast", "mine.csv", "--horizon", "50", "algorithm.calc_crps_sum=4", "dataset.freq=D"]) == 0
    assert "trained for 48 steps ahead, not for 50" in capfd.readouterr().err
    assert np.load("outputs/latest-run/forecast.npz")["samples"].shape == (4, 50, 2)
    assert main(["forecast", "mine.csv", "--horizon", "6", "algorithm.calc_crps_sum=4", "dataset.freq=D"]) == 0
    assert "steps ahead, not for" not in capfd.readouterr().err
