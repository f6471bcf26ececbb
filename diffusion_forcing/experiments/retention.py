"""Which checkpoints of a run are kept: the newest, the best by a metric, and whatever a user put beside them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints.resolve import LATEST
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.options import CheckpointingOptions

_SCORES = "scores.json"
_STANDARD_NAME = re.compile(r"step-\d{8,}(-v\d+)?")


def best_of(folder: Path, mode: str) -> Path | None:
    """The checkpoint in `folder` with the best score by the monitored metric; None where none has one."""
    try:
        scores = json.loads((folder / _SCORES).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    here = {name: score for name, score in scores.items() if native.is_checkpoint(folder / name)}
    if not here:
        return None
    return folder / (min if mode == "min" else max)(here, key=lambda name: here[name])


class Retention:
    """Looks after the folder of a run's checkpoints. Something is removed only once a newer one is whole on the disk."""

    def __init__(self, options: CheckpointingOptions, folder: Path) -> None:
        self.written: set[str] = set()
        """Names of the checkpoints this run wrote, in earlier sessions too."""
        self._options = options
        self._folder = folder
        self._newest: Path | None = None

    def add(self, path: Path) -> None:
        """`path` was written whole: `latest` points to it, and what it pushes out is removed."""
        self._newest = path
        self._point_to(path)
        self._remove_old()

    def score(self, path: Path, value: float) -> None:
        """The checkpoint `path` has `value` in the monitored metric; what it pushes out is removed."""
        self._write_scores(self._scores() | {path.name: value})
        self._remove_old()

    def is_among_best(self, value: float) -> bool:
        """Whether a checkpoint with `value` would be kept as one of the best `save_top_k`."""
        if not math.isfinite(value):
            return False
        k, scores = self._options.save_top_k, list(self._scores().values())
        if k == -1 or len(scores) < k:
            return True
        better = sum(score <= value if self._options.mode == "min" else score >= value for score in scores)
        return better < k

    def _point_to(self, path: Path) -> None:
        """Make `latest` a link to `path` in one step. Where links cannot be made the newest is found by its step."""
        temporary = self._folder / f".{LATEST}-{os.getpid()}"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(path.name, target_is_directory=True)
            os.replace(temporary, self._folder / LATEST)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _remove_old(self) -> None:
        options = self._options
        if options.save_top_k == -1:
            return
        here = [path for path in self._folder.iterdir() if self._is_ours(path) and native.is_checkpoint(path)]
        here.sort(key=lambda path: (path == self._newest, (path / native.FACTS).stat().st_mtime_ns))
        newest = options.keep_last if options.monitor else max(options.keep_last, options.save_top_k)
        scores = self._scores()
        best = sorted(scores, key=lambda name: scores[name], reverse=options.mode == "max")[: options.save_top_k]
        for path in here[:-newest]:
            if path.name not in best:
                shutil.rmtree(path, ignore_errors=True)
        left = self._scores()
        if left != scores:
            self._write_scores(left)

    def _is_ours(self, path: Path) -> bool:
        """Whether this run wrote it; a checkpoint that a user put there is not ours to remove."""
        return not path.is_symlink() and (path.name in self.written or _STANDARD_NAME.fullmatch(path.name) is not None)

    def _scores(self) -> dict[str, float]:
        """The scores of the checkpoints that are here."""
        try:
            scores = json.loads((self._folder / _SCORES).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return {name: score for name, score in scores.items() if (self._folder / name).is_dir()}

    def _write_scores(self, scores: dict[str, float]) -> None:
        file = self._folder / _SCORES
        try:
            file.with_name(f".{_SCORES}").write_text(json.dumps(scores, indent=2), "utf-8")
            os.replace(file.with_name(f".{_SCORES}"), file)
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror or error}; make room there") from error
