"""Diffusion Forcing: sequence models in which every token has its own noise level.

`import diffusion_forcing` is light: the public names below are imported from their rooms when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    # the method
    "DiffusionForcing": "diffusion",
    "GradientGuidance": "diffusion",
    "NoiseSchedule": "diffusion",
    "Sampler": "diffusion",
    "build_parameterization": "diffusion",
    "build_schedule": "diffusion",
    "draw_noise_levels": "diffusion",
    "sampling_levels": "diffusion",
    "scheduling_matrix": "diffusion",
    # networks
    "Transformer": "networks",
    "UNet3D": "networks",
    "WorldNetwork": "networks",
    "Recurrent": "networks",
    "SensorNetwork": "networks",
    "KVCache": "networks",
    # video
    "Video": "algorithms.video",
    "VideoOptions": "algorithms.video",
    "RecurrentVideo": "algorithms.video",
    "World": "algorithms.world",
    "VideoDataset": "datasets.video.dataset",
    "VideoExperiment": "experiments.video.experiment",
    # planning
    "Planning": "algorithms.planning.algorithm",
    "PlanningOptions": "algorithms.planning.algorithm",
    "RecurrentPlanning": "algorithms.planning.recurrent",
    "Planner": "algorithms.planning.planner",
    "PlanningAgent": "algorithms.planning.controllers",
    "Maze2d": "datasets.mazes.maze2d",
    "Maze2dOptions": "datasets.mazes.maze2d",
    "PointMaze": "datasets.mazes.pointmaze",
    "SequenceBatch": "datasets.batch",
    "MAZES": "environments.mazes.layout",
    "Maze": "environments.mazes.layout",
    "Maze2dEnv": "environments.mazes.maze2d",
    "VectorMaze2d": "environments.mazes.maze2d",
    "VectorPointMaze": "environments.mazes.point",
    "PlanningExperiment": "experiments.planning",
    # forecasting
    "Forecasting": "algorithms.forecasting",
    "TimeSeries": "datasets.series.dataset",
    "ForecastingExperiment": "experiments.forecasting",
    # robot imitation
    "Robot": "algorithms.robot.algorithm",
    "RobotPolicy": "algorithms.robot.policy",
    "LeRobotPolicy": "algorithms.robot.policy",
    "RobotDataset": "datasets.robot.dataset",
    "SwapEnv": "environments.swap",
    "RobotExperiment": "experiments.robot",
    # running
    "BaseExperiment": "experiments.base",
    "ExperimentOptions": "experiments.options",
    "LoadedCheckpoint": "checkpoints",
    "Run": "tracking.run",
    "NullRun": "tracking.run",
    "UserError": "errors",
}
"""Public name: the module it lives in. (`diffusion_forcing.checkpoints` has `load`, `save` and `resolve`.)"""

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
