"""A benchmark of what a stage holds out reads its file as the stage does, faults and shards too."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY

from llava_lab.data.media.clip import image_digests
from llava_lab.data.table import files_of
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.fitting import Fitting
from llava_lab.report.check import check

pytestmark = pytest.mark.usefixtures("cache")
HELD, SKIP = 0.4, "stages.instruct.data.sources.0.on_bad_row"
Write = Callable[[Path, list[dict[str, Any]], Path], Path]


@pytest.fixture
def rows(small_world: Path) -> list[dict[str, Any]]:
    """Twenty-four rows, each of a picture of its own."""
    every = json.loads((small_world / "llava_v1_5_mix665k.json").read_text())
    return list({row["image"]: row for row in every if "image" in row}.values())[:24]


def experiment(small_world: Path, file: Path, **paths: Any) -> Experiment:
    """LLaVA-1.5 at the default scale, its second stage on a file of one's own."""
    options: dict[str, Any] = {
        "tiny_world": None,
        "paths.root": str(small_world),
        "paths.instruct": str(file),
        "paths.instruct_images": str(small_world / "images"),
        "stages.instruct.data.hold_out": HELD,
    }
    for stage in ("align", "instruct"):
        data = {"max_steps": 1, "batch_size": 4, "feature_store": None}
        options |= {f"stages.{stage}.data.{key}": value for key, value in data.items()}
    options |= {"data.max_new_tokens": 3, "trainer.accelerator": "cpu"}
    made = Experiment.read(REPOSITORY / "experiments" / "llava15.yaml")
    return made.changed({**options, **paths})


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (path := folder / "rows.json").write_text(json.dumps(rows))
    return path


def held(fitting: Fitting) -> Any:
    (found,) = (each for each in fitting.parts.benchmarks.benchmarks if each.name == "held_out")
    return found


def test_what_a_stage_leaves_out_its_benchmark_leaves_out_too(
    small_world: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = experiment(small_world, written(tmp_path, rows)).fitting(tmp_path)
    whole.preview()
    first, second = whole.parts.stages["instruct"].data.held[:2]
    numbers = [int(sample.source.rpartition(" ")[2]) - 1 for sample in (first, second)]
    # One fault keeps a row from being read, the other from being trained on.
    del rows[numbers[0]]["conversations"]
    rows[numbers[1]]["conversations"][1]["value"] += " <|im_end|>"
    strict = experiment(small_world, written(tmp_path, rows))
    with pytest.raises(ValueError, match=r"1 of 24 rows are not usable; mend them, or set on_bad"):
        strict.fitting(tmp_path).preview()
    skipping = strict.changed({SKIP: "skip"})
    with pytest.warns(UserWarning, match="2 of 24 rows are left out") as caught:
        (fitting := skipping.fitting(tmp_path)).preview()
    assert sum("left out" in str(each.message) for each in caught) == 1
    asked = {question.source for question in held(fitting).questions}
    kept = fitting.parts.stages["instruct"].data.held
    assert asked == {sample.source for sample in kept} and first.source not in asked
    looked = check(skipping)
    assert looked.refused == 0 and check(strict).refused > 0
    (bad,) = (grid for grid in looked.grids if "bad rows" in grid.title)
    assert [line[-1] for line in bad.texts] == ["left out"] * 2


def parquet(folder: Path, rows: list[dict[str, Any]], images: Path) -> Path:
    (path := folder / "shards").mkdir()
    given = [
        {**row, "image": {"bytes": (images / row["image"]).read_bytes(), "path": None}}
        for row in rows
    ]
    for number, part in enumerate((given[:12], given[12:])):
        pq.write_table(pa.Table.from_pylist(part), path / f"train-{number:05}-of-00002.parquet")
    return path


def tar(folder: Path, rows: list[dict[str, Any]], images: Path) -> Path:
    (path := folder / "shards").mkdir()
    with tarfile.open(path / "0.tar", "w") as archive:
        for number, row in enumerate(rows):
            texts = {key: row[key] for key in ("id", "conversations")}
            members = {"json": json.dumps(texts).encode()}
            for ending, content in {**members, "png": (images / row["image"]).read_bytes()}.items():
                (info := tarfile.TarInfo(f"{number}.{ending}")).size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("write", [parquet, tar])
def test_what_is_held_out_of_shards_is_asked(
    write: Write, small_world: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    shards = write(tmp_path, rows, small_world / "images")
    made = experiment(small_world, shards, **{"paths.instruct_images": None})
    run = (fitting := made.fitting(tmp_path / "runs")).fit()
    data = fitting.parts.stages["instruct"].data
    asked = held(fitting).questions
    assert {each.images for each in asked} == {sample.images for sample in data.held}
    trained = {*image_digests(files_of(data.samples)).values()}
    assert not trained & {*image_digests(i for each in asked for i in each.images).values()}
    assert run.results["answered"]["held_out"] and run.results["benchmarks"]["held_out"]
    other = made.changed({"data.benchmarks.held_out.held_out": 0.9})
    with pytest.raises(ValueError, match=r"pictures are trained on by stages\.instruct.* 0\.9"):
        other.fitting(tmp_path).preview()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("images", "key 'images' is not read; .*'image'"),
        ("messages", "key 'messages' is not read; .*'conversations'"),
        ("folder", "is not in "),
    ],
)
def test_a_fault_of_all_rows_is_named_where_some_are_held_out(
    fault: str, said: str, small_world: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = {"images": "image", "messages": "conversations"}.get(fault)
    given = [{fault if key == other else key: value for key, value in row.items()} for row in rows]
    (tmp_path / "photos").mkdir()
    paths = {"paths.instruct_images": str(tmp_path / "photos")} if other is None else {}
    made = experiment(small_world, written(tmp_path, given), **paths)
    with pytest.raises(ValueError, match=rf"24 of 24 rows are not usable\n.*{said}"):
        made.fitting(tmp_path).preview()
    with pytest.raises(ValueError, match=rf"24 of 24 rows are not usable\n.*{said}"):
        _ = held(made.fitting(tmp_path)).questions
    assert check(made).refused == 48  # of the stage and of the benchmark


def test_what_a_stage_says_of_its_file_comes_before_what_a_benchmark_says(
    small_world: Path, tmp_path: Path
) -> None:
    asked = (small_world / "questions.jsonl").read_text()
    (path := tmp_path / "rows.jsonl").write_text(asked)
    number = len(asked.splitlines())
    fitting = experiment(small_world, path).fitting(tmp_path)
    with pytest.raises(ValueError, match=rf"{number} of {number} rows are not usable\n"):
        fitting.preview()
    with pytest.raises(ValueError, match=r"held_out is 0\.4, but these are questions"):
        _ = held(fitting).questions
