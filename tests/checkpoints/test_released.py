import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion_forcing.checkpoints import load
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.recurrent import recurrent_mlp
from diffusion_forcing.released.importer import video_metadata
from diffusion_forcing.released.options import check_released

RELEASED = Path(__file__).parents[1] / "parity" / "data" / "ckpt_planning.ckpt"
PREFIX = "diffusion_model.model."


def content() -> dict[str, Any]:
    return torch.load(RELEASED, weights_only=True)


def written(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def message_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_a_released_planner_gives_the_network_its_statistics_and_its_schedule() -> None:
    state = content()["state_dict"]
    found = load(RELEASED)
    assert (found.kind, found.step, found.training) == ("released", 3, None)
    assert {PREFIX + key for key in found.weights} == {key for key in state if key.startswith(PREFIX)}
    assert all(torch.equal(value, state[PREFIX + key]) for key, value in found.weights.items())
    assert torch.equal(found.statistics["data_mean"], state["data_mean"])
    assert torch.equal(found.statistics["data_std"], state["data_std"])
    assert torch.equal(found.buffers["betas"], state["diffusion_model.betas"])
    assert len(found.buffers) == 14


def test_sizes_are_read_off_the_tensors() -> None:
    assert load(RELEASED).metadata == {
        "task": "planning",
        "line": "v1.5",
        "x_dim": 20,
        "features": 2,
        "frame_stack": 10,
        "external_cond_dim": 0,
        "timesteps": 1000,
        "architecture": {"network_size": 32, "num_layers": 3, "dim_feedforward": 64},
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("diffusion_model.", "_orig_mod.diffusion_model."),
        ("diffusion_model.model.", "diffusion_model._orig_mod.model."),
        ("diffusion_model.model.", "diffusion_model.model._orig_mod."),
    ],
)
def test_a_compiled_models_prefix_is_dropped_wherever_it_is(tmp_path: Path, old: str, new: str) -> None:
    state = {key.replace(old, new, 1): value for key, value in content()["state_dict"].items()}
    found = load(written(tmp_path / "compiled.ckpt", {"state_dict": state}))
    assert found.weights.keys() == load(RELEASED).weights.keys()
    assert found.buffers.keys() == load(RELEASED).buffers.keys()


def test_a_bare_state_dict_and_the_old_file_format_are_read(tmp_path: Path) -> None:
    torch.save(OrderedDict(content()["state_dict"]), tmp_path / "bare.ckpt", _use_new_zipfile_serialization=False)
    assert load(tmp_path / "bare.ckpt").metadata == load(RELEASED).metadata


VIDEO = RELEASED.with_name("ckpt_video.ckpt")


def test_a_released_video_model_gives_the_network_its_statistics_and_its_schedule() -> None:
    state = torch.load(VIDEO, weights_only=True)["state_dict"]
    found = load(VIDEO)
    assert (found.kind, found.step, found.training) == ("released", 3, None)
    assert torch.equal(found.weights["init_conv.weight"], state[f"{PREFIX}module.init_conv.weight"])
    there = f"{PREFIX}module.init_temporal_attn.wrapper.module.attn_block.attn.to_qkv.weight"
    assert torch.equal(found.weights["init_temporal_attn.attn.to_qkv.weight"], state[there])
    assert not [key for key in found.weights if "freqs" in key or "module" in key]
    assert found.statistics["data_mean"].item() == 0.5
    assert torch.equal(found.buffers["betas"], state["diffusion_model.betas"])


def test_the_sizes_of_a_video_model_are_read_off_the_tensors() -> None:
    facts = load(VIDEO).metadata
    power = facts.pop("signal_power")
    assert power == sorted(power, reverse=True)
    assert facts == {
        "task": "video",
        "line": "v1.5",
        "channels": 3,
        "frame_stack": 1,
        "halvings": [0, 1],
        "attention_width": 16,
        "timesteps": 1000,
        "architecture": {
            "network_size": 8,
            "dim_mults": [1, 2],
            "attn_heads": 2,
            "attn_dim_head": 8,
            "use_init_temporal_attn": True,
            "time_emb_type": "rotary",
        },
    }


def test_the_networks_of_a_video_models_metrics_are_left_out(tmp_path: Path) -> None:
    state = torch.load(VIDEO, weights_only=True)["state_dict"]
    extra = {f"validation_{name}_model.layer.weight": torch.zeros(2) for name in ("fid", "lpips", "fvd")}
    found = load(written(tmp_path / "minecraft.ckpt", {"state_dict": extra | state, "MixedPrecision": {"scale": 1.0}}))
    assert found.weights.keys() == load(VIDEO).weights.keys()
    assert found.metadata == load(VIDEO).metadata


@pytest.mark.parametrize(
    ("old", "new"),
    [("diffusion_model.", "_orig_mod.diffusion_model."), (f"{PREFIX}module.", f"{PREFIX}_orig_mod.module.")],
)
def test_a_compiled_video_models_prefix_is_dropped(tmp_path: Path, old: str, new: str) -> None:
    state = torch.load(VIDEO, weights_only=True)["state_dict"]
    compiled = {key.replace(old, new, 1): value for key, value in state.items()}
    assert load(written(tmp_path / "compiled.ckpt", {"state_dict": compiled})).metadata == load(VIDEO).metadata


def test_the_stacked_frames_of_a_video_model_follow_from_its_mean(tmp_path: Path) -> None:
    state = torch.load(VIDEO, weights_only=True)["state_dict"]
    state[f"{PREFIX}module.init_conv.weight"] = torch.zeros(8, 6, 1, 7, 7)
    assert load(written(tmp_path / "stacked.ckpt", {"state_dict": state})).metadata["frame_stack"] == 2
    state["data_mean"] = state["data_std"] = torch.full((2, 1, 1), 0.5)
    assert load(written(tmp_path / "stacked.ckpt", {"state_dict": state})).metadata["frame_stack"] == 3


def test_other_sizes_of_a_video_model_are_read_too() -> None:
    weights = {name: load_file(RELEASED.parent / f"video_{name}_weights.safetensors") for name in ("u2", "u3")}
    facts = {name: video_metadata(*split(state)) for name, state in weights.items()}
    assert facts["u2"]["architecture"]["time_emb_type"] == "sinusoidal"
    assert facts["u2"]["attention_width"] == 16
    assert "attn_heads" not in facts["u2"]["architecture"]  # only their product leaves a trace
    assert facts["u3"]["architecture"]["use_init_temporal_attn"] is False
    assert facts["u3"]["architecture"]["attn_heads"] == 3
    assert (facts["u3"]["halvings"], facts["u3"]["frame_stack"]) == ([1, 3], 2)


def split(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ...]:
    network = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    return network, {}, {"data_mean": state["data_mean"]}


@pytest.mark.parametrize("missing", ["init_conv.weight", "out.1.weight", "down_blocks.0.0.1.out_layers.2.weight"])
def test_a_video_model_with_a_missing_tensor_is_named_with_its_key(tmp_path: Path, missing: str) -> None:
    state = torch.load(VIDEO, weights_only=True)["state_dict"]
    del state[f"{PREFIX}module.{missing}"]
    assert f"'{missing}'" in message_of(written(tmp_path / "partial.ckpt", {"state_dict": state}))


@pytest.mark.parametrize(
    ("key", "mean", "task"),
    [
        ("init_encoder.0.weight", (6,), "planning"),
        ("transition_model.model.mlp_before_gru.mlp.0.weight", (8,), "prediction"),
        ("transition_model.model.init_conv.weight", (21, 4, 4), "robot"),
        ("transition_model.model.init_conv.weight", (), "video"),
    ],
)
def test_an_incomplete_checkpoint_of_the_rnn_line_is_named_with_its_task(
    tmp_path: Path, key: str, mean: tuple[int, ...], task: str
) -> None:
    state = {
        "data_mean": torch.zeros(mean),
        key: torch.zeros(2),
        "transition_model.model.time_mlp.3.weight": torch.zeros(2),
    }
    path = written(tmp_path / "paper.ckpt", {"state_dict": state})
    assert f"is an incomplete {task} checkpoint ('model.time_mlp.1.weight' is missing" in message_of(path)


@pytest.mark.parametrize(("cells", "conditions"), [(0, 0), (1, 0), (2, 5)])
def test_a_transition_without_mlp_layers_is_read_and_has_the_released_parameters(
    tmp_path: Path, cells: int, conditions: int
) -> None:
    network = recurrent_mlp(4, 8, network_size=4, num_gru_layers=cells, num_mlp_layers=0, external_cond_dim=conditions)
    state = {f"transition_model.{key}": value for key, value in network.state_dict().items()}
    state |= {"data_mean": torch.zeros(4), "data_std": torch.ones(4)}
    found = load(written(tmp_path / "paper.ckpt", {"state_dict": state}))
    told = {"task": "prediction", "x_dim": 4, "z_shape": [8], "external_cond_dim": conditions}
    assert told.items() <= found.metadata.items()
    assert (found.metadata["num_mlp_layers"], found.metadata["num_gru_layers"]) == (0, cells)
    check_released(found)
    network.load_state_dict(found.weights)


def test_somebody_elses_checkpoint_is_named_by_its_first_weight(tmp_path: Path) -> None:
    path = written(tmp_path / "resnet.ckpt", {"state_dict": {"conv1.weight": torch.zeros(1)}})
    assert "not a Diffusion Forcing checkpoint (its first weight is 'conv1.weight')" in message_of(path)


@pytest.mark.parametrize("value", [{}, {"state_dict": {}}, {"state_dict": [1]}, [1, 2], 3])
def test_a_file_without_weights_is_named(tmp_path: Path, value: Any) -> None:
    message_of(written(tmp_path / "empty.ckpt", value))


@pytest.mark.parametrize("missing", ["out.weight", "init_mlp.0.weight", "transformer.layers.0.linear1.weight"])
def test_a_planner_with_a_missing_tensor_is_named_with_its_key(tmp_path: Path, missing: str) -> None:
    state = content()["state_dict"]
    del state[PREFIX + missing]
    assert f"'{missing}'" in message_of(written(tmp_path / "partial.ckpt", {"state_dict": state}))


def test_a_planner_without_statistics_is_named(tmp_path: Path) -> None:
    state = content()["state_dict"]
    del state["data_mean"]
    assert "'data_mean'" in message_of(written(tmp_path / "partial.ckpt", {"state_dict": state}))


def test_a_text_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.ckpt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\n")
    assert "is not a checkpoint" in message_of(path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.ckpt").touch()
    assert "is empty" in message_of(tmp_path / "empty.ckpt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    data = RELEASED.read_bytes()
    path = tmp_path / "truncated.ckpt"
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in message_of(path)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_in_the_old_format_is_named(tmp_path: Path, share: float) -> None:
    torch.save(content()["state_dict"], tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.ckpt").read_bytes()
    path = tmp_path / "truncated.ckpt"
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in message_of(path)


class Runs:
    """Unpickling this writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    for number, zipped in enumerate([True, False]):
        path = tmp_path / f"code{number}.ckpt"
        torch.save(
            {"state_dict": content()["state_dict"], "x": Runs(trap)}, path, _use_new_zipfile_serialization=zipped
        )
        message = message_of(path)
        assert "may run code when opened" in message
        assert "torch.save(" in message  # the way out
    path = tmp_path / "bare.ckpt"
    path.write_bytes(pickle.dumps(Runs(trap)))
    message_of(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists(), "the trap itself does not work"


def test_another_kind_of_zip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photos.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    assert "is damaged or truncated" in message_of(path)


def test_a_file_cannot_be_resumed_from() -> None:
    with pytest.raises(UserError, match=r"cannot resume from .*single file"):
        load(RELEASED, training=True)


def test_no_message_repeats_what_torch_advises_about_unsafe_loading(tmp_path: Path) -> None:
    path = tmp_path / "numpy.ckpt"
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Runs(tmp_path / "x")}, buffer)
    path.write_bytes(buffer.getvalue())
    assert "weights_only" not in json.dumps(message_of(path))
