"""What the user sets himself does something, or he is told: by a refusal, or in a line."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY

from llava_lab.experiment import layers
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.layers import read_layers
from llava_lab.experiment.sweep import Sweep

EXPERIMENTS, SCALES = REPOSITORY / "experiments", REPOSITORY / "configs" / "scale"
LLAVA15, NEXT = EXPERIMENTS / "llava15.yaml", EXPERIMENTS / "llava_next.yaml"
TINY, SMALL, PAPER = (SCALES / f"{name}.yaml" for name in ("tiny", "small", "paper"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said, however often before."""
    lines: list[str] = []
    monkeypatch.setattr(layers, "say_once", lines.append)
    monkeypatch.setattr("llava_lab.experiment.unread.say_once", lines.append)
    return lines


def mine(folder: Path, text: str) -> Path:
    (path := folder / "mine.yaml").write_text(text)
    return path


def replaced(said: list[str]) -> list[str]:
    return [line.partition("; what should")[0] for line in said if " replaces " in line]


def test_what_a_layer_behind_replaces_of_the_users_own_is_said(
    said: list[str], tmp_path: Path
) -> None:
    own = mine(tmp_path, "stages.instruct: {lr_scale: 5, betas: [0.9, 0.95]}\ndata.limit+: [1]")
    read_layers([LLAVA15, own, TINY])
    assert replaced(said) == [f"the tiny scale replaces stages.instruct.lr_scale of {own}"]
    assert "goes behind it, into a -c file or onto the command line" in said[-1]
    said.clear()
    read_layers(["model.connector.depth=3", "stages.instruct.warmup_ratio=0.03", LLAVA15])
    assert replaced(said) == [
        "the llava15 experiment replaces model.connector.depth of --model.connector.depth=3"
    ]
    said.clear()
    read_layers(["data.benchmarks+=[{name: x}]", LLAVA15, REPOSITORY / "configs/stage/kto.yaml"])
    assert replaced(said) == [
        "the llava15 experiment replaces data.benchmarks of --data.benchmarks+=[{name: x}]"
    ]


def test_what_the_user_himself_replaces_is_not_said(said: list[str], tmp_path: Path) -> None:
    own = mine(tmp_path, "stages.instruct.lr_scale: 5")
    read_layers([LLAVA15, own])
    read_layers([LLAVA15, own, TINY, "stages.instruct.lr_scale=7"])
    read_layers([LLAVA15, own, "stages.instruct.lr_scale=7"])
    read_layers([LLAVA15, TINY, own])
    read_layers([LLAVA15, own, TINY], quiet=True)
    (other := tmp_path / "other.yaml").write_text(
        f"extends: {LLAVA15}\nexperiment: other\nstages.instruct.lr_scale: 6"
    )
    read_layers([own, other, PAPER])
    assert replaced(said) == []


def commands() -> list[tuple[str, list[str]]]:
    """The files of every command that ships, in the heads of files and in the documentation."""
    places = [*REPOSITORY.glob("configs/**/*.yaml"), *EXPERIMENTS.glob("*.yaml")]
    places += [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md")]
    found = []
    for path in places:
        text = re.sub(r"\\\n#? *", "", path.read_text(encoding="utf-8"))
        for line in re.findall(r"^#? *python -m llava_lab (?:fit|plan|check) .*", text, re.M):
            words = shlex.split(line.removeprefix("#"), comments=True)
            names = [after for word, after in itertools.pairwise(words) if word == "-c"]
            found.append((path.name, [name for name in names if (REPOSITORY / name).is_file()]))
    return found


def test_no_command_that_ships_names_files_in_vain(said: list[str]) -> None:
    every = commands()
    assert len(every) > 50
    for place, names in every:
        read_layers([REPOSITORY / name for name in names])
        assert replaced(said) == [], place


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([LLAVA15], ["paths.videos=x.json"], r"^--paths\.videos=x\.json: nothing in llava15 .*"),
        ([LLAVA15, PAPER], ["paths.questions=x"], r"what is read is paths\.align, paths\.align_im"),
        ([LLAVA15, SMALL], ["resolution=224"], r"the small scale has .*--model\.encoder=configs"),
        ([LLAVA15, PAPER], ["resolution=336"], r"nothing refers to \$\{resolution\}"),
        (
            [LLAVA15],
            ["tiny_world.seed=5", "tiny_world.root=w5"],
            r"tiny_world\.root=w5: nothing reads .*Set --paths\.root=w5, or",
        ),
        ([NEXT], ["tiny_videos={root: v5}"], r"Set --paths\.video_root=v5, or"),
        (
            [LLAVA15],
            ["tiny_world.seed=5", "paths.root=elsewhere"],
            r"nothing reads tiny_world\.root, world/tiny, .*paths\.root is elsewhere",
        ),
        (
            [LLAVA15],
            ["stages.instruct.data.hold_out=0"],
            r"benchmark held_out would ask .*--data\.benchmarks\.held_out=null",
        ),
    ],
)
def test_an_option_that_nothing_reads_is_refused(
    files: list[Path], options: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _ = Experiment.read_layers([*files, *options]).options


def test_in_python_it_is_refused_too() -> None:
    with pytest.raises(ValueError, match=r"^paths\.videos=x\.json: nothing in llava15 .*"):
        _ = Experiment.read(LLAVA15).changed({"paths.videos": "x.json"}).options


@pytest.mark.parametrize(
    ("files", "options"),
    [
        # As runs of verdicts have it, whatever the experiment reads.
        ([LLAVA15], ["tiny_videos.seed=5", "tiny_videos.root=w", "paths.video_root=w"]),
        ([LLAVA15], ["tiny_world.seed=5", "tiny_world.root=w", "paths.root=w"]),
        ([LLAVA15], ["tiny_world.root=w", "paths.instruct=w/a.json"]),
        ([LLAVA15], ["tiny_world=null", "paths.root=elsewhere"]),
        ([LLAVA15, PAPER], ["paths.root=elsewhere", "paths.video_root=elsewhere"]),
        ([LLAVA15], ["resolution=224", "paths.questions=x"]),
        ([LLAVA15], ["paths.videos=x", "stages.align.data.sources.0.path=${paths.videos}"]),
        ([LLAVA15], ["paths.videos=x", "paths.align=${paths.videos}"]),
        ([LLAVA15], ["stages.instruct.data.hold_out=0", "data.benchmarks.held_out=null"]),
        ([LLAVA15], ["stages.instruct.data.hold_out=0", "data.benchmarks.held_out.questions=x"]),
        ([LLAVA15], ["stages.instruct.data.hold_out=0.5"]),
    ],
)
def test_an_option_that_something_reads_is_accepted(
    files: list[Path], options: list[str], said: list[str]
) -> None:
    _ = Experiment.read_layers([*files, *options]).options
    assert said in ([], [layers.DEFAULT])


def test_a_file_may_hold_paths_for_all_experiments(said: list[str], tmp_path: Path) -> None:
    own = mine(tmp_path, "paths: {videos: x, preferences: y}\nresolution: 224")
    assert Experiment.read(LLAVA15, PAPER, own).options.paths.videos == "x"
    world = mine(tmp_path, "tiny_world: {seed: 5, root: w5}")
    with pytest.raises(ValueError, match=rf"^{world}: nothing reads tiny_world\.root, w5"):
        _ = Experiment.read(LLAVA15, world).options
    whole = mine(tmp_path, Experiment.read(LLAVA15).changed({"paths.root": "e"}).text())
    _ = Experiment.read(whole).options  # a run's own configuration


def test_an_option_for_some_points_of_a_sweep_is_no_mistake_at_the_others(said: list[str]) -> None:
    point = "data.benchmarks=[]"
    _ = Experiment.read_layers([LLAVA15, "paths.questions=x", point]).options
    assert (
        said[-1]
        == "--paths.questions=x: nothing refers to it, as another option replaces what would"
    )
    with pytest.raises(ValueError, match=r"^--paths\.questions=x: nothing in llava15"):
        _ = Experiment.read_layers([LLAVA15, PAPER, "paths.questions=x", point]).options


def test_a_sweep_over_what_the_scale_does_not_read_says_so() -> None:
    """Its first two points were one."""
    sweep = Sweep.read(REPOSITORY / "sweeps" / "resolution.yaml")
    with pytest.raises(ValueError, match=r"--resolution=224: nothing refers to"):
        _ = Experiment.read_layers(sweep.layers(sweep.points()[0], [SMALL])).options


@pytest.mark.parametrize(
    ("files", "options", "lines"),
    [
        (
            [NEXT],
            ["trainer.gradient_clip_val=0.01"],
            ["--trainer.gradient_clip_val=0.01: stages.instruct.trainer.gradient_clip_val stays 1"],
        ),
        ([NEXT], ["trainer.gradient_clip_val=1.0", "trainer.max_time=00:01:00:00"], []),
        (
            [NEXT],
            ["trainer.gradient_clip_val=2", "stages.instruct.trainer={gradient_clip_val: 1}"],
            [],
        ),
        (
            [NEXT],
            ["model.llm.max_length=100"],
            ["--model.llm.max_length=100: stages.instruct.data.max_length stays 4096"],
        ),
        ([NEXT], ["model.llm=configs/lm/tiny_small.yaml"], []),
        (
            [LLAVA15, PAPER, REPOSITORY / "configs" / "benchmarks" / "mme.yaml"],
            ["data.max_new_tokens=512"],
            ["--data.max_new_tokens=512: data.benchmarks.mme.max_new_tokens stays"],
        ),
        ([LLAVA15], ["data.max_new_tokens=512", "model.llm.max_length=100"], []),
    ],
)
def test_what_wins_over_an_option_for_all_is_said(
    files: list[Path], options: list[str], lines: list[str], said: list[str]
) -> None:
    _ = Experiment.read_layers([*files, *options]).options
    wins = [line for line in said if "itself wins over" in line]
    assert len(wins) == len(lines)
    assert all(line.startswith(start) for line, start in zip(wins, lines, strict=True))
