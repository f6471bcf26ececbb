"""`seeds=5`: the same command with five seeds, one run after the other, and one more run that holds their table: mean ± deviation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from diffusion_forcing.experiments.processes import is_main_process
from diffusion_forcing.launch.compose import as_yaml
from diffusion_forcing.launch.report import report, say
from diffusion_forcing.launch.run import Plan, plan, start
from diffusion_forcing.tracking.run import Run


def run_seeds(words: Sequence[str], checked: Plan) -> Run | None:
    """Run `words` with the seeds `checked` asks for. Returns the run with the table; on a further rank None.

    A failure ends it; what is finished stays, and the words to go on with are said.
    """
    settings = checked.settings
    seeds = range(settings.seed, settings.seed + settings.seeds)
    results: list[dict[str, Any]] = []
    for seed in seeds:
        say(f"seed {seed}, the {len(results) + 1}. of {len(seeds)}")
        try:
            run = start(plan([*words, f"seed={seed}", "seeds=1", f"+name={settings.run_name}_seed{seed}"]))
        except BaseException:
            if results:
                say(
                    f"{len(results)} of {len(seeds)} seeds are finished; the others: seed={seed} seeds={seeds.stop - seed}"
                )
            raise
        report(run)
        if isinstance(run, Run):
            results.append({"seed": seed, "run": run.id, **numbers(run.folder)})
    if not is_main_process():
        return None
    return _together(settings.run_name, Path(settings.outputs), checked, results)


def numbers(folder: Path) -> dict[str, float]:
    """What a run's metrics.json says in numbers."""
    path = folder / "metrics.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def spread(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation (of a sample) over runs of every number that all of them have."""
    names = [name for name in results[0] if name not in ("seed", "run") and all(name in row for row in results)]
    return {name: (mean(row[name] for row in results), stdev(row[name] for row in results)) for name in names}


def _together(name: str, outputs: Path, checked: Plan, results: Sequence[Mapping[str, Any]]) -> Run:
    run = Run.create(outputs, f"{name}_seeds")
    run.config(as_yaml(checked.config))
    spreads = spread(results)
    ends = [
        {"seed": "mean", **{key: middle for key, (middle, _) in spreads.items()}},
        {"seed": "std", **{key: around for key, (_, around) in spreads.items()}},
    ]
    run.table("seeds", [*results, *ends], caption=f"{len(results)} seeds; std is that of a sample")
    run.summary({key: middle for key, (middle, _) in spreads.items()})
    run.summary({f"{key}_std": around for key, (_, around) in spreads.items()} | {"seeds": len(results)})
    run.finish("finished")
    shown = Table("result", f"mean of {len(results)} seeds", "± std", title=f"{name}: over seeds")
    for key, (middle, around) in spreads.items():
        shown.add_row(key, f"{middle:.4g}", f"{around:.2g}")
    Console(highlight=False).print(shown)
    report(run)
    say(f"  {run.folder / 'tables' / 'seeds.csv'}: every seed")
    return run
