"""Sweeps: read, run point by point, resumed, and shown."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import REPOSITORY, stage_options
from PIL import Image

from llava_lab.cli import fit as cli
from llava_lab.cli import sweep as sweeps
from llava_lab.cli.table import main as table_main
from llava_lab.core.records import write_record
from llava_lab.experiment import sweeping
from llava_lab.experiment.sweep import Layers, Point, Sweep, recorded_results
from llava_lab.experiment.sweeping import fit_command
from llava_lab.report.published import published

EXPERIMENT = REPOSITORY / "experiments" / "llava15.yaml"
ENDING = "2 steps, by max_steps, in epoch 1 of 4"  # of a stage that is shortened
SHIPPED = sorted((REPOSITORY / "sweeps").glob("*.yaml"))


def sweep_file(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text.replace("EXPERIMENT", str(EXPERIMENT)))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_accepted_by_fit(path: Path, tmp_path: Path) -> None:
    sweep = Sweep.read(path)
    points = sweep.points()
    assert len({str(point) for point in points}) == len(points) >= 6
    first = [point for point in points if point.seed == points[0].seed]
    for point in first:
        cli.main([*fit_command(sweep.layers(point), tmp_path)[3:], "--print_config"])
    for each in sweep.published:
        assert published(each).id == each


def test_grids_in_use_are_not_those_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sweep = Sweep.read(REPOSITORY / "sweeps" / "inference_grids.yaml")
    (point,) = (p for p in sweep.points() if str(p) == "trained=2x2 used=1x1 seed=0")
    cli.main([*fit_command(sweep.layers(point), tmp_path)[3:], "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    trained = config["stages"]["instruct"]["data"]["views"]
    assert (trained["grids"], config["data"]["views"]["grids"]) == (
        "2x2",
        "1x1",
    )
    assert trained["class_path"] == config["data"]["views"]["class_path"]


def test_points_are_all_combinations(tmp_path: Path) -> None:
    path = sweep_file(
        tmp_path,
        """
        experiment: EXPERIMENT
        seeds: [3, 4]
        axes:
          model.connector.depth: [1, 2]
          rate:
            half: {a.lr_scale: 25, b: [x, 1]}
            full:
        """,
    )
    sweep = Sweep.read(path)
    points = sweep.points()
    assert sweep.name == "some" and len(points) == 8
    assert points[0].labels == {"model.connector.depth": "1", "rate": "half"}
    assert points[0].options == {
        "model.connector.depth": 1,
        "a.lr_scale": 25,
        "b": ["x", 1],
    }
    assert points[-1].options == {"model.connector.depth": 2}
    assert '--b=["x", 1]' in fit_command(sweep.layers(points[0]), tmp_path)
    records = {sweep.record(tmp_path, point) for point in points}
    assert len(records) == 8


def test_each_data_root_of_the_environment_has_records_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep.read(sweep_file(tmp_path, "{experiment: EXPERIMENT, axes: {a.b: [1]}}"))
    (point,) = sweep.points()
    (paper := tmp_path / "paper.yaml").write_text("{scale: s, r: '${oc.env:LLAVA_DATA,data}'}")
    records = []
    for root in (None, "v1", "v2", "v1"):
        monkeypatch.delenv("LLAVA_DATA", raising=False)
        if root:
            monkeypatch.setenv("LLAVA_DATA", root)
        records.append([sweep.record(tmp_path, point, more) for more in ((), [paper])])
    without, read = zip(*records, strict=True)
    assert len(set(without)) == 1 and len(set(read)) == 3 and read[1] == read[3]


def test_a_scale_leaves_the_axes_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An overlay that names the whole encoder does not undo the layer that a point sets."""
    sweep = Sweep.read(REPOSITORY / "sweeps" / "encoder_layer.yaml")
    more = [REPOSITORY / "configs" / "scale" / "small.yaml"]
    for point in sweep.points()[::3]:
        cli.main([*fit_command(sweep.layers(point, more), tmp_path)[3:], "--print_config"])
        encoder = yaml.safe_load(capsys.readouterr().out)["model"]["encoder"]
        (layer,) = point.options.values()
        assert (encoder["layer"], "dinov2" in encoder["name"]) == (layer, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {}", "needs the keys experiment and axes"),
        ("experiment: EXPERIMENT\naxes: {}\nseed: [1]", "unknown key 'seed'"),
        ("experiment: none.yaml\naxes: {}", "there is no file"),
        ("experiment: EXPERIMENT\naxes: {a.b: 3}", "a.b: an axis is a list of values"),
        ("experiment: EXPERIMENT\naxes: {a.b: []}", "a.b: an axis is a list of values"),
        ("experiment: EXPERIMENT\naxes: {a: {b: 3}}", "a: an axis is a list of values"),
        ("experiment: EXPERIMENT\naxes: {}\nseeds: [a]", "not a list of whole numbers"),
        ("a: [", "not YAML"),
        (
            "{experiment: EXPERIMENT, axes: {seed_everything: [0, 1]}}",
            r"seed_everything is set by seeds: \[0, 1",
        ),
        (
            "{experiment: EXPERIMENT, axes: {a: {x: {b.c: 1}}, d: {y: {b.c: 2}}}}",
            "d sets b.c, which replaces b.c of a; change the order",
        ),
        (
            "{experiment: EXPERIMENT, axes: {model.connector.depth: [1], model.connector: [MLP]}}",
            "model.connector sets model.connector, which replaces model.connector.depth",
        ),
        (
            "{experiment: EXPERIMENT, axes: {a.b.c: [1, 2], d: {x: {}, y: {a.b: {c: 3}}}}}",
            "d sets a.b, which replaces a.b.c of a.b.c; change the order",
        ),
        (
            "{experiment: EXPERIMENT, axes: {a: {x: {m: {class_path: M, d: 1}}}, m.d: [2]}}",
            "m.d sets m.d, which replaces m.d of a; change the order",
        ),
        (
            "{experiment: EXPERIMENT, axes: {a.init_args.b: [1], c: {x: {a.b: 2}}}}",
            "c sets a.b, which replaces a.b of a.init_args.b; change the order",
        ),
        (
            "{experiment: EXPERIMENT, axes: {a: {x: {b.c: 1, b: {c: 2}}}}}",
            "a sets b, which replaces b.c of a; change the order",
        ),
        ("{experiment: EXPERIMENT, axes: {a: {x: 0, y: {b: 1}}}}", "a: an axis is a list"),
        (
            "{experiment: EXPERIMENT, axes: {a: [1]}, published: [{title: x}]}",
            "published: {'title': 'x'} is no table's id; `table --paper` lists them",
        ),
    ],
)
def test_what_is_no_sweep_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Sweep.read(sweep_file(tmp_path, text))


@pytest.mark.parametrize(
    "given",
    [
        "seed_everything=5",
        "model.connector.depth=7",
        "model.connector.depth=null",
        "model.connector.init_args.depth=7",
        "model.connector={depth: 7}",
        "model={connector: {depth: 7}}",
        "data.benchmarks.0.prompt=x",
        "data.benchmarks+=[{name: x}]",
        {"seed_everything": 5},
        {"stages": {"align": {"lr_scale": 1}}, "model.connector": {"depth": 7}},
    ],
)
def test_what_is_said_of_options_that_the_points_set_is_refused(
    given: str | dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = "{experiment: EXPERIMENT, axes: {model.connector.depth: [1, 2], data.benchmarks: [[]]}}"
    path = sweep_file(tmp_path, text)
    (mine := tmp_path / "mine.yaml").write_text(yaml.safe_dump(given))
    more = f"--{given}" if isinstance(given, str) else f"-c {mine}"
    with pytest.raises(SystemExit):
        sweeps.main(
            [str(path), "--dry-run", *(["-c", str(mine)] if isinstance(given, dict) else [more])]
        )
    assert f"error: {more}: the sweep's " in capsys.readouterr().err


def test_what_some_points_replace_is_for_the_others(tmp_path: Path) -> None:
    """A scale, too, is what points stand on: the options of theirs win."""
    text = "{experiment: EXPERIMENT, axes: {a: {x: {stages.align: null}, y: {d: MLP, e+: [1]}}}}"
    sweep = Sweep.read(sweep_file(tmp_path, text))
    (scale := tmp_path / "scale.yaml").write_text("{scale: s, stages: {align: null}, d: Linear}")
    sweep.refuse_overrides(["stages.align.lr_scale=2", "d.bias=true", "e+=[2]", "e=[3]", scale])
    with pytest.raises(ValueError, match=r"--d=Linear: the sweep.s axes set d"):
        sweep.refuse_overrides(["d=Linear"])


def test_results_are_those_of_the_folder_of_runs_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another's runs are looked at from a folder that has runs of these names, too."""
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    theirs = tmp_path / "theirs" / "runs"
    named = "runs/llava15/tiny-seed0-0/results.json"
    for runs in (here / "runs", theirs):
        write_record(runs / "sweeps" / "s" / "0.json", {"command": [], "exit": 0, "results": named})
        write_record(runs / "llava15" / "tiny-seed0-0" / "results.json", {})
    assert recorded_results(Path("runs/sweeps/s/0.json")) == Path(named)
    record = theirs / "sweeps" / "s" / "0.json"
    assert recorded_results(record) == theirs.parent / named
    (theirs.parent / named).unlink()
    assert recorded_results(record) is None


def test_a_file_that_is_broken_meanwhile_stops_its_own_point_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sweep = Sweep.read(sweep_file(tmp_path, "{experiment: EXPERIMENT, seeds: [0, 1], axes: {}}"))

    def record(self: Sweep, runs: Path, point: Point, more: Layers = ()) -> Path:
        if point.seed == 0:
            raise ValueError("mine.yaml: not YAML")
        return runs / "1.json"

    monkeypatch.setattr(Sweep, "record", record)
    monkeypatch.setattr(sweeping, "finished", lambda *_: set())
    monkeypatch.setattr(sweeping, "_pool", lambda *_: None)
    monkeypatch.setattr(sweeping, "fit_point", lambda *_: (True, "seed=1: fine"))
    with pytest.raises(ValueError, match="1 of 2 points failed"):
        sweeping.run(sweep, tmp_path)
    said = capsys.readouterr().out
    assert "seed=0: mine.yaml: not YAML" in said and "[2/2]" in said and "seed=1: fine" in said


def test_a_sweep_runs_goes_on_and_is_shown(
    shortened: list[str], small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = sweep_file(
        tmp_path,
        """
        experiment: EXPERIMENT
        seeds: [0]
        published: [llava15/model_zoo]
        axes:
          model.connector.depth: [1, 0]
        """,
    )
    runs = tmp_path / "runs"
    more = [option for option in shortened if not option.startswith("--runs")]
    more += stage_options(EXPERIMENT, tmp_path)
    questions = tmp_path / "questions.jsonl"
    questions.write_text((small_world / "questions.jsonl").read_text())
    more.append(f"--paths.questions={questions}")
    sweeps.main([str(path), f"--runs={runs}", "--dry-run", *more])
    assert f"    stage align: to train, {ENDING}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        sweeps.main([str(path), f"--runs={runs}", *more])
    said = capsys.readouterr()
    assert stop.value.code == 2 and "1 of 2 points failed; repeat to try them again" in said.err
    assert "2 points, 2 to run" in said.out and "[2/2] model.connector" in said.out
    assert "depth=0 seed=0: failed with exit status" in said.out and "depth is 0" in said.out
    results = sorted(runs.glob("llava15/*/results.json"))
    times = [path.stat().st_mtime_ns for path in results]
    assert len(results) == 1

    with pytest.raises(SystemExit):
        sweeps.main([str(path), f"--runs={runs}", *more])
    assert "2 points, 1 to run" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in results] == times

    sweeps.main([str(path), f"--runs={runs}", "--dry-run", *more])
    said = capsys.readouterr().out
    assert said.count("results.json") == 1 and "depth=0 seed=0: to run" in said

    asked = questions.read_text()
    questions.write_text(asked.replace("the ", "that ", 1))
    sweeps.main([str(path), f"--runs={runs}", "--dry-run", *more])
    said = capsys.readouterr().out
    assert said.count(": to run") == 2, "results of other questions are not the points' any more"
    questions.write_text(asked)

    plot = tmp_path / "plots" / "some.png"
    table_main([str(path), f"--runs={runs}", "--format=md", f"--plot={plot}", *more])
    said = capsys.readouterr().out
    assert "| 1 | 1 | 36.0 |" in said
    assert "1 of 2 points have no results." in said
    assert "llava15/model_zoo: Model zoo: full tuning and LoRA" in said and "| 78.5 |" in said
    assert (
        "1 is none of the rows. Nearest is LLaVA-1.5-7B: model.connector.depth is 1, not 2" in said
    )
    with Image.open(plot) as image:
        assert image.size[0] > 600
    text = path.read_text()
    path.write_text(text.replace("model_zoo", "zoo"))
    with pytest.raises(SystemExit):
        table_main([str(path), f"--runs={runs}", *more])
    assert "no published table is called 'llava15/zoo'; near it are " in capsys.readouterr().err
    path.write_text(text)
    table_main([str(path), f"--runs={runs}", "--format=csv", *more])
    assert capsys.readouterr().out.startswith("model.connector.depth,seeds,")
    with pytest.raises(SystemExit):
        table_main([str(path), f"--runs={runs}"])
    assert "sweep some has no finished point" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        table_main([str(path), f"--runs={runs}", "--formt=json"])
    assert "Option 'formt' is not accepted" in capsys.readouterr().err


STAND_IN = """
import os, sys, time
sys.path.insert(0, {root!r})
import llava_lab.__main__ as lab
from pathlib import Path
def fit(verb, arguments):
    folder, seed = Path({folder!r}), arguments[-2].partition("=")[2]
    with (folder / "began").open("a") as file:
        file.write(f"{{seed}} {{os.getpid()}}\\n")
    try:
        deadline = time.monotonic() + 60
        while not (folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    except BaseException:
        time.sleep(0.3)  # a checkpoint
        (folder / f"saved-{{seed}}").touch()
        raise
    (folder / f"results-{{seed}}").write_text('{{"benchmarks": {{}}, "cost": {{}}}}')
lab._run = fit
sys.argv = ["llava_lab", *sys.argv[1:]]
lab.run()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[], subprocess.Popen]:
    """Starts a sweep of two points whose fits wait for a file `go`."""
    path = sweep_file(tmp_path, "{experiment: EXPERIMENT, seeds: [0, 1], axes: {a: [1]}}")
    fit = tmp_path / "fit.py"
    fit.write_text(STAND_IN.format(root=str(REPOSITORY), folder=str(tmp_path)))
    code = f"""
from pathlib import Path
from types import SimpleNamespace
from llava_lab.experiment import sweeping
from llava_lab.__main__ import run
made = sweeping.fit_command
def command(layers, runs):
    executable, _, _, *arguments = made(layers, runs)
    return [executable, {str(fit)!r}, *arguments]
class Experiment:
    def read_layers(layers):
        results = Path({str(tmp_path)!r}) / f"results-{{layers[-1].partition('=')[2]}}"
        return SimpleNamespace(run=lambda runs: SimpleNamespace(results_file=results))
sweeping.fit_command, sweeping.Experiment = command, Experiment
import sys
sys.argv = ["llava_lab", "sweep", {str(path)!r}, "--runs={tmp_path / "runs"}", "--jobs=2"]
run()
"""

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    return start


def began(folder: Path, count: int, beside: subprocess.Popen) -> list[int]:
    """Processes of the fits, once there are so many."""
    path = folder / "began"
    while not path.exists() or path.read_text().count("\n") < count:
        assert beside.poll() is None, beside.communicate()[0]
        time.sleep(0.01)
    return [int(line.split()[1]) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_fit_outlives_its_sweep(
    stand_in: Callable[[], subprocess.Popen], number: signal.Signals, tmp_path: Path
) -> None:
    sweep = stand_in()
    fits = began(tmp_path, 2, sweep)
    sweep.send_signal(number)
    said, _ = sweep.communicate(timeout=60)
    if number == signal.SIGKILL:
        while any(Path(f"/proc/{fit}").exists() for fit in fits):
            time.sleep(0.01)
    else:
        assert sweep.returncode == 75 and "the points save where they are" in said
        assert said.count("the same command goes on") == 1 and "failed" not in said
    assert not any(Path(f"/proc/{fit}").exists() for fit in fits)
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}
    if number == signal.SIGKILL:  # which leaves the most behind
        (tmp_path / "go").touch()
        sweep = stand_in()
        said, _ = sweep.communicate(timeout=60)
        assert sweep.returncode == 0 and "[2/2]" in said


def test_two_sweeps_at_once_fit_each_point_once(
    stand_in: Callable[[], subprocess.Popen], tmp_path: Path
) -> None:
    first = stand_in()
    began(tmp_path, 2, first)
    second = stand_in()
    assert second.stdout is not None
    lines = iter(second.stdout.readline, "")
    waiting = next(line for line in lines if "waiting" in line)
    assert f"for process {first.pid} on" in waiting
    (tmp_path / "go").touch()
    assert "[2/2]" in first.communicate(timeout=60)[0] and first.returncode == 0
    assert "by another sweep" in "".join(lines) and second.wait(timeout=60) == 0
    second.stdout.close()
    assert (tmp_path / "began").read_text().count("\n") == 2


def test_points_at_once_have_gpus_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = sweep_file(tmp_path, "{experiment: EXPERIMENT, seeds: [0, 1, 2], axes: {a: [1]}}")
    code = "import os, time; time.sleep(0.5); print(os.environ['CUDA_VISIBLE_DEVICES']); exit(3)"
    code += " if 'SLURM_NTASKS' not in os.environ else print('a task of Slurm')"
    monkeypatch.setenv("SLURM_NTASKS", "8")
    config = {"trainer": {"devices": "auto", "accelerator": "auto"}}
    made = SimpleNamespace(config=config, run=lambda runs: SimpleNamespace(results_file=None))
    experiment = SimpleNamespace(read_layers=lambda layers: made)
    monkeypatch.setattr(sweeping, "visible", lambda: ["5", "GPU-7c"])
    monkeypatch.setattr(sweeping, "Experiment", experiment)
    monkeypatch.setattr(sweeping, "fit_command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(SystemExit):
        sweeps.main([str(path), f"--runs={tmp_path / 'runs'}"])
    said = capsys.readouterr().out
    assert "3 to run, 2 at once on GPUs 5,GPU-7c" in said
    assert "begins on GPU 5, log" in said and "begins on GPU GPU-7c, log" in said
    logs = [each.read_text().strip() for each in tmp_path.glob("runs/sweeps/some/*.log")]
    assert len(logs) == 3 and set(logs) == {"5", "GPU-7c"}

    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(SystemExit):
        sweeps.main([str(path), f"--runs={tmp_path / 'runs'}"])
    assert "seed=0: was ended by SIGKILL, as where memory is short, see" in capsys.readouterr().out

    monkeypatch.setitem(config["trainer"], "devices", 3)
    with pytest.raises(SystemExit, match="devices is 3, and there are 2 GPUs"):
        sweeps.main([str(path), f"--runs={tmp_path / 'runs'}"])


def test_results_are_those_of_the_files_that_a_fit_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep.read(sweep_file(tmp_path, "{experiment: EXPERIMENT, axes: {}}"))
    now = ["old"]

    def read_layers(layers: Layers) -> SimpleNamespace:
        results = tmp_path / now[0]
        results.touch()
        return SimpleNamespace(run=lambda runs: SimpleNamespace(results_file=results))

    def changes_a_file(command: list[str]) -> int:
        now[0] = "new"
        return 0

    monkeypatch.setattr(sweeping, "Experiment", SimpleNamespace(read_layers=read_layers))
    monkeypatch.setattr(sweeping, "write_hparams", lambda *_: None)
    (point,) = sweep.points()
    _, line = sweeping.fit_point(sweep, tmp_path / "runs", point, (), changes_a_file)
    assert line.endswith(f"{tmp_path / 'old'}")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"command": 3, "exit": 0}'])
def test_a_damaged_record_of_a_point_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = sweep_file(tmp_path, "{experiment: EXPERIMENT, axes: {a: [1]}}")
    sweep, runs = Sweep.read(path), tmp_path / "runs"
    record = sweep.record(runs, sweep.points()[0])
    record.parent.mkdir(parents=True)
    record.write_text(text)
    with pytest.raises(SystemExit, match=f"{record}: damaged.*Delete it to fit the point again"):
        sweeps.main([str(path), f"--runs={runs}"])


def test_points_at_once_train_a_shared_stage_once(shortened: list[str], tmp_path: Path) -> None:
    path = sweep_file(
        tmp_path,
        """
        experiment: EXPERIMENT
        axes: {stages.instruct.lr.llm: [1.0e-5, 2.0e-5]}
        """,
    )
    more = [*shortened, *stage_options(EXPERIMENT, tmp_path)]
    sweeps.main([str(path), f"--runs={tmp_path / 'runs'}", "--jobs=2", *more])
    results = [
        json.loads(path.read_text()) for path in tmp_path.glob("runs/llava15/*/results.json")
    ]
    reused = {stage: [] for stage in ("align", "instruct")}
    for each in results:
        for stage in each["stages"]:
            reused[stage["name"]].append(stage["reused"])
    assert sorted(reused["align"]) == [False, True] and reused["instruct"] == [False, False]


def test_a_finished_fit_is_not_done_again(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["-c", str(EXPERIMENT), *shortened, *stage_options(EXPERIMENT, tmp_path)]

    def fit(*more: str) -> str:
        cli.main(["fit", *options, *more])
        return capsys.readouterr().out

    assert f"stage align: to train, {ENDING}" in fit("--dry_run")
    assert not (tmp_path / "runs").exists()
    first = fit()
    assert f"stage align: training\nllava_lab: stage align: {ENDING}" in first
    (path,) = tmp_path.glob("runs/*/*/results.json")
    before = path.read_bytes()
    again = fit()
    assert "finished before" in again and path.read_bytes() == before
    tables = [
        out[out.index("\nbenchmark ") : out.index("llava_lab: results:")] for out in (first, again)
    ]
    assert tables[0] == tables[1] and "accuracy/count" in tables[0]
    assert "would be reused" in fit("--dry_run")
    assert "would be reused" not in fit("--dry_run", "--fresh")
    results = json.loads(before)
    assert results["visual_tokens"] == dict.fromkeys(("questions", "held_out"), 36)
    path.write_text(json.dumps({**results, "benchmark_fingerprints": {"questions": "other"}}))
    assert "finished before" not in fit()
    key = "benchmark_fingerprints"
    assert json.loads(path.read_text())[key] == results[key]
