"""Where the clips of a video data set come from when they are not there yet: a simulator, or an archive in parts."""

from __future__ import annotations

from pathlib import Path

from diffusion_forcing.datasets.generate_video import Simulator, generate
from diffusion_forcing.datasets.video_archive import Part, fetch_archive, is_unfinished
from diffusion_forcing.datasets.video_files import has_clips
from diffusion_forcing.datasets.video_options import VideoDatasetOptions
from diffusion_forcing.errors import UserError

RECIPE = "recipe.json"
"""What a generator leaves beside its episodes: a folder that has it is generated data, perhaps unfinished."""


def provide(options: VideoDatasetOptions, *, progress: bool = True) -> None:
    """Make sure that clips lie in `options.root`, as far as the source says how. Raises `UserError` where that fails."""
    root, source = options.root, options.source
    if options.path:
        return
    there = has_clips(root)
    if source == "generate" or (source == "auto" and options.generator != "none" and _is_to_generate(root, there)):
        if progress and not there:
            print(
                f"no clips in {root} yet: generating {options.num_episodes:,} training episodes ({options.generator})"
            )
        generate_episodes(options, progress=progress)
    elif options.urls and source in ("auto", "download") and (is_unfinished(root) or not there):
        if progress and not there:
            size = f", about {options.download_gigabytes:g} GB" if options.download_gigabytes else ""
            print(
                f"no clips in {root} yet: downloading {len(options.urls)} parts{size} (dataset.path=<folder> reads another)"
            )
        sums = options.sha256 or [""] * len(options.urls)
        parts = [Part(url, sha256) for url, sha256 in zip(options.urls, sums, strict=True)]
        fetch_archive(parts, root, gigabytes=options.download_gigabytes, progress=progress)


def generate_episodes(options: VideoDatasetOptions, *, progress: bool = True) -> list[Path]:
    """Make the episodes that are missing in `save_dir`; the files of all. `UserError` for a data set without a simulator."""
    counts = {
        "training": options.num_episodes,
        "validation": options.num_validation_episodes,
        "test": options.num_test_episodes,
    }
    counts = {split: count for split, count in counts.items() if count}
    if options.path:
        raise UserError("generating writes to dataset.save_dir; drop dataset.path")
    simulator = _simulator(options)
    if not counts:
        raise UserError("there is nothing to generate: set dataset.num_episodes and dataset.num_validation_episodes")
    return generate(simulator, options.root, counts, workers=options.workers, progress=progress)


def _simulator(options: VideoDatasetOptions) -> Simulator:
    facts = {"seed": options.generate_seed, "frames": options.episode_frames, "size": options.resolution}
    if options.generator == "labmaze":
        from diffusion_forcing.environments.labmaze import LabMazeEpisodes

        return LabMazeEpisodes(**facts)
    if options.generator == "voxel":
        from diffusion_forcing.environments.voxel import VoxelEpisodes

        return VoxelEpisodes(**facts)
    raise UserError(
        "this data set has no simulator; choose dataset=video_labmaze or dataset=video_voxel, or place clips in dataset.save_dir"
    )


def _is_to_generate(root: Path, there: bool) -> bool:
    """Generated data may be unfinished; what was placed by hand is left as it is."""
    return not there or (root / RECIPE).exists()
