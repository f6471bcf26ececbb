"""`algorithm.noise_level` on the command line: one flag sets how its networks are sampled, and what is typed wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_forcing.diffusion.noise_levels import MATRICES
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.compose import SAMPLED_BY, as_yaml, compose, compose_on, resolved
from diffusion_forcing.launch.run import plan

ALGORITHMS = {
    "df_planning": ["dataset=maze2d_medium"],
    "df_planning_rnn": ["dataset=maze2d_medium", "algorithm=df_planning_rnn"],
    "df_video": ["dataset=video_dmlab"],
    "df_video_rnn": ["dataset=video_dmlab", "algorithm=df_video_rnn", "dataset.context_length=4"],
    "df_prediction": ["dataset=ts_ecb"],
    "df_prediction_small": ["dataset=ts_ecb", "algorithm=df_prediction_small"],
}


def test_yaml_and_code_know_the_same_matrices() -> None:
    assert SAMPLED_BY["matrix_for"] == MATRICES


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", MATRICES)
def test_one_flag_is_a_baseline(algorithm: str, kind: str) -> None:
    options = plan([*ALGORITHMS[algorithm], f"algorithm.noise_level={kind}"]).options["algorithm"]
    assert (options.noise_level, options.scheduling_matrix) == (kind, MATRICES[kind])
    whole = options.episode_len if "planning" in algorithm else -1
    assert options.chunk_size == (whole if "planning" in algorithm or kind == "full_sequence" else 1)


@pytest.mark.parametrize("kind", ["random_all", "shared"])
def test_elsewhere_nothing_changes(kind: str) -> None:
    word = f"algorithm.noise_level={kind}"
    planner = plan([*ALGORITHMS["df_planning"], word]).options["algorithm"]
    video = plan([*ALGORITHMS["df_video"], word]).options["algorithm"]
    assert planner.scheduling_matrix == "pyramid"
    assert (video.scheduling_matrix, video.chunk_size) == ("autoregressive", 1)


def test_what_is_typed_wins_or_is_refused_in_one_line() -> None:
    words = [*ALGORITHMS["df_prediction"], "algorithm.noise_level=full_sequence"]
    assert plan([*words, "algorithm.chunk_size=6"]).options["algorithm"].chunk_size == 6
    with pytest.raises(UserError, match=r"trains no levels that algorithm\.scheduling_matrix=pyramid shows"):
        plan([*words, "algorithm.scheduling_matrix=pyramid"])
    with pytest.raises(UserError, match=r"algorithm\.noise_level must be one of .*did you mean 'teacher_forcing'"):
        plan([*ALGORITHMS["df_prediction"], "algorithm.noise_level=teacher_forcng"])


def test_a_saved_configuration_may_change_its_mind() -> None:
    saved = as_yaml(compose([*ALGORITHMS["df_prediction"], "algorithm.noise_level=full_sequence"]))
    assert resolved(compose_on(saved, []))["algorithm"]["scheduling_matrix"] == "full_sequence"
    again = resolved(compose_on(saved, ["algorithm.noise_level=teacher_forcing"]))["algorithm"]
    assert (again["scheduling_matrix"], again["chunk_size"]) == ("autoregressive", 1)


def test_a_checkpoint_says_what_it_was_trained_by_and_is_sampled_so(tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    structure = {"algorithm": {"noise_level": "teacher_forcing"}}
    facts = {"env_id": "maze2d-medium-v1", "structure": structure, "sampling": {"algorithm": {"guidance_scale": 1.5}}}
    header = {"format": "diffusion-forcing checkpoint", "version": 1, "step": 1, "facts": facts}
    (folder / "checkpoint.json").write_text(json.dumps({**header, "files": {"model.safetensors": {}}}))
    (folder / "model.safetensors").touch()
    words = [*ALGORITHMS["df_planning"], f"load={folder}"]
    options = plan(words).options["algorithm"]
    assert (options.noise_level, options.scheduling_matrix) == ("teacher_forcing", "autoregressive")
    trained = plan([*words, "algorithm.noise_level=full_sequence"]).options["algorithm"]
    assert (trained.noise_level, trained.scheduling_matrix) == ("full_sequence", "full_sequence")


def test_a_carried_matrix_does_not_stand_in_the_way_of_a_typed_noise_level(tmp_path: Path) -> None:
    words = ["dataset=maze2d_umaze", "load=maze2d_umaze_x", "algorithm.noise_level=full_sequence"]
    assert plan(words).options["algorithm"].scheduling_matrix == "full_sequence"
