"""TensorBoard beside the run's folder, by `tracking=tensorboard`: event files in its folder tensorboard/.

Scalars at the steps they were logged at, pictures as they are, films as animated GIFs (TensorBoard shows no other), tables as text. A resumed
run overwrites what a killed session logged past its checkpoint. Look at it with `tensorboard --logdir outputs`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError
from diffusion_forcing.files import read_json
from diffusion_forcing.tracking.run import Run
from diffusion_forcing.tracking.tracker import Tracker, tell

FOLDER = "tensorboard"
EXTRA = "pip install 'diffusion-forcing[tensorboard]'"


@dataclass(frozen=True, kw_only=True)
class TensorboardOptions:
    flush_seconds: int = 30
    """Event files are at most this much behind."""
    film_frames: int = 64
    """Frames of a film kept in its GIF, evenly taken."""
    film_width: int = 320
    """Pixels across a GIF, at most."""

    def __post_init__(self) -> None:
        for name in ("flush_seconds", "film_frames", "film_width"):
            if getattr(self, name) < 1:
                raise UserError(f"tracking.tensorboard.{name} is at least 1, got {getattr(self, name)}")


class Tensorboard(Tracker):
    """Event files of a run."""

    Options = TensorboardOptions
    options: TensorboardOptions

    def __init__(self, options: TensorboardOptions) -> None:
        super().__init__(options)
        self._folder = Path()
        self._writer: Any = None
        self._step: int | None = None

    def start(self, run: Run, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            tell(f"warning: tensorboard is not installed, so it gets nothing; the run's folder has everything; {EXTRA}")
            return
        self._folder = run.folder
        self._open = SummaryWriter
        self._resumed = (run.folder / FOLDER).is_dir()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if (writer := self._at(step)) is not None:
            for name, value in metrics.items():
                if value is not None and math.isfinite(number := float(value)):
                    writer.add_scalar(name, number, step)

    def shown(self, entry: Mapping[str, Any]) -> None:
        if (writer := self._at(self._step or 0)) is None:
            return
        name, step = f"{entry['kind']}s/{entry['name']}", self._step or 0
        if entry["kind"] == "table":
            rows = read_json((self._folder / "tables" / entry["file"]).with_suffix(".json"), {}).get("rows", [])
            writer.add_text(name, markdown(rows), step)
            return
        path = self._folder / "pictures" / entry["file"]
        data = gif(path, self.options) if entry["kind"] == "video" else path.read_bytes()
        if path.suffix != ".svg":  # TensorBoard shows none
            writer.file_writer.add_summary(_image(name, data), step)

    def finish(self, status: str) -> None:
        if self._writer is not None:
            results = read_json(self._folder / "metrics.json", {})
            self._writer.add_text(
                "results", markdown([{"result": key, "value": value} for key, value in results.items()]), self._step
            )
            self._writer.close()
            self._writer = None

    def _at(self, step: int) -> Any:
        """The writer, opened with the first thing that is logged: from there on, what an older session logged is void."""
        self._step = step
        if self._writer is None and self._folder != Path():
            purge = step if self._resumed else None
            self._writer = self._open(
                str(self._folder / FOLDER), purge_step=purge, flush_secs=self.options.flush_seconds
            )
        return self._writer


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table in Markdown, which TensorBoard renders."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gif(film: Path, options: TensorboardOptions) -> bytes:
    """The film at `film` as an animated GIF."""
    import av
    from PIL import Image

    kept = []
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        fps, step = float(stream.average_rate or 20), math.ceil(max(1, stream.frames) / options.film_frames)
        for number, frame in enumerate(container.decode(stream)):
            if number % step == 0:
                picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                picture.thumbnail((options.film_width, 4 * options.film_width))
                kept.append(picture)
    data = io.BytesIO()
    kept[0].save(data, "GIF", save_all=True, append_images=kept[1:], duration=round(1000 * step / fps), loop=0)
    return data.getvalue()


def _image(name: str, data: bytes) -> Any:
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=name, image=image)])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")
