"""`diffusion-forcing forecast FILE`: what comes after a file, by the shipped forecaster for any series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusion_forcing.errors import UserError, check_minimum, require
from diffusion_forcing.launch.commands import Parser

USAGE = "diffusion-forcing forecast FILE --horizon STEPS [--minutes N] [key=value …]"


def overrides(words: Sequence[str]) -> list[str]:
    """The command line that `forecast` stands for."""
    parser = Parser("forecast", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--horizon", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=0.0)
    settings = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    given = parser.parse_args([*words[:1], *(word for word in words[1:] if word not in settings)])
    require(Path(given.file).expanduser().is_file(), f"{given.file} is not a file; give a CSV or Parquet file")
    check_minimum("--horizon", given.horizon, 1)
    if not 0 <= given.minutes < 10_000:
        raise UserError(f"--minutes is {given.minutes:g}; give how long to train on the file, 0 or more")
    tasks = ["experiment.tasks=[forecast]"]
    if given.minutes:
        seconds = max(1, round(60 * given.minutes))
        clock = f"{seconds // 86400:02d}:{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        tasks = ["experiment.tasks=[training,forecast]", f"experiment.training.max_time={clock}"]
    quoted = given.file.replace("\\", "\\\\").replace("'", "\\'")
    data = ["dataset=ts_csv", f"dataset.path='{quoted}'", f"dataset.prediction_length={given.horizon}"]
    return [*data, "load=universal", "dataset.test_windows=0", "+name=forecast", *tasks, *settings]
