"""The files of a LeRobot set that is being written: rows in parquet, pictures in films, each up to a size, and then the next.

Where the next file begins is decided before an episode is written, by what a frame took on the average so far: files end at about their size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.lerobot_info import DATA, VIDEOS, file_places, import_pyarrow
from diffusion_forcing.datasets.robot_films import CODECS, FilmWriter
from diffusion_forcing.errors import UserError

if TYPE_CHECKING:
    from diffusion_forcing.datasets.lerobot_writer import LeRobotOptions

_MB = 1024**2


class RowFiles:
    """Parquet files below `root`, of about `size` MB each."""

    def __init__(self, root: Path, chunks_size: int, size: float, *, template: str = DATA) -> None:
        self._root, self._template, self._most = root, template, size * _MB
        self._arrow = import_pyarrow()
        self._places = file_places(chunks_size)
        self._place = (0, 0)
        self._writer: Any = None
        self._file = root
        self._rows = 0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
        """Write an episode's columns, equally long; returns its chunk and file."""
        count = len(next(iter(columns.values())))
        size = self._file.stat().st_size if self._writer else 0
        if self._writer is None or size * (1 + count / max(self._rows, 1)) >= self._most:
            self.close()
            self._place, self._rows = next(self._places), 0
            self._file = self._path()
        table = self._arrow.table({key: self._column(array) for key, array in columns.items()})
        if self._writer is None:
            self._writer = self._arrow.parquet.ParquetWriter(self._file, table.schema, compression="snappy")
        self._writer.write_table(table)
        self._rows += count
        return self._place

    def add_dicts(self, rows: Sequence[dict[str, Any]], *, place: str) -> None:
        """Write rows, and in each `<place>/chunk_index` and `<place>/file_index`, where it lies."""
        size = self._arrow.Table.from_pylist(list(rows)).nbytes / len(rows)
        each = max(1, int(self._most / max(size, 1)))
        for begin in range(0, len(rows), each):
            self._place = next(self._places)
            where = {f"{place}/chunk_index": self._place[0], f"{place}/file_index": self._place[1]}
            table = self._arrow.Table.from_pylist([{**row, **where} for row in rows[begin : begin + each]])
            self._arrow.parquet.write_table(table, self._path(), compression="snappy")

    def close(self) -> None:
        """End the file that is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _path(self) -> Path:
        path = self._root / self._template.format(chunk_index=self._place[0], file_index=self._place[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _column(self, array: NDArray[Any]) -> Any:
        if array.ndim == 1 or array.shape[1:] == (1,):
            return self._arrow.array(array.reshape(-1))
        flat = self._arrow.array(np.ascontiguousarray(array).reshape(-1))
        return self._arrow.FixedSizeListArray.from_arrays(flat, array.shape[1])


class FilmFiles:
    """A camera's films below `root`: its episodes end to end."""

    def __init__(self, root: Path, key: str, options: LeRobotOptions) -> None:
        self._root, self._key, self._options = root, key, options
        self._places = file_places(options.chunks_size)
        self._place = (0, 0)
        self._film: FilmWriter | None = None
        self._size = (0, 0)

    def add(self, pictures: NDArray[np.uint8]) -> dict[str, Any]:
        """Write an episode's pictures (n, h, w, 3); returns where they are, as meta/episodes says it."""
        film, most = self._film, self._options.video_files_size_in_mb * _MB
        if film is None or film.bytes * (1 + len(pictures) / max(film.frames, 1)) >= most:
            film = self._next((pictures.shape[1], pictures.shape[2]))
        fps, begin = self._options.fps, film.frames
        film.add(pictures)
        at = f"videos/{self._key}"
        return {
            f"{at}/chunk_index": self._place[0],
            f"{at}/file_index": self._place[1],
            f"{at}/from_timestamp": begin / fps,
            f"{at}/to_timestamp": film.frames / fps,
        }

    def facts(self) -> dict[str, Any]:
        """info.json's account of the films."""
        codec = CODECS[self._options.codec]
        return {
            "video.height": self._size[0],
            "video.width": self._size[1],
            "video.codec": "av1" if codec.encoder == "libsvtav1" else "h264",
            "video.pix_fmt": "gbrp" if codec.pixels == "rgb24" else codec.pixels,
            "video.is_depth_map": False,
            "video.fps": round(self._options.fps),
            "video.channels": 3,
            "has_audio": False,
        }

    def close(self) -> None:
        """End the film that is open."""
        if self._film is not None:
            self._film.close()
            self._film = None

    def _next(self, size: tuple[int, int]) -> FilmWriter:
        self.close()
        if CODECS[self._options.codec].pixels == "yuv420p" and (size[0] % 2 or size[1] % 2):
            raise UserError(
                f"pictures of {size[0]} x {size[1]} have no {self._options.codec} film, which needs even sides; use codec lossless"
            )
        self._place, self._size = next(self._places), size
        path = self._root / VIDEOS.format(video_key=self._key, chunk_index=self._place[0], file_index=self._place[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        self._film = FilmWriter(path, size, self._options.fps, self._options.codec)
        return self._film


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """meta/tasks.parquet: the tasks are the index of a pandas table with the column task_index."""
    arrow = import_pyarrow()
    index = "__index_level_0__"
    table = arrow.table({"task_index": arrow.array(range(len(tasks)), arrow.int64()), index: arrow.array(tasks)})
    kinds = {"task_index": ("int64", "int64"), index: ("unicode", "object")}
    columns = [
        {
            "name": None if key == index else key,
            "field_name": key,
            "pandas_type": kind,
            "numpy_type": stored,
            "metadata": None,
        }
        for key, (kind, stored) in kinds.items()
    ]
    pandas = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": arrow.__version__},
        "pandas_version": "2.0.0",
    }
    arrow.parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
