"""Every yaml of ours composes and builds, and every planning command people know composes as written."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import typing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.world_ablation import VARIANTS, words_of
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.choices import PACKAGE_FOLDER, choices_of, group_names
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.compose import compose, resolved
from diffusion_forcing.launch.run import Plan, plan

MEDIUM = (
    "experiment=exp_planning algorithm=df_planning dataset=maze2d_medium dataset.action_mean=[] dataset.action_std=[] "
    "dataset.observation_mean=[3.5092521,3.4765592] dataset.observation_std=[1.3371079,1.52102] "
)
LARGE = (
    "experiment=exp_planning algorithm=df_planning dataset=maze2d_large dataset.observation_mean=[3.7296331,5.3047247] "
    "dataset.observation_std=[1.8070312,2.5687592] dataset.action_mean=[] dataset.action_std=[] "
)
TRAINING = [MEDIUM + "+name=maze2d_medium_x", LARGE + "+name=maze2d_large_x"]
PLANNING = [
    MEDIUM + "load=outputs/maze2d_medium_x.ckpt experiment.tasks=[validation] algorithm.guidance_scale=3 "
    "+name=maze2d_medium_x_sampling",
    LARGE + "load=outputs/maze2d_large_x.ckpt experiment.tasks=[validation] algorithm.guidance_scale=2 "
    "+name=maze2d_large_x_sampling",
    "experiment=exp_planning algorithm=df_planning dataset=maze2d_medium dataset.observation_std=[2.67,3.04,8,8] "
    "dataset.action_std=[6,6] load=outputs/maze2d_medium_xva.ckpt experiment.tasks=[validation] algorithm.guidance_scale=2 "
    "algorithm.open_loop_horizon=10 +name=maze2d_medium_xva_sampling",
    "experiment=exp_planning algorithm=df_planning dataset=maze2d_large "
    "dataset.observation_std=[3.6140624,5.1375184,9.747382,10.5974788] dataset.action_mean=[] dataset.action_std=[] "
    "load=outputs/maze2d_large_xv.ckpt experiment.tasks=[validation] algorithm.guidance_scale=4 "
    "+name=maze2d_large_xv_sampling",
]
"""The commands of the released code, verbatim."""
MAZES = "experiment=exp_planning algorithm=df_planning dataset=maze2d_medium"
OF_MAZES = {("experiment", "exp_planning"), ("algorithm", "df_planning"), ("algorithm", "df_planning_small")}
DMLAB = (
    "+name=your_experiment_name algorithm=df_video dataset=video_dmlab algorithm.weight_decay=1e-3 "
    "algorithm.diffusion.architecture.network_size=48 algorithm.diffusion.architecture.attn_dim_head=32 "
    "algorithm.diffusion.architecture.attn_resolutions=[8,16,32,64] algorithm.diffusion.beta_schedule=cosine"
)
MINECRAFT = "+name=your_experiment_name algorithm=df_video dataset=video_minecraft"
VIDEO_TRAINING = [
    MINECRAFT,
    DMLAB,
    f"{MINECRAFT} algorithm.causal=False",
    f"{MINECRAFT} algorithm.scheduling_matrix=full_sequence algorithm.chunk_size=2",
]
PRETRAINED = "+name=sample_minecraft_pretrained load=outputs/minecraft.ckpt experiment.tasks=[validation]"
VIDEO = [PRETRAINED, f"{PRETRAINED} dataset.validation_multiplier=8"]
"""The commands of the released code, verbatim."""
RELEASED_VIDEO = Path(__file__).parents[1] / "parity" / "data" / "ckpt_video.ckpt"


def checked(command: str) -> Plan:
    return plan(shlex.split(command))


@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_people_know_builds_all_options(command: str) -> None:
    options = checked(command).options
    assert options["algorithm"].observation_mean == options["dataset"].observation_mean
    assert len(options["algorithm"].observation_mean) == 2
    assert options["algorithm"].action_mean == ()
    assert options["algorithm"].chunk_size == options["dataset"].episode_len
    assert options["experiment"].tasks == ("training",)


@pytest.mark.parametrize("command", PLANNING)
def test_a_planning_command_people_know_composes_once_its_checkpoint_is_there(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    file = Path(next(word.partition("=")[2] for word in words if word.startswith("load=")))
    file.parent.mkdir()
    file.touch()
    ready = plan(words)
    assert ready.checkpoint == file
    assert ready.options["experiment"].tasks == ("validation",)
    wanted = next(float(word.partition("=")[2]) for word in words if "guidance_scale" in word)
    assert ready.options["algorithm"].guidance_scale == wanted


@pytest.mark.parametrize("command", VIDEO_TRAINING)
def test_a_video_command_people_know_builds_all_options(command: str) -> None:
    options = checked(command).options
    algorithm, dataset = options["algorithm"], options["dataset"]
    assert algorithm.observation_shape == (3, dataset.resolution, dataset.resolution)
    assert (algorithm.n_frames, algorithm.context_frames) == (dataset.n_frames, dataset.context_length)
    assert (algorithm.frame_skip, algorithm.norm) == (2, "frame")
    assert algorithm.causal is ("causal=False" not in command)
    assert algorithm.cache_used == ("exact" if algorithm.causal else "none")
    assert algorithm.chunk_size == (2 if "chunk_size" in command else 1)
    assert (algorithm.diffusion.architecture.network_size == 48) is ("dmlab" in command)


@pytest.mark.parametrize("command", VIDEO)
def test_a_released_video_checkpoint_brings_what_its_tensors_say(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    shutil.copy(RELEASED_VIDEO, "outputs/minecraft.ckpt")
    ready = checked(command)
    options = ready.options["algorithm"]
    assert (options.norm, options.cache) == ("clip", "none")
    assert options.diffusion.architecture.network_size == 8
    assert options.diffusion.architecture.attn_resolutions == (64, 128)
    assert ready.options["dataset"].validation_multiplier == (8 if "multiplier" in command else 1)
    assert 'algorithm.norm="clip"' in ready.adopted
    with pytest.raises(UserError, match="cache=exact with norm=clip"):
        checked(f"{command} algorithm.cache=exact")


@pytest.mark.parametrize("command", [*PLANNING, *VIDEO])
def test_a_missing_checkpoint_is_named_with_how_to_get_or_train_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 2
    error = capsys.readouterr().err
    file = next(word.partition("=")[2] for word in shlex.split(command) if word.startswith("load="))
    assert file in error
    assert "train one" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "addition", ["cluster=null", "debug=True", "wandb.mode=online wandb.entity=me wandb.project=p"]
)
@pytest.mark.parametrize("command", [TRAINING[0], DMLAB])
def test_what_a_user_adds_to_a_command_works(addition: str, command: str) -> None:
    settings = checked(f"{command} {addition}").settings
    assert settings.debug is ("debug" in addition)
    assert settings.wandb.mode == ("online" if "wandb" in addition else None)


def test_debug_reaches_the_algorithm() -> None:
    assert checked(f"{TRAINING[0]} debug=True").options["algorithm"].debug
    assert checked(f"{DMLAB} debug=True").options["algorithm"].debug


def every_choice() -> list[tuple[str, str]]:
    return [(group, choice) for group in group_names() for choice in choices_of(group)]


@pytest.mark.parametrize(("group", "choice"), every_choice(), ids=lambda value: str(value))
def test_every_yaml_builds(group: str, choice: str) -> None:
    beside = MAZES if (group, choice) in OF_MAZES or choice.startswith("maze2d") else ""
    if choice.endswith("_custom"):
        beside = r"dataset.maze_map='#####\#OOG#\#####'"
    if choice.startswith("ts_") or "_prediction" in choice:
        beside = "experiment=exp_prediction algorithm=df_prediction dataset=ts_ecb"
        beside += " dataset.path=mine.csv dataset.prediction_length=5" if choice in ("ts_csv", "ts_base") else ""
    if choice == "df_planning_rnn":
        beside = MAZES.replace("algorithm=df_planning", "")
    if "robot" in choice:
        beside = "experiment=exp_robot algorithm=df_robot dataset=robot_swap"
    if choice in ("df_video_rnn", "df_rnn_base"):  # its tokens are four frames
        beside = "algorithm=df_video_rnn dataset.n_frames=16 dataset.context_length=4"
    assert checked(f"{beside} {group}={choice}").settings.choices[group] == choice


def fields(options: type, where: str = "") -> set[str]:
    """Every dotted option of a dataclass, nested dataclasses opened, `dict` options as one."""
    found = set()
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        inner = hints[field.name]
        name = f"{where}{field.name}"
        found |= fields(inner, f"{name}.") if dataclasses.is_dataclass(inner) else {name}  # type: ignore[arg-type]
    return found


def keys(section: dict[str, Any], where: str = "") -> set[str]:
    found = set()
    for name, value in section.items():
        inner = isinstance(value, dict) and value
        found |= keys(value, f"{where}{name}.") if inner else {f"{where}{name}"}
    return found - {"_target_"}


@pytest.mark.parametrize("command", [MAZES, "", "dataset=video_labmaze"])
@pytest.mark.parametrize("part", ["dataset", "algorithm", "experiment"])
def test_the_yaml_shows_every_option_there_is(part: str, command: str) -> None:
    ready = checked(command)
    assert keys(resolved(ready.config)[part]) == fields(type(ready.options[part]))


@pytest.mark.parametrize(
    ("command", "part"),
    [(MAZES, "dataset"), (MAZES, "algorithm"), (MAZES, "experiment"), ("", "algorithm"), ("", "experiment")],
)
def test_the_yaml_and_the_class_agree_on_defaults_that_are_ours(command: str, part: str) -> None:
    ready = checked(command)
    options = ready.options[part]
    theirs = {"episode_len", "observation_mean", "observation_std", "action_mean", "action_std", "chunk_size"}
    told = theirs | {"tasks", "num_nodes", "training", "validation", "test"}  # the documented defaults of this task
    for field in dataclasses.fields(options):
        if field.name not in told and field.default is not dataclasses.MISSING:
            assert getattr(options, field.name) == field.default, f"{part}.{field.name}"


def test_a_datasets_numbers_flow_to_the_algorithm() -> None:
    options = checked(
        f"{MAZES} dataset=maze2d_large dataset.gamma=0.5 dataset.episode_len=400 dataset.observation_std=[1,2,3,4]"
    ).options
    algorithm = options["algorithm"]
    assert (algorithm.gamma, algorithm.episode_len, algorithm.chunk_size) == (0.5, 400, 400)
    assert algorithm.observation_std == (1.0, 2.0, 3.0, 4.0)


def test_the_documented_defaults_hold() -> None:
    """The documented defaults of planning, number by number."""
    config = resolved(compose(shlex.split(f"{MAZES} dataset=maze2d_umaze")))
    training, validation = config["experiment"]["training"], config["experiment"]["validation"]
    assert (training["lr"], training["batch_size"], training["max_steps"], training["max_epochs"]) == (
        5e-4,
        1024,
        200005,
        1000,
    )
    assert training["checkpointing"]["every_n_train_steps"] == 10000
    assert (training["precision"], training["optim"]) == (
        "16-mixed",
        {"accumulate_grad_batches": 1, "gradient_clip_val": 0},
    )
    wanted = {"precision": 32, "inference_mode": False, "batch_size": 128, "val_every_n_epoch": 10, "limit_batch": 1}
    assert wanted.items() <= validation.items()
    algorithm, diffusion = config["algorithm"], config["algorithm"]["diffusion"]
    assert {
        "frame_stack": 10,
        "context_frames": 1,
        "open_loop_horizon": 50,
        "use_reward": False,
        "causal": False,
        "padding_mode": "same",
        "plot_start_goal": True,
        "guidance_scale": 2,
        "chunk_size": 300,
        "scheduling_matrix": "pyramid",
        "weight_decay": 1e-4,
        "warmup_steps": 10000,
        "optimizer_beta": [0.9, 0.999],
        "noise_level": "random_all",
        "uncertainty_scale": 1,
    }.items() <= algorithm.items()
    assert diffusion == {
        "objective": "pred_x0",
        "beta_schedule": "linear",
        "schedule_fn_kwargs": {},
        "clip_noise": 20,
        "use_fused_snr": False,
        "snr_clip": 5,
        "cum_snr_decay": 0.98,
        "timesteps": 1000,
        "sampling_timesteps": 50,
        "ddim_sampling_eta": 0,
        "stabilization_level": 10,
        "distilled_steps": None,
        "architecture": {"network_size": 128, "num_layers": 12, "attn_heads": 4, "dim_feedforward": 512},
    }
    dataset = config["dataset"]
    assert (dataset["env_id"], dataset["episode_len"], dataset["gamma"]) == ("maze2d-umaze-v1", 300, 1)
    assert dataset["observation_mean"] == [1.9327888, 2.3744664, 2.06e-4, -1.02e-3]
    assert dataset["observation_std"] == [0.89972174, 0.7093159, 2.2128615, 2.468173]
    assert all(0.7 <= value <= 0.75 for value in dataset["action_std"])


def test_a_maze_alone_chooses_what_goes_with_it_and_the_command_line_has_the_last_word() -> None:
    chosen = checked("dataset=maze2d_large").settings.choices
    assert (chosen["experiment"], chosen["algorithm"]) == ("exp_planning", "df_planning")
    assert compose(["dataset=maze2d_large", "algorithm=df_video"])["choices"]["algorithm"] == "df_video"
    assert compose(["dataset=video_dmlab"])["choices"]["algorithm"] == "df_video"


def test_a_video_datasets_numbers_flow_to_the_algorithm() -> None:
    algorithm = checked(
        "dataset=video_dmlab dataset.resolution=32 dataset.n_frames=12 dataset.context_length=3 dataset.data_mean=[0.1,0.2,0.3]"
    ).options["algorithm"]
    assert (algorithm.observation_shape, algorithm.n_frames, algorithm.context_frames) == ((3, 32, 32), 12, 3)
    assert algorithm.data_mean == (0.1, 0.2, 0.3)


def test_the_documented_defaults_hold_for_video() -> None:
    """The documented defaults of video, number by number."""
    config = resolved(compose([]))
    assert config["choices"] | {"cluster": None} == config["choices"] | {
        "experiment": "exp_video",
        "dataset": "video_minecraft",
        "algorithm": "df_video",
        "cluster": None,
    }
    training, validation = config["experiment"]["training"], config["experiment"]["validation"]
    assert (training["lr"], training["batch_size"], training["max_steps"], training["max_epochs"]) == (
        8e-5,
        8,
        200005,
        1000,
    )
    assert training["optim"] == {"accumulate_grad_batches": 1, "gradient_clip_val": 1.0}
    assert training["checkpointing"]["every_n_train_steps"] == 10000
    assert (training["precision"], validation["precision"]) == ("16-mixed", "16-mixed")
    assert (validation["val_every_n_step"], validation["batch_size"], validation["limit_batch"]) == (5000, 8, 1)
    algorithm = config["algorithm"]
    assert {
        "frame_stack": 1,
        "frame_skip": 2,
        "context_frames": 2,
        "weight_decay": 2e-3,
        "warmup_steps": 10000,
        "optimizer_beta": [0.9, 0.99],
        "uncertainty_scale": 1,
        "guidance_scale": 0,
        "chunk_size": 1,
        "scheduling_matrix": "autoregressive",
        "noise_level": "random_all",
        "causal": True,
        "metrics": ["fvd"],
    }.items() <= algorithm.items()
    architecture = algorithm["diffusion"].pop("architecture")
    assert algorithm["diffusion"] == {
        "objective": "pred_v",
        "beta_schedule": "sigmoid",
        "schedule_fn_kwargs": {},
        "clip_noise": 6.0,
        "use_fused_snr": True,
        "snr_clip": 5.0,
        "cum_snr_decay": 0.96,
        "timesteps": 1000,
        "sampling_timesteps": 100,
        "ddim_sampling_eta": 0.0,
        "stabilization_level": 15,
        "distilled_steps": None,
    }
    assert architecture == {
        "network_size": 64,
        "attn_heads": 4,
        "attn_dim_head": 64,
        "dim_mults": [1, 2, 4, 8],
        "attn_resolutions": [16, 32, 64, 128],
        "use_init_temporal_attn": True,
        "use_linear_attn": True,
        "time_emb_type": "rotary",
        "patch_size": 1,
    }
    dataset = config["dataset"]
    assert (dataset["save_dir"], dataset["n_frames"], dataset["resolution"]) == ("data/minecraft", 10, 128)
    assert (dataset["context_length"], dataset["frame_skip"], dataset["validation_multiplier"]) == (2, 2, 1)
    assert (dataset["data_mean"], dataset["data_std"], dataset["observation_shape"]) == (0.5, 0.5, [3, 128, 128])
    dmlab = resolved(compose(["dataset=video_dmlab"]))["dataset"]
    assert (dmlab["save_dir"], dmlab["n_frames"], dmlab["resolution"]) == ("data/dmlab", 16, 64)
    assert (dmlab["context_length"], dmlab["frame_skip"]) == (2, 2)


def test_every_choice_says_what_it_is() -> None:
    for file in PACKAGE_FOLDER.rglob("*.yaml"):
        assert file.read_text(encoding="utf-8").startswith("# "), file


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_world_models_ablation_is_a_command_line_that_works(variant: str) -> None:
    words = words_of(variant, 10, 0, [])
    ready = plan(words)
    assert ready.options["experiment"].training.max_steps == 10
    assert [word for word in words if word.startswith("algorithm.")]
