"""The RNN line against what the released code was recorded to do: transitions, losses, DDIM rows and whole rollouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import RecurrentDiffusionOptions, RecurrentMLPOptions
from diffusion_forcing.algorithms.planning.algorithm import Draws
from diffusion_forcing.algorithms.planning.recurrent import RecurrentPlanning, RecurrentPlanningOptions
from diffusion_forcing.diffusion import DiffusionForcing, build_parameterization, build_schedule
from diffusion_forcing.networks.recurrent import Latent, Recurrent, recurrent_mlp, recurrent_unet
from tests.parity.recorded import DATA, Recording, flip, norm, recording
from tests.parity.released_rollout import ddim_row, released_rollout

PREFIX = "transition_model."
NETWORK = ("transition_model.model.", "transition_model.x_from_z.", "init_z")
RELEASED: dict[str, Any] = json.loads((DATA / "keys_rnn.json").read_text())
FULL_SIZE: dict[str, tuple[Callable[[], Recurrent], tuple[str, ...]]] = {
    "paper/video_dmlab": (
        lambda: recurrent_unet(12, (16, 64, 64), network_size=48, num_gru_layers=0, learnable_init_z=True),
        (),
    ),
    "paper/video_minecraft": (
        lambda: recurrent_unet(24, (32, 128, 128), network_size=64, learnable_init_z=True),
        (),
    ),
    "paper/robot_swap": (lambda: recurrent_unet(21, (32, 32, 32), network_size=32, learnable_init_z=True), ()),
    "paper/maze2d_medium": (lambda: recurrent_mlp(60, 128, network_size=32, num_mlp_layers=4), ("init_encoder.",)),
    "paper/maze2d_medium_net16": (
        lambda: recurrent_mlp(60, 128, network_size=16, num_mlp_layers=4),
        ("init_encoder.",),
    ),
    "paper/maze2d_large": (lambda: recurrent_mlp(60, 128, network_size=32, num_mlp_layers=4), ("init_encoder.",)),
    "paper/ts_exchange": (
        lambda: recurrent_mlp(8, 1024, network_size=64, num_gru_layers=4, num_mlp_layers=1),
        ("embed.",),
    ),
}


def names(kind: str) -> list[str]:
    """The recordings of a kind."""
    found = []
    for path in sorted(DATA.glob("rnn_*.safetensors")):
        if recording(path.stem).meta["kind"] == kind:
            found.append(path.stem)
    assert found
    return found


@cache
def weights(files: tuple[str, ...]) -> dict[str, Tensor]:
    """The network's weights out of recorded module states, the later files adding to the earlier."""
    merged: dict[str, Tensor] = {}
    for file in files:
        merged |= recording(Path(file).stem).tensors
    return {key.removeprefix(PREFIX): value.float() for key, value in merged.items() if key.startswith(NETWORK)}


def network(config: dict[str, Any], *, x_dim: int | None = None) -> Recurrent:
    diffusion, z_shape = config["diffusion"], config["z_shape"]
    if len(z_shape) == 3:
        return recurrent_unet(
            config["x_shape"][0] * config["frame_stack"],
            tuple(z_shape),
            network_size=diffusion["network_size"],
            num_gru_layers=diffusion["num_gru_layers"],
            external_cond_dim=config["external_cond_dim"],
            learnable_init_z=config["learnable_init_z"],
        )
    return recurrent_mlp(
        x_dim or config["x_shape"][0],
        z_shape[0],
        network_size=diffusion["network_size"],
        num_gru_layers=diffusion["num_gru_layers"],
        num_mlp_layers=diffusion["num_mlp_layers"],
        external_cond_dim=config["external_cond_dim"],
    )


def forcing(recorded: Recording, **changes: Any) -> DiffusionForcing:
    config = recorded.meta["config"]
    diffusion = {**config["diffusion"], **changes}
    net = network(config)
    files = recorded.meta["weights"]
    net.load_state_dict(weights((files,) if isinstance(files, str) else tuple(files)))
    return over(net, diffusion, config["frame_stack"])


def over(net: nn.Module, diffusion: dict[str, Any], frame_stack: int) -> DiffusionForcing:
    options = RecurrentDiffusionOptions(use_snr=diffusion["use_snr"], use_cum_snr=diffusion["use_cum_snr"])
    return DiffusionForcing(
        net,
        build_schedule(diffusion["beta_schedule"], diffusion["timesteps"], snr_clip=diffusion["snr_clip"]),
        build_parameterization(diffusion["objective"], clip_noise=diffusion["clip_noise"]),
        weighting=options.weighting,
        cum_snr_decay=diffusion["cum_snr_decay"] ** frame_stack,
        clip_noise=diffusion["clip_noise"],
        stabilization_level=1,
    )


def in_order(recorded: Recording, prefix: str) -> list[Tensor]:
    """`prefix`0, `prefix`1, …: tensors numbered in the order they were drawn."""
    found = {name: int(name.removeprefix(prefix)) for name in recorded.tensors if name.startswith(prefix)}
    return [recorded[name] for name in sorted(found, key=found.__getitem__)]


class Tokens:
    """A recorded batch as normalised tokens (b, t, *c), and back."""

    def __init__(self, recorded: Recording) -> None:
        config = recorded.meta["config"]
        self.mean, self.std = torch.tensor(config["data_mean"]), torch.tensor(config["data_std"])
        data = recorded["video"] if "video" in recorded else recorded["xs"]
        self.shape, f = data.shape, config["frame_stack"]
        frames = (data - self.mean) / self.std
        self.x = frames if data.ndim == 3 else frames.unflatten(1, (-1, f)).flatten(2, 3)

    def frames(self, x: Tensor) -> Tensor:
        """Tokens as frames (t, b, …), as recorded."""
        return flip(x.reshape(self.shape) * self.std + self.mean)


def conditions(recorded: Recording) -> Tensor | None:
    """As released: the first token is not told its own."""
    if "cond" not in recorded:
        return None
    return torch.cat([torch.zeros_like(recorded["cond"][:, :1]), recorded["cond"][:, 1:]], dim=1)


@pytest.mark.parametrize("name", sorted(FULL_SIZE))
def test_full_size_networks_have_the_released_parameters_in_the_released_order(name: str) -> None:
    build, beside = FULL_SIZE[name]
    with torch.device("meta"):
        net = build()
    released = {
        key.removeprefix(PREFIX): tuple(shape) for key, shape in RELEASED[name]["keys"] if key.startswith(NETWORK)
    }
    assert [(key, tuple(value.shape)) for key, value in net.state_dict().items()] == list(released.items())
    elsewhere = sum(
        torch.Size(shape).numel() for key, shape in RELEASED[name]["keys"] if key.startswith(("-", *beside))
    )
    assert sum(p.numel() for p in net.parameters()) + elsewhere == RELEASED[name]["n_params"]


@pytest.mark.parametrize("name", names("rnn_predictions"))
def test_one_transition(name: str) -> None:
    r = recording(name)
    told = r["external_cond"][:, None] if "external_cond" in r else None
    with torch.no_grad():
        prediction, latent = forcing(r)(r["x"][:, None], r["t"][:, None], told, Latent(r["z"], 1))
    r.agrees(prediction.x0[:, 0], "pred_x_start")
    r.agrees(latent.z, "pred_z")
    if "model_out" in r:
        r.agrees(prediction.output[:, 0], "model_out")


@pytest.mark.parametrize("switches", ["snr0_cum0", "snr1_cum0", "snr0_cum1", "snr1_cum1"])
@pytest.mark.parametrize("objective", ["pred_x0", "pred_v", "pred_noise"])
def test_three_chained_losses_under_every_switch(objective: str, switches: str) -> None:
    r = recording("rnn_mlp_main_forward")
    method = forcing(
        r,
        objective=objective,
        beta_schedule="sigmoid" if objective == "pred_v" else "linear",
        clip_noise=1.5,
        use_snr=switches[3] == "1",
        use_cum_snr=switches[-1] == "1",
    )
    x = torch.stack([r["x"], r["x2"], r["x2"]], dim=1)
    k = torch.stack([r["t1"], r["t2"], torch.full_like(r["t1"], 250)], dim=1)
    noise = torch.stack([r[f"noise{i}_raw"] for i in (1, 2, 3)], dim=1)
    told = r["external_cond"][:, None].expand(-1, 3, -1)
    begin = Latent(r["z"], 0)
    method.network.begin = lambda batch, like: begin  # type: ignore[operator, assignment]
    with torch.no_grad():
        result = method.loss(x, k, noise=noise, conditions=told)
    for token in range(3):
        r.agrees(
            result.per_element[:, token],
            f"{objective}/{switches}/loss{token + 1}",
            known_error="none",
        )
    r.agrees(result.x0[:, 2], f"{objective}/{switches}/x_pred3")


@pytest.mark.parametrize("name", names("rnn_training"))
def test_a_training_step(name: str) -> None:
    r = recording(name)
    config, tokens, method = r.meta["config"], Tokens(r), forcing(r)
    drawn, rolls = iter(in_order(r, "t.")), iter(r.meta.get("python_random", []))

    def given(token: int) -> bool:
        if "python_random" not in r.meta:
            return False
        return next(rolls) <= config["gt_cond_prob"] or (token == 0 and next(rolls) <= config["gt_first_frame"])

    batch, time = tokens.x.shape[:2]
    k = torch.stack([torch.zeros(batch).long() if given(t) else next(drawn) for t in range(time)], dim=1)
    noise = torch.stack(in_order(r, "noise_raw."), dim=1)
    result = method.loss(tokens.x, k, noise=noise, conditions=conditions(r))
    mask = r["nonterminals"].float()
    loss = (result.per_element.reshape(*mask.shape, -1) * mask[..., None]).mean()
    loss.backward()
    r.agrees(loss, "loss")
    r.agrees(tokens.frames(result.x0), "xs_pred")
    r.agrees(norm([p.grad for p in method.network.parameters() if p.grad is not None]), "grad_norm")
    if "init_z_grad_norm" in r:
        r.agrees(method.network.init_z.grad.norm(), "init_z_grad_norm")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", names("rnn_ddim_step"))
def test_ddim_rows(name: str) -> None:
    r = recording(name)
    method = forcing(r)
    for index in r.meta["indices"]:
        noise = r[f"{index}.noise_raw"][:, None] if f"{index}.noise_raw" in r else None
        with torch.no_grad():
            x, latent = ddim_row(
                method,
                r["x"][:, None],
                index,
                sampling_timesteps=r.meta["sampling_timesteps"],
                eta=r.meta["eta"],
                conditions=r["external_cond"][:, None] if "external_cond" in r else None,
                memory=Latent(r["z"], 1),
                noise=noise,
            )
        r.agrees(x[:, 0], f"{index}.x")
        r.agrees(latent.z, f"{index}.z")


def test_the_whole_loop_for_one_token() -> None:
    r = recording("rnn_mlp_main_rollout_ddim")
    method, diffusion = forcing(r), r.meta["config"]["diffusion"]
    x, noises, steps = r["init_noise_raw"][:, None], in_order(r, "noise_raw."), diffusion["sampling_timesteps"]
    with torch.no_grad():
        for index in range(steps):
            x, latent = ddim_row(
                method,
                x,
                index,
                sampling_timesteps=steps,
                eta=diffusion["ddim_sampling_eta"],
                conditions=r["external_cond"][:, None],
                memory=Latent(r["z_in"], 1),
                noise=noises[index][:, None] if index < steps - 1 else None,
            )
    r.agrees(x[:, 0], "x")
    r.agrees(latent.z, "z")


@pytest.mark.parametrize("name", names("rnn_rollout"))
def test_rollouts(name: str) -> None:
    r = recording(name)
    config, tokens = r.meta["config"], Tokens(r)
    context = config["context_frames"] // config["frame_stack"]
    with torch.no_grad():
        x, indices = released_rollout(
            forcing(r),
            tokens.x[:, :context],
            tokens.x.shape[1],
            sampling_timesteps=config["diffusion"]["sampling_timesteps"],
            chunk_size=config["chunk_size"],
            uncertainty_scale=config["uncertainty_scale"],
            eta=config["diffusion"]["ddim_sampling_eta"],
            conditions=r.tensors.get("cond"),
            chunk_noise=in_order(r, "chunk_noise_raw."),
            noise=in_order(r, "noise_like_raw."),
        )
    assert indices == r["ddim_indices"].tolist()
    r.agrees(tokens.frames(x), "xs_pred")
    mask = r["nonterminals"].float()
    error = ((x - tokens.x) ** 2).reshape(*mask.shape, -1)
    r.agrees((error * mask[..., None]).mean(), "loss")


def maze_planning(r: Recording) -> RecurrentPlanning:
    """The planner of a recorded maze configuration, with its weights."""
    config = r.meta["config"]
    known = {field.name for field in fields(RecurrentMLPOptions)}
    diffusion = {key: value for key, value in config["diffusion"].items() if key in known}
    statistics = {
        f"{kind}_{what}": tuple(config[f"{kind}_{what}"])
        for kind in ("observation", "action")
        for what in ("mean", "std")
    }
    same = ("episode_len", "frame_stack", "open_loop_horizon", "context_frames", "ddim_repeats")
    planning = RecurrentPlanning(
        RecurrentPlanningOptions(
            **statistics,
            **{key: config[key] for key in same},
            z_shape=tuple(config["z_shape"]),
            diffusion=RecurrentMLPOptions(**diffusion),
        )
    )
    state = {key.removeprefix(PREFIX): value for key, value in r.below("w.").items()}
    planning.network.load_state_dict({key: state[key] for key in planning.network.state_dict()})
    return planning


def test_a_training_step_in_the_maze() -> None:
    r = recording("rnn_maze_medium_training_step")
    planning = maze_planning(r)
    # the released windows end a step earlier: what would follow their last step is zeros, and counts for nothing
    after = [
        torch.cat([r[key], torch.zeros_like(r[key][:, :1])], dim=1) for key in ("observations", "actions", "rewards")
    ]
    tokens, mask = planning.bundle.encode(*after, r["nonterminals"])
    r.agrees(flip(tokens[:, 1:]), "preprocess_bundles")
    assert torch.equal(flip(mask[:, planning.bundle.frame_stack :]).long(), r["preprocess_masks"])
    r.agrees(planning.network.starting(planning.bundle.unstack(tokens[:, :1])[:, -1, :4]).z, "init_z")
    levels, noise = (torch.stack(in_order(r, key), dim=1) for key in ("t.", "noise_raw."))
    loss, _ = planning.loss(tokens, mask, Draws(None, levels, None, noise))
    loss.backward()
    r.agrees(loss, "loss")
    r.agrees(norm([p.grad for p in planning.network.parameters()]), "grad_norm")  # type: ignore[misc]
