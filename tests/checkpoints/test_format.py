import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints import latest, load, save
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import remove_leftovers

WEIGHTS = {"out.weight": torch.arange(6.0).reshape(2, 3), "out.bias": torch.zeros(2)}
FACTS = {"task": "planning", "line": "v1.5", "statistics": {"data_mean": [3.5, 1 / 3], "data_std": [1.0, 2.0]}}
STATE = {
    "global_step": 40,
    "state_dict": {"network.out.weight": torch.ones(2, 3)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "step-00000040", STATE, metadata=FACTS, model=WEIGHTS)


def in_a_child(work: Callable[[], None]) -> tuple[int, str]:
    """Run `work` in a forked process: (its wait status, the message of its UserError)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except UserError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    return os.waitpid(child, 0)[1], message


def message_of(path: Path, *, training: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        load(path, training=training)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    header = json.loads((path / native.HEADER).read_text())
    (path / native.HEADER).write_text(json.dumps(header | changes))


def test_what_was_saved_comes_back(saved: Path) -> None:
    found = load(saved, training=True)
    assert (found.kind, found.step, found.path) == ("native", 40, saved)
    assert found.metadata == FACTS
    assert found.weights.keys() == WEIGHTS.keys()
    assert torch.equal(found.weights["out.weight"], WEIGHTS["out.weight"])
    assert torch.equal(found.statistics["data_mean"], torch.tensor([3.5, 1 / 3]))
    assert found.training is not None
    assert found.training["optimizer_states"][0]["param_groups"] == [{"betas": (0.9, 0.999)}]
    assert found.training["optimizer_states"][0]["state"][0]["step"] == 3


def test_the_training_state_is_read_only_when_asked_for(saved: Path) -> None:
    (saved / native.TRAINING).write_bytes(b"")
    assert load(saved).training is None


def test_model_safetensors_is_readable_with_nothing_but_safetensors(saved: Path) -> None:
    assert torch.equal(load_file(saved / "model.safetensors")["out.weight"], WEIGHTS["out.weight"])


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    tied = torch.ones(2, 2)
    found = load(save(tmp_path / "c", None, metadata={}, model={"a": tied, "b": tied, "c": tied[0]}))
    assert {key: value.shape for key, value in found.weights.items()} == {
        "a": torch.Size([2, 2]),
        "b": torch.Size([2, 2]),
        "c": torch.Size([2]),
    }


def test_a_checkpoint_without_training_state_says_so_when_resumed(tmp_path: Path) -> None:
    path = save(tmp_path / "shipped", None, metadata=FACTS, model=WEIGHTS, step=7, card="# A card")
    assert sorted(file.name for file in path.iterdir()) == ["README.md", "checkpoint.json", "model.safetensors"]
    assert "keeps weights only; load=" in message_of(path, training=True)


def test_a_card_may_be_edited(tmp_path: Path) -> None:
    path = save(tmp_path / "shipped", None, metadata=FACTS, model=WEIGHTS, card="# A card")
    (path / "README.md").write_text("# A better card")
    assert load(path).metadata == FACTS


def test_saving_again_replaces_the_whole_folder(saved: Path) -> None:
    save(saved, None, metadata={"task": "other"}, model={"w": torch.ones(1)}, step=41)
    assert load(saved).step == 41
    assert sorted(file.name for file in saved.iterdir()) == ["checkpoint.json", "model.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("which", [1, 2])
def test_a_kill_at_either_rename_leaves_an_old_checkpoint_readable(saved: Path, which: int) -> None:
    def killed_while_saving() -> None:
        calls = []
        replace = os.replace

        def kill_at(*paths: Any) -> None:
            calls.append(paths)
            if len(calls) == which:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = kill_at  # type: ignore[assignment]
        save(saved, None, metadata={}, model={"w": torch.ones(1)}, step=41)

    status, _ = in_a_child(killed_while_saving)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(list(saved.parent.glob(".*"))) >= 1, "the kill came before anything was written"
    found = latest(saved.parent)
    assert found == saved
    assert load(saved, training=True).step == 40
    remove_leftovers(saved.parent)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_kill_before_the_first_checkpoint_is_whole_leaves_none(tmp_path: Path) -> None:
    def killed_while_saving() -> None:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        save(tmp_path / "step-1", None, metadata={}, model=WEIGHTS)

    in_a_child(killed_while_saving)
    assert not (tmp_path / "step-1").exists()
    assert list(tmp_path.iterdir()) != []
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("in_training_state", [False, True])
def test_a_disk_that_is_full_is_one_line_and_leaves_the_old_checkpoint(saved: Path, in_training_state: bool) -> None:
    def with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        large = {"w": torch.ones(10000)}
        save(
            saved, large if in_training_state else None, metadata={}, model={} if in_training_state else large, step=41
        )

    _, message = in_a_child(with_little_room)
    assert message.startswith(f"cannot save the checkpoint {saved}: ")
    assert "older checkpoints are untouched" in message
    assert "\n" not in message
    assert load(saved).step == 40
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot save the checkpoint .*: Permission denied; .*outputs="):
        save(tmp_path / "step-1", None, metadata={}, model=WEIGHTS)


def test_truncated_weights_are_named(saved: Path) -> None:
    file = saved / native.MODEL
    file.write_bytes(file.read_bytes()[:-4])
    assert "model.safetensors cannot be read: it" in message_of(saved)
    assert "bytes" in message_of(saved)


def test_weights_of_the_right_size_and_the_wrong_content_are_named(saved: Path) -> None:
    save_file({key: value + 1 for key, value in WEIGHTS.items()}, saved / native.MODEL)
    assert "it has another sha256 than was written" in message_of(saved)


def test_garbage_whose_sha256_was_recorded_is_named_too(saved: Path) -> None:
    (saved / native.MODEL).write_bytes(b"x" * 100)
    edit(saved, files={native.MODEL: native.fingerprint(saved / native.MODEL)})
    assert "model.safetensors cannot be read: it" in message_of(saved)


def test_verify_reads_every_file_though_nothing_is_loaded(saved: Path) -> None:
    native.verify(saved)
    state = saved / native.TRAINING
    state.write_bytes(state.read_bytes()[:-1] + b"x")  # of the same size
    with pytest.raises(UserError, match=r"training\.pt cannot be read: it has another sha256"):
        native.verify(saved)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02junk", b"x" * 1000])
def test_a_damaged_training_state_whose_sha256_was_recorded_is_named(saved: Path, content: bytes) -> None:
    (saved / native.TRAINING).write_bytes(content)
    header = json.loads((saved / native.HEADER).read_text())
    edit(saved, files=header["files"] | {native.TRAINING: native.fingerprint(saved / native.TRAINING)})
    assert "training.pt cannot be read: it" in message_of(saved, training=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"name": "left-pad", "version": "1.0.0"}', "was not written by this project"),
        ("[1, 2]", "holds a JSON list"),
        ('{"format": "diffusion', "cannot be read"),
        ("\x00\xff", "cannot be read"),
        (json.dumps({"format": native.FORMAT, "version": 1, "step": 3}), "is damaged"),
    ],
)
def test_a_foreign_or_broken_json_is_named(saved: Path, content: str, said: str) -> None:
    (saved / native.HEADER).write_text(content, "latin-1")
    assert said in message_of(saved)


def test_another_format_version_names_the_program_that_wrote_it(saved: Path) -> None:
    edit(saved, version=2, libraries={"diffusion-forcing": "9.1"})
    assert "format version 2, this program reads 1" in message_of(saved)
    assert "9.1" in message_of(saved)


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / native.MODEL).unlink()
    assert "it does not exist; copy the whole folder" in message_of(saved)


def test_a_folder_that_is_no_checkpoint_and_a_path_that_is_not_there_are_named(tmp_path: Path) -> None:
    assert "is not a checkpoint" in message_of(tmp_path)
    assert "is not a checkpoint" in message_of(tmp_path / "missing")


def test_a_copy_elsewhere_is_as_good(saved: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "elsewhere" / "name"))
    assert load(copy, training=True).step == 40
