"""Runs of verdicts: each in a world of its seed's own, which does not touch development's."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.core import verdict_worlds
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.rehearsal import rehearse
from llava_lab.experiment.sweep import Sweep
from llava_lab.experiment.verdict_runs import choose

VIDEO_DPO = REPOSITORY / "experiments" / "llava_next_video_dpo.yaml"


def sweep_of(folder: Path, axes: dict, experiment: Path = VIDEO_DPO) -> Sweep:
    (path := folder / "some.yaml").write_text(
        yaml.safe_dump({"experiment": str(experiment), "axes": axes})
    )
    return Sweep.read(path)


def test_a_run_reads_its_seeds_world_and_no_other(tmp_path: Path) -> None:
    """Of the experiment that reads most files: pictures, films, pairs, four benchmarks."""
    sweep = sweep_of(tmp_path, {"beta": {"a": {}, "b": {"stages.dpo.loss.beta": 1.0}}})
    chosen = choose(sweep, [("a", 100), ("b", 103)], lambda seed: {})
    for point, seed in zip(chosen.points(), (1000, 1003), strict=True):
        config = Experiment.read_layers(chosen.layers(point)).config
        assert config["seed_everything"] == seed - 900
        assert [config[key]["seed"] for key in ("tiny_world", "tiny_videos")] == [seed, seed]
        read = yaml.safe_dump([config["paths"], config["stages"], config["data"]])
        assert f"world/{seed}/tiny/" in read and f"world/{seed}/tiny_video/" in read
        assert "world/tiny" not in read
    assert config["stages"]["dpo"]["loss"]["beta"] == 1.0


def test_a_points_own_options_win_over_its_seeds(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"beta": {"a": {}, "b": {"stages.dpo.loss.beta": 1.0}}})
    chosen = choose(sweep, [("a", 100), ("b", 100)], lambda seed: {"stages.dpo.loss.beta": 0.5})
    betas = [point.options["stages.dpo.loss.beta"] for point in chosen.points()]
    assert betas == [0.5, 1.0]


def test_an_option_that_names_the_world_of_development_is_refused(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"file": {"a": {"data.dev": "world/tiny/questions.jsonl"}}})
    with pytest.raises(ValueError, match="an option names world/tiny, the world of development"):
        choose(sweep, [("a", 100)], lambda seed: {})


@pytest.mark.slow
def test_a_rehearsal_tells_stages_that_runs_share_and_their_scores(tmp_path: Path) -> None:
    axes = {"beta": {"before": {"stages.dpo": None}, "b": {"stages.dpo.loss.beta": 1.0}}}
    sweep = sweep_of(tmp_path, axes)
    chosen = choose(sweep, [("before", 100), ("b", 100)], lambda seed: {})
    first, second = [rehearse(chosen, point, tmp_path) for point in chosen.points()]
    assert list(second.fingerprints) == [*first.fingerprints, "dpo"]
    assert first.fingerprints.items() < second.fingerprints.items()
    assert {"questions/accuracy", "presence/hallucination", "descriptions/chair_i"} < {
        *first.scores
    }
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match="kept for verdicts"):
        verdict_worlds.check_seed(1000, "it")
