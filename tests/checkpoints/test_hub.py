"""Checkpoints on the Hugging Face Hub, through its real client against a stand-in on this machine."""

from __future__ import annotations

import json
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion_forcing.algorithms.planning.algorithm import Planning
from diffusion_forcing.checkpoints import load, places, resolve, save
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import write_json
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.run import plan
from diffusion_forcing.tracking.run import results
from tests.algorithms.small import planning
from tests.checkpoints.hub_server import TOKEN, HubServer
from tests.docs.blocks import ROOT, blocks

pytest.importorskip("huggingface_hub")


def forget_client(patch: pytest.MonkeyPatch) -> None:
    """The client reads its environment when it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        patch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        forget_client(patch)
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield server
        forget_client(patch)


def message_of(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(spec)
    assert "\n" not in str(caught.value)
    assert spec in str(caught.value)
    return str(caught.value)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------- there and back


def test_a_model_that_was_pushed_is_loaded_again_with_its_weights_and_options(server: HubServer) -> None:
    ours = planning("xva", guidance_scale=1.5)
    ours._sampling = {"algorithm": {"guidance_scale": 1.5}}
    assert ours.push_to_hub("me/planner", card="# A planner\n\nOf nothing.\n") == "hf://me/planner"
    theirs = Planning.from_pretrained("hf://me/planner")
    assert theirs.options.guidance_scale == 1.5
    assert theirs.options.observation_mean == ours.options.observation_mean
    assert theirs.options.diffusion.architecture == ours.options.diffusion.architecture
    assert not theirs.training
    for key, value in ours.sampling_weights().items():
        assert torch.equal(theirs.network.state_dict()[key], value)


def test_what_is_uploaded_is_weights_metadata_and_a_card_with_front_matter(server: HubServer, tmp_path: Path) -> None:
    planning().push_to_hub("me/card", card="# Mine\n\nText.\n", license="apache-2.0", private=True)
    assert "me/card" in server.private
    files = server.repositories["me/card"]["main"]
    assert set(files) == {"checkpoint.json", "model.safetensors", "README.md"}
    _, front, body = files["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "diffusion-forcing"
    assert data["license"] == "apache-2.0"
    assert data["tags"] == ["diffusion-forcing", "planning", "maze2d-medium-v1"]
    assert data["pipeline_tag"] == "reinforcement-learning"
    assert body.strip().startswith("# Mine\n\nText.")
    assert "load=hf://me/card" in body
    assert server.cards[-1] == files["README.md"].decode()  # the client had it checked


def test_a_run_s_checkpoint_is_pushed_and_loaded_by_command(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"w": torch.arange(3, dtype=torch.float16)}
    path = save(tmp_path / "step-1", {"global_step": 7}, metadata={"task": "planning"}, model=weights)
    assert (path / "training.pt").exists()
    assert main(["push", str(path), "hf://me/run/of/mine", "--private"]) == 0
    assert "load=hf://me/run/of/mine" in capsys.readouterr().out
    files = server.repositories["me/run"]["main"]
    assert set(files) == {f"of/mine/{name}" for name in ("checkpoint.json", "model.safetensors", "README.md")}
    found = load(resolve("hf://me/run/of/mine"))
    assert found.step == 7
    assert torch.equal(found.weights["w"], weights["w"])
    assert found.weights["w"].dtype == torch.float16
    assert main(["inspect", "hf://me/run/of/mine"]) == 0
    assert "step 7" in capsys.readouterr().out


def test_the_scores_of_a_run_become_the_card_s_model_index(server: HubServer, tmp_path: Path) -> None:
    import huggingface_hub

    run = tmp_path / "run"
    checkpoint = save(run / "checkpoints" / "step-1", None, metadata={"task": "planning"}, model={"w": torch.ones(1)})
    facts = {
        "task": "planning",
        "tasks": ["test"],
        "dataset": {"name": "maze2d_medium", "id": "maze2d-medium-v1"},
        "seed": 3,
    }
    metrics = {"planning/success_rate": 1.0, "planning/success_rate_stderr": 0.0, "planning/episodes": 8}
    metrics |= {"planning/oracle_success_rate": 1.0, "planning/seconds_per_plan": 0.1, "planning/first_reach": None}
    write_json(run / "results.json", results({"command": ["main.py", "a=b c"]}, facts, metrics))
    assert main(["push", str(checkpoint), "hf://me/scored"]) == 0
    planning().push_to_hub("me/scored/again", results=run)
    for name in ("README.md", "again/README.md"):
        text = server.repositories["me/scored"]["main"][name].decode()
        (score,) = huggingface_hub.ModelCard(text).data.eval_results
        assert (score.task_type, score.dataset_type, score.dataset_name, score.dataset_split) == (
            "reinforcement-learning",
            "maze2d_medium",
            "maze2d-medium-v1",
            "test",
        )
        assert score.dataset_args == {"command": "python -m main 'a=b c'", "seed": 3, "planning/episodes": 8}
        assert (score.metric_name, score.metric_value) == ("planning/success_rate", 1.0)
        assert score.metric_args["interval_95"] == pytest.approx([0.6756, 1], abs=1e-4)
        assert text.split("---\n")[2].strip().startswith("# ")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "diffusion-forcing/results", "format_version": 1}'])
def test_a_file_that_is_no_results_json_is_one_line(server: HubServer, tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError) as caught:
        planning().push_to_hub("me/none", results=tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value) and "\n" not in str(caught.value)
    assert "me/none" not in server.repositories


def test_a_branch_a_commit_and_what_was_committed_later_are_told_apart(server: HubServer, tmp_path: Path) -> None:
    commits = []
    for step in (1, 2):
        save(tmp_path / f"{step}", None, metadata={}, model={"w": torch.full((2,), step)}, step=step)
        commits.append(server.put("me/steps", files_of(tmp_path / f"{step}")))
        assert load(resolve("hf://me/steps")).step == step
    server.put("me/steps", files_of(tmp_path / "1"), "refs/pr/1")
    assert [load(resolve(f"hf://me/steps@{commit}")).step for commit in commits] == [1, 2]
    assert load(resolve("hf://me/steps@main")).step == 2
    assert load(resolve("hf://me/steps@refs%2Fpr%2F1")).step == 1


def test_without_a_network_what_was_downloaded_is_found(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("me/kept", files_of(save(tmp_path / "c", None, metadata={}, model={"w": torch.ones(1)}, step=5)))
    assert load(resolve("hf://me/kept")).step == 5
    with socket.socket() as free:  # a port where nothing listens
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    forget_client(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", nowhere)
    assert load(resolve("hf://me/kept")).step == 5
    assert "check the network" in message_of("hf://me/other")
    forget_client(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load(resolve("hf://me/kept")).step == 5
    forget_client(monkeypatch)


def test_the_guide_s_own_lines_do_what_they_say(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    planning()
    run = tmp_path / "outputs" / "latest-run"
    save(run / "checkpoints" / "step-1", None, metadata=planning().describe(), model=planning().sampling_weights())
    page = ROOT / "docs" / "checkpoints.md"
    code, lines = (block.text for block in blocks(page) if "hf://" in block.text)
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.equal(*(next(names[name].network.parameters()) for name in ("planning", "again")))
    words = [shlex.split(line.removeprefix("diffusion-forcing ")) for line in lines.splitlines()]
    assert main(words[0]) == main(words[1]) == 0
    assert "planning" in capsys.readouterr().out
    assert words[2][:3] == ["python", "-m", "main"]
    assert plan(words[2][3:]).checkpoint == resolve("hf://user/my-planner")


# --------------------------------------------------------------------------------------------------------------- refusals


def test_only_the_files_of_our_format_are_downloaded(server: HubServer, tmp_path: Path) -> None:
    files = files_of(save(tmp_path / "c", {"global_step": 1}, metadata={}, model={"w": torch.ones(1)}))
    server.put("me/more", {**files, "setup.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"})
    server.asked.clear()
    folder = resolve("hf://me/more")
    assert {file.name for file in folder.iterdir()} == {"checkpoint.json", "model.safetensors"}
    assert set(server.asked) == {"checkpoint.json", "model.safetensors"}


def test_a_place_that_cannot_be_loaded_is_one_line_that_says_why(server: HubServer, tmp_path: Path) -> None:
    server.put("me/foreign", {"config.json": b"{}", "model.safetensors": b""})
    server.put("me/other", {"checkpoint.json": b'{"format": "theirs"}'})
    server.put("me/gated", {"checkpoint.json": b"{}"})
    server.gated.add("me/gated")
    assert "does not exist, or is private" in message_of("hf://me/nothing")
    assert "accept its terms" in message_of("hf://me/gated")
    assert "has no revision 'v9'" in message_of("hf://me/foreign@v9")
    assert "holds no checkpoint" in message_of("hf://me/foreign")
    assert "holds no checkpoint" in message_of("hf://me/foreign/folder")
    with pytest.raises(UserError, match="was not written by this project"):
        resolve("hf://me/other")


def test_a_file_above_the_limit_is_not_downloaded(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("me/large", files_of(save(tmp_path / "c", None, metadata={}, model={"w": torch.ones(9)})))
    server.asked.clear()
    monkeypatch.setenv("DIFFUSION_FORCING_MAX_ARRAY_BYTES", "50")
    assert "DIFFUSION_FORCING_MAX_ARRAY_BYTES" in message_of("hf://me/large")
    assert server.asked == ["checkpoint.json"]


def test_a_damaged_model_is_refused(server: HubServer, tmp_path: Path) -> None:
    files = files_of(save(tmp_path / "c", None, metadata={}, model={"w": torch.ones(4)}))
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"\1"
    server.put("me/damaged", files)
    with pytest.raises(UserError, match="cannot be read: it has another sha256"):
        load(resolve("hf://me/damaged"))


@pytest.mark.parametrize(
    "spec", ["hf://", "hf://me", "hf://me/a/../b", "hf://me/a//b", "hf://me/a b", "hf://me/a@", "hf://../a"]
)
def test_what_names_no_repository_is_refused_before_the_network_is_asked(spec: str) -> None:
    assert "hf://user/repo" in message_of(spec)


def test_without_a_token_that_may_write_nothing_is_pushed(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="hf auth login") as caught:
        planning().push_to_hub("me/refused")
    assert "\n" not in str(caught.value)
    assert "me/refused" not in server.repositories


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"diffusion-forcing\[hub\]"):
        resolve("hf://me/planner")


@pytest.mark.parametrize("words", [["push"], ["push", "maze2d_medium_x"], ["push", "maze2d_medium_x", "here"]])
def test_push_says_what_it_takes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "hf://user/repo" in capsys.readouterr().err


def test_a_card_that_has_a_front_matter_is_left_as_it_is() -> None:
    text = "---\nlicense: mit\n---\n# Mine\n"
    assert places.model_card(text, {}, place=places.place_of("me/a")) == text


def test_front_matter_of_any_task_is_yaml() -> None:
    for task in [*places.PIPELINES, "something: new"]:
        card = places.model_card(None, {"task": task, "env_id": "a: b"}, place=places.place_of("me/a"))
        assert yaml.safe_load(card.split("---\n")[1])["tags"] == ["diffusion-forcing", task, "a: b"]


def test_metadata_that_names_hostile_sizes_builds_no_network(server: HubServer) -> None:
    planning().push_to_hub("me/hostile")
    files = dict(server.repositories["me/hostile"]["main"])
    header = json.loads(files["checkpoint.json"])
    sizes = header["facts"]["structure"]["algorithm"]["diffusion"]["architecture"]
    for width in (2**40, 8192):
        sizes["network_size"] = width
        server.put("me/hostile", {"checkpoint.json": json.dumps(header).encode()})
        with pytest.raises(UserError, match=r"SIZE|does not hold the network"):
            Planning.from_pretrained("hf://me/hostile")
