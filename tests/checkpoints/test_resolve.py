import json
import os
import sys
from pathlib import Path

import pytest
import torch

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints import latest, resolve, save, shipped
from diffusion_forcing.errors import UserError

MODULE = sys.modules["diffusion_forcing.checkpoints.places"]  # the package's `resolve` is the function


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MODULE, "shipped_places", lambda: [Path("pretrained")])
    return tmp_path


def checkpoint(path: Path | str, step: int = 1) -> Path:
    return save(Path(path), None, metadata={}, model={"w": torch.ones(1)}, step=step)


def run(folder: str, run_id: str, *steps: int) -> Path:
    path = Path(folder)
    (path / "checkpoints").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"id": run_id}))
    for step in steps:
        checkpoint(path / "checkpoints" / f"step-{step}", step)
    return path


def message_of(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(spec, Path("outputs"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_folder_and_its_files_are_that_checkpoint() -> None:
    path = checkpoint("c")
    assert resolve("c") == resolve("c/") == resolve("c/checkpoint.json") == resolve("c/model.safetensors") == path


def test_a_single_file_is_itself_whatever_it_holds() -> None:
    Path("released.ckpt").write_bytes(b"")
    assert resolve("released.ckpt") == Path("released.ckpt")


def test_a_runs_folder_its_checkpoints_and_its_id_are_its_newest_checkpoint() -> None:
    folder = run("outputs/2026-01-01/10-00-00-a", "abcd1234", 9, 100, 20)
    for spec in (str(folder), str(folder / "checkpoints"), "abcd1234"):
        assert resolve(spec, Path("outputs")) == folder / "checkpoints" / "step-100"


def test_the_latest_link_wins_over_the_step_and_a_broken_one_is_passed_over() -> None:
    folder = run("outputs/2026-01-01/10-00-00-a", "abcd1234", 9, 100)
    link = folder / "checkpoints" / "latest"
    link.symlink_to("step-9")
    assert latest(folder) == folder / "checkpoints" / "step-9"
    link.unlink()
    link.symlink_to("step-11")
    assert latest(folder) == folder / "checkpoints" / "step-100"


def test_half_written_checkpoints_are_passed_over() -> None:
    folder = run("outputs/2026-01-01/10-00-00-a", "abcd1234", 9)
    os.rename(checkpoint(folder / "checkpoints" / "x", 50), folder / "checkpoints" / ".step-50.tmp-1234")
    (folder / "checkpoints" / "step-60").mkdir()
    assert latest(folder) == folder / "checkpoints" / "step-9"


def test_a_link_to_the_newest_run_is_followed() -> None:
    folder = run("outputs/2026-01-01/10-00-00-a", "abcd1234", 9)
    link = Path("outputs/latest-run")
    link.symlink_to(folder.relative_to("outputs"))
    for spec in ("outputs/latest-run", "outputs/latest-run/checkpoints/step-9"):
        assert resolve(spec) == (folder / "checkpoints" / "step-9").resolve()


def test_a_link_to_the_newest_run_names_the_run_it_pointed_at_when_it_was_read() -> None:
    """The run that loads it becomes the newest one before it reads the weights."""
    folder, link = run("outputs/2026-01-01/10-00-00-a", "abcd1234", 9), Path("outputs/latest-run")
    link.symlink_to(folder.relative_to("outputs"))
    found = resolve("outputs/latest-run")
    link.unlink()
    link.symlink_to(run("outputs/2026-01-01/11-00-00-b", "abcd1235", 1).relative_to("outputs"))
    assert native.is_checkpoint(found)
    assert found.name == "step-9"


@pytest.mark.parametrize("spec", ["maze2d_medium_x", "pretrained/maze2d_medium_x"])
def test_a_shipped_checkpoint_is_found_by_its_name_with_and_without_the_folder(spec: str) -> None:
    checkpoint("pretrained/maze2d_medium_x")
    assert resolve(spec) == Path("pretrained/maze2d_medium_x")
    assert shipped() == ["maze2d_medium_x"]


def test_shipped_checkpoints_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint("checkout/pretrained/maze2d_medium_x")
    places = [Path("pretrained"), tmp_path / "checkout" / "pretrained"]
    monkeypatch.setattr(MODULE, "shipped_places", lambda: places)
    for spec in ("maze2d_medium_x", "pretrained/maze2d_medium_x"):
        assert resolve(spec) == tmp_path / "checkout" / "pretrained" / "maze2d_medium_x"


def test_a_missing_path_says_which_file_and_how_to_get_or_train_one() -> None:
    checkpoint("pretrained/maze2d_medium_x")
    message = message_of("outputs/minecraft.ckpt")
    for part in ("outputs/minecraft.ckpt", "put a downloaded checkpoint at that path", "train one", "maze2d_medium_x"):
        assert part in message


def test_a_mistyped_name_or_id_says_the_nearest() -> None:
    checkpoint("pretrained/maze2d_medium_x")
    run("outputs/2026-01-01/10-00-00-a", "abcd1234", 9)
    assert "did you mean 'maze2d_medium_x'?" in message_of("maze2d_medum_x")
    assert "did you mean 'maze2d_medium_x'?" in message_of("pretrained/maze2d_medum_x")
    assert "did you mean 'abcd1234'?" in message_of("abcd1243")


def test_a_run_without_checkpoints_is_named() -> None:
    folder = run("outputs/2026-01-01/10-00-00-a", "abcd1234")
    ended = f"run abcd1234 ({folder}) has no checkpoint: it ended before its first one"
    assert message_of("abcd1234") == message_of(str(folder)) == ended
    file = folder / "run.json"
    for tasks, source, trained in (
        (["validation", "test"], "maze2d_medium_goal", False),
        (["validation", "test"], None, False),
        (["training"], "maze2d_medium_goal", True),
    ):
        file.write_text(json.dumps({"id": "abcd1234", "tasks": tasks, "load": source}))
        message = message_of("abcd1234")
        assert ("it trained nothing (tasks: validation, test)" in message) != trained
        assert ("load=maze2d_medium_goal" in message) == (source is not None and not trained)
    for damaged in ({"tasks": 3, "load": 3}, {"tasks": [3]}, {"tasks": ["test"], "load": [3]}):
        file.write_text(json.dumps({"id": "abcd1234", **damaged}))
        assert message_of("abcd1234").startswith(f"run abcd1234 ({folder}) has no checkpoint: it ")
    Path("link").symlink_to(folder)
    assert message_of("link").startswith(f"link: run abcd1234 ({folder.resolve()}) has no checkpoint")
    Path("empty").mkdir()
    assert message_of("empty") == "empty is neither a checkpoint nor a run's folder"


def test_broken_run_files_are_passed_over() -> None:
    run("outputs/2026-01-01/10-00-00-a", "abcd1234", 9)
    other = run("outputs/2026-01-02/10-00-00-a", "zzzz", 9)
    (other / "run.json").write_text("{")
    assert resolve("abcd1234", Path("outputs")).name == "step-9"
