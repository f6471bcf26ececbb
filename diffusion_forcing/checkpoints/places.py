"""Where checkpoints are found and published: a path, a run's id, the name of a shipped one, or the Hugging Face Hub,
`hf://user/repo[@revision][/folder]`.

Of a repository on the hub only the files of our format are read: checkpoint.json, model.safetensors and its card,
README.md. They come through the hub's own client into its cache, so what was downloaded once is found without a network
too. Their sizes are checked before they are downloaded, and nothing in them is run. Needs the extra `hub`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints.format import export
from diffusion_forcing.errors import UserError, did_you_mean, first_line, require
from diffusion_forcing.files import folders, is_run_id, read_json, recover, run_folders
from diffusion_forcing.limits import Refused, check_limit, load_json, reading
from diffusion_forcing.terminal import clean

SHIPPED = "pretrained"
LATEST = "latest"
SCHEME = "hf://"
LIBRARY = "diffusion-forcing"
_PLACE = re.compile(r"(?:hf://)?(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w.%-]+))?(?:/(?P<folder>[\w./-]+))?")
_FORM = "hf://user/repo, hf://user/repo@revision or hf://user/repo/folder"
_LIMITS = {native.HEADER: "JSON_BYTES", native.MODEL: "ARRAY_BYTES", native.CARD: "RUN_JSON_BYTES"}
"""The files that are downloaded, and the limit on the size of each."""
_RESULTS = "results.json"
_CHARACTERS = 200
"""Most of a text of a run's files in an error."""
_NETWORK = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
_NOT_OURS = re.compile(
    r"oracle_(?!ratio)|^naive/|^data/|_(?:copy|mean|blend|truth|shuffled|interpolation|last_season)(?:_|$)|pixel|seconds|unreached"
)
"""Results that are no scores of the model: of references, of the data, counts and times."""
PIPELINES = {
    "planning": "reinforcement-learning",
    "robot": "robotics",
    "prediction": "time-series-forecasting",
    "video": "image-to-video",
}
"""What the hub calls our tasks."""


def resolve(spec: str, outputs: Path = Path("outputs")) -> Path:
    """The checkpoint that `spec` names: a checkpoint folder of ours, or a single file (a released `.ckpt`).

    `spec`: a path to either or to a file inside ours, a run's folder (its newest checkpoint), the id of a run below
    `outputs`, a shipped checkpoint's name (`maze2d_medium_goal` or `pretrained/maze2d_medium_goal`), or a place on the hub
    (`hf://user/repo[@revision][/folder]`), which is downloaded. UserError naming what is missing and how to get it.
    """
    if spec.startswith(SCHEME):
        return fetch(spec)
    path = Path(spec).expanduser()
    try:
        path.stat()
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.EACCES):
            raise UserError(f"cannot read the checkpoint {spec}: {os.strerror(error.errno)}") from None  # type: ignore[union-attr, arg-type]
    if path.exists() and any(one.is_symlink() for one in (path, *path.parents)):
        path = path.resolve()  # `latest-run` points at the new run before its checkpoint is read
    if path.is_dir():
        return _in_folder(path, str(spec))
    if path.exists():
        return path.parent if path.name in (native.HEADER, native.MODEL) and native.is_checkpoint(path.parent) else path
    for place in shipped_places():
        candidate = place / str(spec).removeprefix(f"{SHIPPED}/")
        if native.is_checkpoint(candidate):
            return candidate
    runs = run_folders(outputs)
    if spec in runs:
        return _in_folder(runs[spec], spec)
    raise UserError(_missing(spec, Path(outputs), runs))


def latest(run_folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's folder or in its `checkpoints` folder; None if there is none."""
    folder = Path(run_folder)
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    recover(folder)
    pointed = folder / LATEST
    if native.is_checkpoint(pointed):
        target = folder / os.readlink(pointed) if pointed.is_symlink() else pointed
        if target.resolve().parent == folder.resolve():  # a link out of the run is not followed
            return target
    found = [path for path in folders(folder) if native.is_checkpoint(path)]
    return max(found, key=_step, default=None)


def shipped() -> list[str]:
    """Names of the shipped checkpoints that can be found."""
    return sorted({path.name for place in shipped_places() for path in folders(place) if native.is_checkpoint(path)})


def shipped_places() -> list[Path]:
    """Where shipped checkpoints are looked for: the working directory, this checkout, the installed package's data."""
    package = Path(__file__).resolve().parents[1]
    data = Path(sys.prefix) / "share" / "diffusion-forcing"
    return [Path(SHIPPED), package.parent / SHIPPED, package / SHIPPED, data / SHIPPED]


def _in_folder(path: Path, spec: str) -> Path:
    """The checkpoint folder `path`, which `spec` named, or the newest checkpoint of the run `path`."""
    if native.is_checkpoint(path):
        return path
    found = latest(path)
    if found is None:
        run = read_json(path / "run.json", {})
        require(is_run_id(run.get("id")), f"{spec} is neither a checkpoint nor a run's folder")
        typed = "" if spec in (run["id"], str(path)) else f"{spec}: "
        raise UserError(f"{typed}run {run['id']} ({path}) has no checkpoint: {_why_none(run)}")
    return found


def _why_none(run: Mapping[str, Any]) -> str:
    """Why the run with this run.json has no checkpoint."""
    tasks, source = run.get("tasks"), run.get("load")
    if not isinstance(tasks, list) or not tasks or "training" in tasks:
        return "it ended before its first one"
    weights = f"; its weights are those of load={clean(source, _CHARACTERS)}" if isinstance(source, str) else ""
    return f"it trained nothing (tasks: {clean(', '.join(map(str, tasks)), _CHARACTERS)}){weights}"


def _missing(spec: str, outputs: Path, runs: Iterable[str]) -> str:
    names = shipped()
    near = did_you_mean(str(spec).removeprefix(f"{SHIPPED}/"), [*names, *runs])
    here = (
        f"shipped here: {', '.join(names)} (the wheel has fewer than a checkout)" if names else "none are shipped here"
    )
    if os.sep in spec or Path(spec).suffix:
        return (
            f"the checkpoint {spec} does not exist (looked in {Path.cwd()}){near}: put a downloaded checkpoint at that "
            f"path, train one (leave load= out; it is saved in the run's folder), or use a shipped one ({here})"
        )
    return (
        f"'{spec}' is neither a path, nor the id of a run in {outputs}, nor a shipped checkpoint{near}; "
        f"{here}; or train one (leave load= out) and pass its run id"
    )


def _step(path: Path) -> int:
    try:
        return int(native.read_header(path)["step"])
    except UserError:
        return -1


@dataclass(frozen=True)
class Place:
    """A folder ("" for the root) of a repository of models. revision: a branch, a tag or a commit."""

    repo: str
    revision: str = "main"
    folder: str = ""

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{SCHEME}{self.repo}{at}{f'/{self.folder}' if self.folder else ''}"


def place_of(spec: str) -> Place:
    """What `spec` names; a revision's slash is written %2F. UserError for any other text."""
    found = _PLACE.fullmatch(spec.rstrip("/"))
    folder = (found and found["folder"]) or ""
    if found is None or (folder and {"", ".", ".."} & set(folder.split("/"))):
        raise UserError(f"'{spec}' names no repository of the Hugging Face Hub; write {_FORM}")
    return Place(found["repo"], unquote(found["revision"] or "main"), folder)


def fetch(spec: str) -> Path:
    """The checkpoint at `spec`, downloaded: a folder in the hub's cache.

    UserError, one line: not a repository, none of ours, private or gated, too large, no network, no huggingface_hub.
    """
    place = place_of(spec)
    header = _download(place, native.HEADER)
    native.read_header(header.parent)
    commit = header.parents[place.folder.count("/") + bool(place.folder)].name
    pinned = replace(place, revision=commit)  # both files of one commit
    _download(pinned, native.MODEL)
    with contextlib.suppress(UserError):  # a card is not needed
        _download(pinned, native.CARD)
    return header.parent


def push(
    checkpoint: Path, spec: str, *, private: bool = False, license: str = "mit", results: Path | None = None
) -> str:
    """Upload the weights, metadata and card of a checkpoint to `spec`; the repository is made if it is not there.

    checkpoint: one of our folders or a released `.ckpt`; what only training needs is left out. private, license: of a
    repository that is made, and of the card. results: a results.json, or a run's folder with one, whose numbers become
    the card's model-index; without it, that of the run which the checkpoint lies in. Returns the address of what was
    uploaded. UserError without a login or the right to write.
    """
    place, hub = place_of(spec), _client()
    checkpoint = Path(checkpoint)
    measured = _read_results(results, checkpoint)
    written = checkpoint / native.CARD
    text = written.read_text("utf-8") if written.is_file() else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = export(checkpoint, Path(temporary) / "checkpoint", dtype=None)
        facts = native.read_header(folder)["facts"]
        (folder / native.CARD).write_text(
            model_card(text, facts, place=place, license=license, results=measured), "utf-8"
        )
        additions = [
            hub.CommitOperationAdd(f"{place.folder}/{name}" if place.folder else name, folder / name)
            for name in _LIMITS
        ]
        with _explained(place):
            api = hub.HfApi(library_name=LIBRARY)
            api.create_repo(place.repo, private=private, exist_ok=True)
            api.create_commit(
                place.repo, additions, commit_message=f"Upload a checkpoint with {LIBRARY}", revision=place.revision
            )
    return str(place)


def model_card(
    text: str | None,
    facts: dict[str, Any],
    *,
    place: Place,
    license: str = "mit",
    results: Mapping[str, Any] | None = None,
) -> str:
    """A checkpoint's card with the front matter that the hub reads, and how to load it. text: None for a short card of
    the facts; one that has a front matter keeps it. results: the content of a results.json, which becomes the card's
    model-index."""
    if text is not None and text.startswith("---\n"):
        return _with_results(text, place, results)
    task = str(facts.get("task", ""))
    tags = [LIBRARY, *([task] if task else []), *([facts["env_id"]] if isinstance(facts.get("env_id"), str) else [])]
    data = _client().ModelCardData(
        library_name=LIBRARY, license=license, tags=tags, pipeline_tag=PIPELINES.get(task), library_version=None
    )
    body = (
        text
        or f"# {place.repo.partition('/')[2]}\n\nA checkpoint of Diffusion Forcing{f' for {task}' if task else ''}.\n"
    )
    load = f"load={place}"
    if load not in body:
        body = f"{body.rstrip()}\n\n## Loading it\n```\npip install '{LIBRARY}[hub]'\n{LIBRARY} {load} …\n```\n"
    return _with_results(f"---\n{data.to_yaml()}\n---\n\n{body}", place, results)


def _with_results(card: str, place: Place, results: Mapping[str, Any] | None) -> str:
    """The card with the model's own scores as the hub's model-index, in place of one that it had."""
    if results is None:
        return card
    hub, dataset, task = _client(), results["dataset"], str(results["task"])
    found = hub.ModelCard(card, ignore_metadata_errors=True)
    found.data.model_name = place.repo.partition("/")[2]
    scores = [
        hub.EvalResult(
            task_type=PIPELINES.get(task, task),
            dataset_type=dataset["name"],
            dataset_name=dataset["id"] or dataset["name"],
            metric_type=metric["name"].rpartition("/")[2],
            metric_name=metric["name"],
            metric_value=metric["value"],
            dataset_split=results["tasks"][-1] if results["tasks"] else None,
            dataset_args={"command": results["command"], "seed": results["seed"], **results["counts"]},
            metric_args={"stderr": metric["stderr"], "interval_95": metric["interval"]},
        )
        for metric in results["metrics"]
        if metric["value"] is not None and not _NOT_OURS.search(metric["name"])
    ]
    if not scores:
        return card
    found.data.eval_results = scores
    return str(found)


def _read_results(results: Path | None, checkpoint: Path) -> dict[str, Any] | None:
    """The content of results.json: that of the path `results`, else of the run in which `checkpoint` lies, unless the
    checkpoint was written after it; None without one. UserError for a file that is none."""
    if results is None and checkpoint.parent.name != "checkpoints":
        return None
    path = checkpoint.parents[1] if results is None else results
    path = path / _RESULTS if path.is_dir() else path
    if results is None:
        header = checkpoint / native.HEADER
        if not path.is_file() or path.stat().st_mtime < header.stat().st_mtime:
            return None
    with reading(path, "evaluate the model again, or leave --results out"):
        content = load_json(path)
        if content.get("format") != "diffusion-forcing/results" or content.get("format_version") not in (1, 2):
            raise Refused("is no results.json of this version")
        dataset, kept = content["dataset"], ("name", "value", "stderr", "interval")
        return {
            **{key: content[key] for key in ("task", "tasks", "seed", "counts", "command")},
            "dataset": {"name": str(dataset["name"]), "id": dataset["id"]},
            "metrics": [{key: metric[key] for key in kept} for metric in content["metrics"]],
        }


def _download(place: Place, name: str) -> Path:
    """One file of `place`, in the hub's cache; without a network, as it was downloaded last."""
    hub, errors = _client(), import_module("huggingface_hub.errors")
    path = f"{place.folder}/{name}" if place.folder else name
    words = {"repo_id": place.repo, "filename": path, "revision": place.revision}
    with _explained(place):
        try:
            # asked for itself: the client's own download tries for half a minute when there is no network
            size = hub.get_hf_file_metadata(hub.hf_hub_url(**words), library_name=LIBRARY).size
        except (errors.HfHubHTTPError, errors.EntryNotFoundError):
            raise
        except Exception:  # its transport's, which differ from version to version
            return Path(hub.hf_hub_download(**words, local_files_only=True))
        try:
            check_limit(_LIMITS[name], size or 0, f"a {name}")
        except Refused as refusal:
            raise UserError(f"{place} {refusal}; take another checkpoint") from None
        return Path(hub.hf_hub_download(**words, library_name=LIBRARY))


def _client() -> Any:
    """The package huggingface_hub."""
    try:
        return import_module("huggingface_hub")
    except ImportError:
        raise UserError(f"{SCHEME} needs the package huggingface_hub: pip install '{LIBRARY}[hub]'") from None


@contextlib.contextmanager
def _explained(place: Place) -> Iterator[None]:
    """One UserError for whatever the hub's client raises about `place`."""
    errors = import_module("huggingface_hub.errors")
    try:
        yield
        return
    except UserError:
        raise
    except errors.GatedRepoError:
        reason = "is gated: accept its terms on its page, then hf auth login or set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "does not exist, or is private: check the name, or hf auth login or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        reason = f"has no revision '{place.revision}'"
    except errors.LocalEntryNotFoundError:
        reason = f"cannot be reached and was not downloaded before: {_NETWORK}"
    except errors.EntryNotFoundError:
        reason = f"holds no checkpoint of this project there (no {native.HEADER} with {native.MODEL}); name its folder as in {_FORM}"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        login = ": hf auth login, or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        reason = f"was refused by the hub ({status}){login or f': {first_line(error)}'}"
    except Exception as error:
        reason = f"cannot be reached: {_NETWORK} ({type(error).__name__}: {first_line(error)})"
    raise UserError(f"{place} {reason}") from None
