"""How many clips a second the video data set serves in one process: `python -m benchmarks.video_reading [--files 16] [--clips 200]`.

The files are made here in the public formats: TECO's Minecraft (h264, 128x128, 300 frames, about 1 MB, actions beside it; clips of 10 frames,
every second one) and TECO's DMLab (compressed npz, 64x64, 300 frames, about 1.3 MB; clips of 16 frames, every second one). Each is read as the data
set does by itself (decoded once into a cache; the time for that is given) and without a cache. Clips are random, in batches of 8, files warm in
memory. The released code decodes whole files: 4.6 clips/s of the first kind, 36 of the second. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.video.clips import Clips
from diffusion_forcing.datasets.video.dataset import VideoDataset, VideoDatasetOptions

FRAMES = 300
BATCH = 8
GRAIN = 0.07
"""Share of the pixels that flicker: so the files are as large as TECO's."""


def measure(files: int = 16, clips: int = 200) -> dict[str, float]:
    """Clips a second of both kinds, cached and not, and the seconds a file takes to be decoded once."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, size, frames, write in (("mp4", 128, 10, _write_film), ("npz", 64, 16, _write_arrays)):
            root = Path(folder) / kind
            for number in range(files):
                path = root / "training" / f"{number:06d}"
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, walk(size, number))
            for cache, name in (("none", f"clips_per_second_{kind}_uncached"), ("memmap", f"clips_per_second_{kind}")):
                data = VideoDataset(
                    VideoDatasetOptions(
                        save_dir=str(root),
                        n_frames=frames,
                        resolution=size,
                        observation_shape=(3, size, size),
                        frame_skip=2,
                        external_cond_dim=4,
                        action_shift=0,
                        validation_fraction=0.0,
                        cache=cache,  # type: ignore[arg-type]
                    )
                )
                begin = time.perf_counter()
                data.prepare(progress=False)
                if cache == "memmap":
                    figures[f"seconds_to_decode_{kind}"] = round((time.perf_counter() - begin) / files, 4)
                figures[name] = round(clips_per_second(data.training(), clips), 1)
    return figures


def clips_per_second(data: Clips, count: int) -> float:
    """Clips a second over random batches, after one to warm up."""
    batches = max(1, count // BATCH)
    order = np.random.default_rng(0).integers(len(data), size=(batches + 1, BATCH)).tolist()
    data.__getitems__(order[0])
    begin = time.perf_counter()
    for indices in order[1:]:
        data.__getitems__(indices)
    return batches * BATCH / (time.perf_counter() - begin)


def walk(size: int, seed: int) -> NDArray[np.uint8]:
    """(300, size, size, 3): a view that wanders over a landscape of blocks, as hard to compress as a game."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 200, (40, 40, 3)), np.ones((16, 16, 1)))
    land = (blocks + rng.integers(0, 40, blocks.shape)).astype(np.uint8)
    angle = np.cumsum(rng.choice([-0.2, 0.0, 0.2], FRAMES // 5)).repeat(5)
    steps = np.cumsum(2.0 * np.stack([np.sin(angle), np.cos(angle)], axis=1), axis=0)
    room = len(land) - size
    places = np.abs((np.rint(steps).astype(int) + rng.integers(room)) % (2 * room) - room)
    video = np.stack([land[y : y + size, x : x + size] for y, x in places])
    grain = rng.random(video.shape, dtype=np.float32) < GRAIN
    return video + grain * rng.integers(1, 20, video.shape, dtype=np.uint8)


def _write_film(path: Path, video: NDArray[np.uint8]) -> None:
    with av.open(str(path.with_suffix(".mp4")), "w") as container:
        stream: Any = container.add_stream("libx264", rate=20, options={"crf": "9"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    np.savez(path.with_suffix(".npz"), actions=np.arange(len(video)) % 4)


def _write_arrays(path: Path, video: NDArray[np.uint8]) -> None:
    np.savez_compressed(path.with_suffix(".npz"), video=video, actions=np.arange(len(video)) % 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--clips", type=int, default=200)
    arguments = parser.parse_args()
    figures = measure(arguments.files, arguments.clips)
    print(f"{'':28} {'ours':>10} {'released':>10}")
    for kind, released in (("mp4", 4.6), ("npz", 36.0)):
        for name in (f"clips_per_second_{kind}", f"clips_per_second_{kind}_uncached"):
            print(f"{name:34} {figures[name]:>10,.1f} {released:>10}")
        print(f"{f'seconds_to_decode_{kind}':34} {figures[f'seconds_to_decode_{kind}']:>10.3f}")
    print(json.dumps({"benchmark": "video_reading", **figures}))


if __name__ == "__main__":
    main()
