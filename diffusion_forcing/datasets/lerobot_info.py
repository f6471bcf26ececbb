"""LeRobot's data-set layout v3.0: the names of its files, what meta/info.json says, and where each episode lies.

A set is meta/info.json (fps, features, templates of file names), meta/episodes (a row an episode: its file, its stretch there), data (a row a frame)
and videos (a camera's episodes end to end). Written here with pyarrow and PyAV; the package lerobot is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_forcing.datasets.robot_source import validation_first
from diffusion_forcing.errors import UserError

VERSION = "v3.0"
INFO = "meta/info.json"
STATISTICS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{CHUNK_FILE}.parquet"
DATA = f"data/{CHUNK_FILE}.parquet"
VIDEOS = f"videos/{{video_key}}/{CHUNK_FILE}.mp4"
IMAGES = "observation.images."
"""Before a camera's name."""
STATE = "observation.state"
_VALIDATION = ("validation", "val", "valid", "test")
"""Names of a split that is for validation, the first that is there."""
_CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"


def is_lerobot(root: Path) -> bool:
    """Whether a folder is a LeRobot set, of whatever version."""
    return (root / INFO).exists() or (root / "meta" / "episodes.jsonl").exists()


def import_pyarrow() -> Any:
    """pyarrow with its parquet; UserError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as missing:
        raise UserError("LeRobot's data sets need pyarrow: pip install -c constraints.txt -e '.[robot]'") from missing
    return pyarrow


@dataclass(frozen=True)
class Camera:
    """A feature of pictures: its key, and whether they are films or files in the rows."""

    key: str
    film: bool

    @property
    def name(self) -> str:
        """The key without what all cameras' begin with."""
        return self.key.removeprefix(IMAGES)


@dataclass(frozen=True)
class Info:
    """What of meta/info.json is needed to read a set."""

    root: Path
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str
    splits: Mapping[str, range]
    """Episodes of "training", "validation" and others."""

    @property
    def cameras(self) -> list[Camera]:
        """All features of pictures."""
        kinds = {key: feature.get("dtype") for key, feature in self.features.items()}
        return [Camera(key, kind == "video") for key, kind in kinds.items() if kind in ("video", "image")]

    def data_file(self, chunk: int, file: int) -> Path:
        """Where rows lie."""
        return self._file(self.data_path, chunk_index=chunk, file_index=file)

    def video_file(self, key: str, chunk: int, file: int) -> Path:
        """Where a camera's film lies."""
        return self._file(self.video_path, video_key=key, chunk_index=chunk, file_index=file)

    def _file(self, template: str, **parts: Any) -> Path:
        try:
            name = Path(template.format(**parts))
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{self.root / INFO}: {template!r} is no template of a file's name ({error})") from error
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{self.root / INFO}: {template!r} leads out of {self.root}")
        return self.root / name


def read_info(root: Path) -> Info:
    """meta/info.json of the set in `root`. UserError for one that is missing, damaged, or of another version."""
    path = root / INFO
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = str(facts["codebase_version"])
        if not version.startswith("v3."):
            raise UserError(
                f"{root} is a LeRobot set of version {version}; this reads {VERSION}: convert it with LeRobot's own {_CONVERTER}"
            )
        total = int(facts["total_episodes"])
        info = Info(
            root=root,
            fps=float(facts["fps"]),
            features={str(key): dict(feature) for key, feature in facts["features"].items()},
            data_path=str(facts.get("data_path") or DATA),
            video_path=str(facts.get("video_path") or VIDEOS),
            splits=_splits(facts.get("splits") or {}, total),
        )
    except FileNotFoundError as error:
        older = (root / "meta" / "episodes.jsonl").exists()
        raise UserError(
            f"{root} is no LeRobot set of version {VERSION}: there is no {INFO}"
            + (f"; it looks like an older one: convert it with LeRobot's own {_CONVERTER}" if older else "")
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} cannot be read: {said}") from error
    if not 0 < info.fps < 1e4:
        raise UserError(f"{path}: fps is {info.fps}, frames a second are needed")
    return info


def file_places(chunks_size: int) -> Iterator[tuple[int, int]]:
    """(chunk, file) of one file after the other."""
    chunk, file = 0, 0
    while True:
        yield chunk, file
        file += 1
        if file == chunks_size:
            chunk, file = chunk + 1, 0


def _splits(splits: Mapping[str, Any], total: int) -> dict[str, range]:
    """`{"train": "0:150", …}` with our names; where nothing is for validation the first episodes are."""
    found: dict[str, range] = {}
    for name, stretch in splits.items():
        begin, _, end = str(stretch).partition(":")
        found[name] = range(int(begin), min(int(end), total))
    training = found.pop("train", None) or found.pop("training", None) or range(total)
    kept_back = next((found[name] for name in _VALIDATION if found.get(name)), None)
    if kept_back is None:
        places = validation_first(len(training))
        return {split: training[place.start : place.stop] for split, place in places.items()}
    return {"training": training, "validation": kept_back}
