"""Files that cannot be right: yaml, checkpoints and runs, truncated, foreign, lying or hostile. Each is made in the folder where one stands."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from diffusion_forcing.checkpoints import format as native

Make = Callable[[Path], list[str]]
"""Makes the files in a folder, and returns the words that meet them."""

DEEP = 2_000
MINE = ["dataset=my_dataset", "algorithm=my_algorithm", "experiment=my_experiment", "experiment.tasks=[my_task]"]


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was_run",)


# ------------------------------------------------------------------------------------------------ yaml

YAML: dict[str, bytes] = {
    "empty": b"",
    "only a comment": b"# nothing\n",
    "a list": b"- a\n- b\n",
    "a word": b"word\n",
    "binary": bytes(range(256)) * 8,
    "not utf-8": "# \xe9t\xe9\n_target_: my_project.dataset.MyDataset\nname: caf\xe9\n".encode("latin-1"),
    "utf-16": "_target_: my_project.dataset.MyDataset\n".encode("utf-16"),
    "a null byte": b"_target_: my_project.dataset.MyDataset\ncount: \x00\n",
    "a tab": b"_target_: my_project.dataset.MyDataset\n\tcount: 3\n",
    "an open bracket": b"_target_: [\n",
    "two keys in a line": b"a: b: c\n",
    "an unknown anchor": b"_target_: *nowhere\n",
    "a python object": b"_target_: !!python/object/apply:os.system ['touch was_run']\n",
    "deep brackets": b"count: " + b"[" * DEEP + b"]" * DEEP + b"\n",
    "deep mappings": b"count: " + b"{a: " * DEEP + b"1" + b"}" * DEEP + b"\n",
    "no target": b"count: 3\n",
    "a target that is a number": b"_target_: 5\n",
    "a target that is a list": b"_target_: [a, b]\n",
    "a target of one word": b"_target_: MyDataset\n",
    "a target that is nowhere": b"_target_: my_project.nowhere.MyDataset\n",
    "a target that is misspelt": b"_target_: my_project.dataset.MyDatset\n",
    "a target that is a function": b"_target_: os.system\n",
    "a target that is a module": b"_target_: os.path\n",
    "a target without options": b"_target_: pathlib.Path\n",
    "a target with spaces": b"_target_: 'my project.x'\n",
    "a target that goes up": b"_target_: ..my_project.dataset.MyDataset\n",
    "a target that cannot be imported": b"_target_: my_broken.MyDataset\n",
    "a target of bad syntax": b"_target_: my_syntax.MyDataset\n",
    "a target that exits": b"_target_: my_exit.MyDataset\n",
    "an unknown key": b"_target_: my_project.dataset.MyDataset\ncuont: 3\n",
    "a key that is a number": b"_target_: my_project.dataset.MyDataset\n3: 4\n",
    "a key that is null": b"_target_: my_project.dataset.MyDataset\n~: 4\n",
    "a key that is a list": b"_target_: my_project.dataset.MyDataset\n? [a, b]\n: 4\n",
    "a date for a number": b"_target_: my_project.dataset.MyDataset\ncount: 2020-01-01\n",
    "base64 for a number": b"_target_: my_project.dataset.MyDataset\ncount: !!binary aGVsbG8=\n",
    "a set for a number": b"_target_: my_project.dataset.MyDataset\ncount: !!set {a, b}\n",
    "nan": b"_target_: my_project.dataset.MyDataset\nperiod: .nan\n",
    "infinity": b"_target_: my_project.dataset.MyDataset\nperiod: .inf\n",
    "a huge number": b"_target_: my_project.dataset.MyDataset\ncount: 1" + b"0" * 400 + b"\n",
    "an enormous number": b"_target_: my_project.dataset.MyDataset\ncount: 1" + b"0" * 6000 + b"\n",
    "a negative number": b"_target_: my_project.dataset.MyDataset\ncount: -3\n",
    "an interpolation of nothing": b"_target_: my_project.dataset.MyDataset\ncount: ${nowhere.at.all}\n",
    "an interpolation of itself": b"_target_: my_project.dataset.MyDataset\ncount: ${dataset.count}\n",
    "interpolations in a ring": b"_target_: my_project.dataset.MyDataset\ncount: ${dataset.tokens}\ntokens: ${dataset.count}\n",
    "an unknown resolver": b"_target_: my_project.dataset.MyDataset\ncount: ${nope:1}\n",
    "an interpolation left open": b"_target_: my_project.dataset.MyDataset\ncount: ${dataset\n",
    "a variable that is not set": b"_target_: my_project.dataset.MyDataset\ncount: ${oc.env:NOT_SET_AT_ALL}\n",
    "a missing value": b"_target_: my_project.dataset.MyDataset\ncount: ???\n",
    "defaults that are nowhere": b"defaults:\n  - nowhere\n_target_: my_project.dataset.MyDataset\n",
    "defaults that are itself": b"defaults:\n  - mine\n  - _self_\n_target_: my_project.dataset.MyDataset\n",
    "defaults in a ring": b"defaults:\n  - ring\n  - _self_\n_target_: my_project.dataset.MyDataset\n",
    "defaults that are a word": b"defaults: word\n_target_: my_project.dataset.MyDataset\n",
    "defaults that are numbers": b"defaults: [1, 2]\n_target_: my_project.dataset.MyDataset\n",
    "defaults that go up": b"defaults:\n  - ../../../../etc/passwd\n_target_: my_project.dataset.MyDataset\n",
    "another part's target": b"_target_: my_project.algorithm.MyAlgorithm\ntokens: 8\nsamples: 8\n",
    "a dataset that is an experiment": b"_target_: my_project.experiment.MyExperiment\n",
    "laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("f")))
    + b"_target_: my_project.dataset.MyDataset\n",
}
MODULES = {
    "my_broken.py": "raise RuntimeError('no such luck')\n",
    "my_syntax.py": "class MyDataset(:\n",
    "my_exit.py": "import sys\nsys.exit(3)\n",
}


def yaml_cases() -> Iterator[tuple[str, Make]]:
    """A dataset's yaml of one's own, in every way wrong."""
    for name, text in YAML.items():
        yield f"yaml: {name}", _own_yaml(text)
    yield "yaml: a folder of that name", lambda here: ((here / _MINE_YAML).mkdir(parents=True), _WITH_MINE)[1]
    yield "yaml: a link to itself", _linked("mine.yaml")
    yield "yaml: a link to nowhere", _linked("nowhere.yaml")
    yield "yaml: a link to a file of the system", _linked("/etc/passwd")


_MINE_YAML = Path("configurations") / "dataset" / "mine.yaml"
_WITH_MINE = ["dataset=mine", *MINE[1:]]


def _own_yaml(text: bytes) -> Make:
    def make(here: Path) -> list[str]:
        (here / _MINE_YAML).write_bytes(text)
        ring = b"defaults:\n  - mine\n  - _self_\n"
        (here / _MINE_YAML).with_name("ring.yaml").write_bytes(ring)
        for module, source in MODULES.items():
            (here / module).write_text(source)
        return _WITH_MINE

    return make


def _linked(target: str) -> Make:
    def make(here: Path) -> list[str]:
        (here / _MINE_YAML).symlink_to(target)
        return _WITH_MINE

    return make


# ------------------------------------------------------------------------------------------------ checkpoints


def checkpoint_cases(whole: Path) -> Iterator[tuple[str, Make]]:
    """`load=` of what is no checkpoint of ours, or not a whole one. `whole`: a good one of the project's algorithm."""
    for name, content in _single_files().items():
        yield f"load: {name}", _file(content)
    yield "load: a zip with an evil pickle", _made(lambda file: torch.save({"state_dict": Evil()}, file))
    yield (
        "load: a state dict of other things",
        _made(lambda file: torch.save({"state_dict": {"a": torch.zeros(2)}}, file)),
    )
    yield "load: a state dict that is a list", _made(lambda file: torch.save({"state_dict": [1]}, file))
    yield "load: a tensor", _made(lambda file: torch.save(torch.zeros(3), file))
    yield "load: half a released one", _made(_half_a_released)
    yield "load: a zip without a pickle", _made(_zip_of({"hello.txt": b"hello"}))
    yield "load: a zip with a pickle of junk", _made(_zip_of({"archive/data.pkl": b"junk", "archive/version": b"3"}))
    yield "load: planning with tensors of other ranks", _made(_misshapen)
    yield "load: safetensors alone", _made(lambda file: save_file({"a": torch.zeros(2)}, file))
    yield "load: a link to itself", lambda here: ((here / "bad").symlink_to("bad"), _load("bad"))[1]
    yield "load: an empty folder", lambda here: ((here / "bad").mkdir(), _load("bad"))[1]
    yield "load: a name too long", lambda here: _load("x" * 5000)
    yield "load: a path too long", lambda here: _load("x/" * 3000)
    yield "load: a null byte", lambda here: _load("a\x00b")
    yield "load: a device", lambda here: _load("/dev/null")
    yield "load: a pipe", lambda here: (os.mkfifo(here / "bad"), _load("bad"))[1]
    yield "load: nothing of that name", lambda here: _load("../../../nowhere")
    for name, change in HEADERS.items():
        yield f"load: checkpoint.json {name}", _with_header(whole, change)
    for name, content in _safetensors().items():
        yield f"load: model.safetensors {name}", _with_model(whole, content)
    for file in (native.HEADER, native.MODEL):
        yield f"load: {file} cut short", _with_file(whole, file, lambda data: data[: len(data) // 2])
        yield f"load: {file} empty", _with_file(whole, file, lambda data: b"")
        yield f"load: {file} missing", _with_file(whole, file, None)
    yield (
        "load: a byte of the weights changed",
        _with_file(whole, native.MODEL, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    )


def _load(what: str) -> list[str]:
    return [*MINE, f"load={what}"]


def _single_files() -> dict[str, bytes]:
    return {
        "an empty file": b"",
        "one byte": b"\x80",
        "binary junk": bytes(np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)),
        "text": b"hello\n",
        "json": b'{"a": 1}',
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "an evil pickle": pickle.dumps(Evil()),
        "an old evil pickle": pickle.dumps(Evil(), protocol=0),
        "a pickle of a dict": pickle.dumps({"state_dict": {}}),
        "a pickle cut short": pickle.dumps({"state_dict": list(range(1000))})[:100],
        "the beginning of a zip": b"PK\x03\x04" + bytes(200),
        "a sparse terabyte": b"\x80\x02}.",
    }


def _file(content: bytes) -> Make:
    return _made(lambda file: file.write_bytes(content))


def _made(write: Callable[[Path], Any]) -> Make:
    def make(here: Path) -> list[str]:
        write(here / "bad.ckpt")
        return _load("bad.ckpt")

    return make


def _zip_of(members: dict[str, bytes]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write


def _half_a_released(file: Path) -> None:
    torch.save({"state_dict": {"diffusion_model.model.transformer.layers.0.x": torch.zeros(3)}}, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _misshapen(file: Path) -> None:
    keys = ("out.weight", "transformer.layers.0.linear1.weight", "init_mlp.0.weight")
    state = {f"diffusion_model.model.{key}": torch.zeros(()) for key in keys}
    torch.save({"state_dict": {**state, "data_mean": torch.zeros(2), "data_std": torch.zeros(2)}}, file)


HEADERS: dict[str, Any] = {
    "is a list": [],
    "is a number": 3,
    "is of another project": {"format": "others"},
    "is of a later version": {"version": 99},
    "is of a version that is a word": {"version": "one", "libraries": []},
    "has a step that is a word": {"step": "three"},
    "has a step that is negative": {"step": -3},
    "has a step beyond all numbers": {"step": 10**400},
    "has a step that is nan": {"step": float("nan")},
    "has facts that are a list": {"facts": []},
    "has files that are a list": {"files": []},
    "has no files": {"files": {}},
    "has a file that is a word": {"files": {native.MODEL: "x"}},
    "has a file without a sha256": {"files": {native.MODEL: {"bytes": 1}}},
    "has files elsewhere": {
        "files": {native.MODEL: {"bytes": 1, "sha256": "0"}, "../../evil": {"bytes": 1, "sha256": ""}}
    },
    "has a task that is a list": {"facts": {"task": ["planning"]}},
    "has a line that is a number": {"facts": {"task": "planning", "line": 1.5}},
    "has statistics that are words": {"facts": {"statistics": {"data_mean": "x"}}},
    "has statistics that are a list": {"facts": {"statistics": [1, 2]}},
    "has ragged statistics": {"facts": {"statistics": {"data_mean": [[1], [1, 2]]}}},
    "has sizes of another type": {"facts": {"structure": {"algorithm": {"network_size": "large"}}}},
    "has sizes that are not numbers": {"facts": {"structure": {"algorithm": {"network_size": float("nan")}}}},
    "has sizes beyond all numbers": {"facts": {"structure": {"algorithm": {"network_size": 10**30}}}},
    "has sizes beyond all memory": {"facts": {"structure": {"algorithm": {"network_size": 10**8}}}},
    "has sizes whose bytes cannot be counted": {"facts": {"structure": {"algorithm": {"network_size": 10**14}}}},
    "has other sizes": {"facts": {"structure": {"algorithm": {"network_size": 64}}}},
    "has a negative size": {"facts": {"structure": {"algorithm": {"num_layers": -1}}}},
}


def _with_header(whole: Path, change: Any) -> Make:
    def make(here: Path) -> list[str]:
        _copy(whole, here / "bad")
        header = json.loads((here / "bad" / native.HEADER).read_text())
        header = {**header, **change} if isinstance(change, dict) else change
        (here / "bad" / native.HEADER).write_text(json.dumps(header))
        return _load("bad")

    return make


def _safetensors() -> dict[str, bytes]:
    def packed(header: bytes, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header)) + header + data

    def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> bytes:
        return json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()

    return {
        "has a header longer than the file": struct.pack("<Q", 2**60) + b"{}",
        "has a header of no length": struct.pack("<Q", 0),
        "has a header that is not json": packed(b"{not json"),
        "has a header that is not utf-8": packed(b'{"\xff": 1}'),
        "has a header that is deep": packed(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
        "has a tensor that lies outside": packed(tensor(offsets=(0, 2**40)), bytes(8)),
        "has a tensor that ends before it begins": packed(tensor(offsets=(8, 0)), bytes(8)),
        "has a tensor of an unknown type": packed(tensor(dtype="F7"), bytes(8)),
        "has a tensor of more than there is": packed(tensor(shape=(2**40, 2**40)), bytes(8)),
        "has a tensor of negative shape": packed(tensor(shape=(-2,)), bytes(8)),
        "has other tensors": packed(tensor(), bytes(8)),
        "is a zip": b"PK\x03\x04" + bytes(100),
    }


def _with_model(whole: Path, content: bytes) -> Make:
    """With `content` as its weights, and a header that says that this is right."""

    def make(here: Path) -> list[str]:
        bad = here / "bad"
        _copy(whole, bad)
        (bad / native.MODEL).write_bytes(content)
        header = json.loads((bad / native.HEADER).read_text())
        header["files"][native.MODEL] = native.fingerprint(bad / native.MODEL)
        (bad / native.HEADER).write_text(json.dumps(header))
        return _load("bad")

    return make


def _with_file(whole: Path, name: str, change: Callable[[bytes], bytes] | None) -> Make:
    def make(here: Path) -> list[str]:
        _copy(whole, here / "bad")
        file = here / "bad" / name
        if change is None:
            file.unlink()
        else:
            file.write_bytes(change(file.read_bytes()))
        return _load("bad")

    return make


def _copy(whole: Path, to: Path) -> None:
    to.mkdir(parents=True)
    for file in whole.iterdir():
        (to / file.name).write_bytes(file.read_bytes())


# ------------------------------------------------------------------------------------------------ runs


def run_cases(run: Path) -> Iterator[tuple[str, Make]]:
    """`resume=` of what is no run of ours, or not a whole one. `run`: a good one, of the project's."""
    step = "checkpoints/step-00000002"
    texts: dict[str, dict[str, bytes | None]] = {
        "run.json is junk": {"run.json": b"\x00\xff junk"},
        "run.json is a list": {"run.json": b"[]"},
        "run.json is empty": {"run.json": b""},
        "run.json has no id": {"run.json": b'{"name": "x"}'},
        "run.json has an id that is a list": {"run.json": b'{"id": [1], "name": "x", "started": "x"}'},
        "run.json is deep": {"run.json": b"[" * DEEP + b"]" * DEEP},
        "config.yaml is missing": {"config.yaml": None},
        "config.yaml is empty": {"config.yaml": b""},
        "config.yaml is junk": {"config.yaml": bytes(range(256))},
        "config.yaml is a list": {"config.yaml": b"- a\n"},
        "config.yaml is deep": {"config.yaml": b"a: " + b"[" * DEEP + b"]" * DEEP},
        "config.yaml has no parts": {"config.yaml": b"seed: 1\nchoices: {}\n"},
        "config.yaml has choices that are a word": {"config.yaml": b"seed: 1\nchoices: word\n"},
        "config.yaml is not utf-8": {"config.yaml": b"name: caf\xe9\n"},
        "config.yaml has unknown keys": {"config.yaml": b"sed: 1\nchoices: {}\n"},
        "training.pt is empty": {f"{step}/training.pt": b""},
        "training.pt is missing": {f"{step}/training.pt": None},
        "checkpoint.json is junk": {f"{step}/checkpoint.json": b"\xff\x00"},
    }
    for name, files in texts.items():
        yield f"resume: {name}", _with_files(run, files)
    for name, content in STATES.items():
        yield f"resume: training.pt {name}", _with_state(run, step, content)
    yield "resume: no checkpoint", _with_files(run, {f"{step}/checkpoint.json": None})
    yield "resume: nothing of that name", lambda here: ["resume=nowhere"]
    yield "resume: a path that goes up", lambda here: ["resume=../../../etc"]
    yield "resume: a file", lambda here: ((here / "a.txt").write_text("a"), ["resume=a.txt"])[1]
    yield "resume: a name too long", lambda here: [f"resume={'x' * 5000}"]
    yield "resume: a null byte", lambda here: ["resume=a\x00b"]


def _saved(state: Any, protocol: int = 2) -> bytes:
    """`state` as torch.save writes it."""
    content = io.BytesIO()
    torch.save(state, content, pickle_protocol=protocol)
    return content.getvalue()


class Lying:
    """Read back, a tensor of 2⁴⁰ numbers in a storage of one."""

    def __reduce__(self) -> Any:
        storage = torch.zeros(1)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (2**40,), (1,), False, OrderedDict())


STATES: dict[str, bytes] = {
    "is cut short": _saved({"global_step": 2})[:200],
    "is a pickle that runs something": pickle.dumps(Evil()),
    "has a pickle that runs something": _saved({"state_dict": Evil()}),
    "has a function": _saved({"state_dict": len}),
    "has objects in an array": _saved({"state_dict": np.array([Evil()])}, 5),
    "has a tensor larger than its file": _saved({"state_dict": Lying()}),
    "is a list": _saved([]),
    "is a number": _saved(3),
    "has no state": _saved({"global_step": 2}),
    "has a state of another kind": _saved({"state_dict": [], "global_step": 2, "loops": {}, "optimizer_states": []}),
    "is deep": pickle.PROTO + b"\x02" + pickle.EMPTY_LIST * DEEP + pickle.APPEND * (DEEP - 1) + pickle.STOP,
}


def _with_state(run: Path, step: str, content: bytes) -> Make:
    """With `content` as training.pt, and a header that says that this is right."""

    def make(here: Path) -> list[str]:
        words = _with_files(run, {f"{step}/training.pt": content})(here)
        folder = next(here.glob(f"outputs/*/*/{step}"))
        header = json.loads((folder / native.HEADER).read_text())
        header["files"][native.TRAINING] = native.fingerprint(folder / native.TRAINING)
        (folder / native.HEADER).write_text(json.dumps(header))
        return words

    return make


def _with_files(run: Path, files: dict[str, bytes | None]) -> Make:
    def make(here: Path) -> list[str]:
        folder = here / "outputs" / run.parent.name / run.name
        for path in run.rglob("*"):
            if path.is_file() and not path.is_symlink():
                target = folder / path.relative_to(run)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        for name, content in files.items():
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
        return [f"resume={folder.relative_to(here)}", "experiment.tasks=[training]", "experiment.training.max_steps=3"]

    return make
