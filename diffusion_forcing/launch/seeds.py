"""`seeds=5`: run the same command with five seeds, one after the other, and write a table of mean and standard deviation as one more run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from diffusion_forcing.experiments.processes import is_main_process
from diffusion_forcing.files import read_json
from diffusion_forcing.launch.compose import as_yaml
from diffusion_forcing.launch.run import Plan, plan, report, start
from diffusion_forcing.terminal import say
from diffusion_forcing.tracking.run import Run


def run_seeds(words: Sequence[str], first: Plan) -> Run | None:
    """Run `words` with every seed that the plan `first` asks for. Returns the run with the table; None in other processes.

    A failure ends it; finished runs stay, and a line says how to continue.
    """
    settings = first.settings
    seeds = range(settings.seed, settings.seed + settings.seeds)
    results: list[dict[str, Any]] = []
    for number, seed in enumerate(seeds):
        say(f"seed {seed} ({number + 1} of {len(seeds)})")
        try:
            run = start(plan([*words, f"seed={seed}", "seeds=1", f"+name={settings.run_name}_seed{seed}"]))
        except BaseException:
            say(f"{number} of {len(seeds)} seeds are finished; continue with seed={seed} seeds={seeds.stop - seed}")
            raise
        report(run)
        if isinstance(run, Run):
            results.append({"seed": seed, "run": run.id, **numbers(run.folder)})
    return _summarise(first, results) if is_main_process() else None


def numbers(folder: Path) -> dict[str, float]:
    """The numbers in a run's metrics.json."""
    found = read_json(folder / "metrics.json", {})
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def spread(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of every number that all runs have."""
    names = [name for name in results[0] if name not in ("seed", "run") and all(name in row for row in results)]
    return {name: (mean(row[name] for row in results), stdev(row[name] for row in results)) for name in names}


def _summarise(first: Plan, results: Sequence[Mapping[str, Any]]) -> Run:
    """Write the table of `results` as a run, and print it."""
    name, spreads = first.settings.run_name, spread(results)
    means = {key: value for key, (value, _) in spreads.items()}
    deviations = {key: value for key, (_, value) in spreads.items()}
    run = Run.create(Path(first.settings.outputs), f"{name}_seeds")
    run.config(as_yaml(first.config))
    rows = [*results, {"seed": "mean", **means}, {"seed": "std", **deviations}]
    run.table("seeds", rows, caption=f"{len(results)} seeds, mean and sample standard deviation")
    run.summary({**means, **{f"{key}_std": value for key, value in deviations.items()}, "seeds": len(results)})
    run.finish("finished")
    table = Table("result", f"mean of {len(results)} seeds", "± std", title=name)
    for key in means:
        table.add_row(key, f"{means[key]:.4g}", f"{deviations[key]:.2g}")
    Console(highlight=False).print(table)
    report(run)
    say(f"  {run.folder / 'tables' / 'seeds.csv'}: every seed")
    return run
