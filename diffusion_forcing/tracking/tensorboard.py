"""TensorBoard, added to a run by `tracking=tensorboard`: event files in the run's folder tensorboard/.

Scalars at their steps, images as they are, videos as animated GIFs (TensorBoard shows no other format), tables as text.
A resumed run overwrites what was logged after its checkpoint. View it with `tensorboard --logdir outputs`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import check_minimum
from diffusion_forcing.files import read_json
from diffusion_forcing.terminal import tell
from diffusion_forcing.tracking.records import read_results
from diffusion_forcing.tracking.run import Run, Tracker

FOLDER = "tensorboard"
EXTRA = "pip install 'diffusion-forcing[tensorboard]'"


@dataclass(frozen=True, kw_only=True)
class TensorboardOptions:
    flush_seconds: int = 30
    """Event files are at most this much behind."""
    video_frames: int = 64
    """Most frames of a video in its GIF, evenly taken."""
    video_width: int = 320
    """Most pixels across a GIF."""

    def __post_init__(self) -> None:
        for name in ("flush_seconds", "video_frames", "video_width"):
            check_minimum(f"tracking.tensorboard.{name}", getattr(self, name), 1)


class Tensorboard(Tracker):
    """Writes a run's event files."""

    Options = TensorboardOptions
    options: TensorboardOptions

    def __init__(self, options: TensorboardOptions) -> None:
        super().__init__(options)
        self._folder: Path | None = None
        self._resumed = False
        self._writer: Any = None
        self._writer_type: Any = None
        self._step = 0

    def start(self, run: Run, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            tell(f"warning: tensorboard is not installed, it gets nothing; the run's folder has everything; {EXTRA}")
            return
        self._folder, self._writer_type = run.folder, SummaryWriter
        self._resumed = (run.folder / FOLDER).is_dir()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._folder is None:
            return
        self._step = step
        for name, value in metrics.items():
            if value is not None and math.isfinite(number := float(value)):
                self._open().add_scalar(name, number, step)

    def media(self, entry: Mapping[str, Any]) -> None:
        if self._folder is None:
            return
        name = f"{entry['kind']}s/{entry['name']}"
        if entry["kind"] == "table":
            file = (self._folder / "tables" / entry["file"]).with_suffix(".json")
            rows = read_json(file, {}, most=2**26).get("rows", [])
            self._open().add_text(name, markdown(rows), self._step)
            return
        path = self._folder / "pictures" / entry["file"]
        if path.suffix != ".svg":  # TensorBoard shows none
            data = gif(path, self.options) if entry["kind"] == "video" else path.read_bytes()
            self._open().file_writer.add_summary(_image(name, data), self._step)

    def finish(self, status: str) -> None:
        if self._writer is not None and self._folder is not None:
            results = read_results(self._folder)
            rows = [{"result": key, "value": value} for key, value in results.items()]
            self._writer.add_text("results", markdown(rows), self._step)
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        """The writer; opened at the first step logged, it discards what an earlier session logged after that."""
        if self._writer is None:
            assert self._folder is not None
            purge = self._step if self._resumed else None
            self._writer = self._writer_type(
                str(self._folder / FOLDER), purge_step=purge, flush_secs=self.options.flush_seconds
            )
        return self._writer


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table in Markdown, which TensorBoard renders."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gif(video: Path, options: TensorboardOptions) -> bytes:
    """The file `video` as an animated GIF."""
    import av
    from PIL import Image

    kept = []
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        fps, step = float(stream.average_rate or 20), math.ceil(max(1, stream.frames) / options.video_frames)
        for number, frame in enumerate(container.decode(stream)):
            if number % step == 0:
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                image.thumbnail((options.video_width, 4 * options.video_width))
                kept.append(image)
    data = io.BytesIO()
    kept[0].save(data, "GIF", save_all=True, append_images=kept[1:], duration=round(1000 * step / fps), loop=0)
    return data.getvalue()


def _image(name: str, data: bytes) -> Any:
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    summary = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=name, image=summary)])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")
