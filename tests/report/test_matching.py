"""Matching: every experiment and point of a sweep stands in exactly the rows that it is."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.sweep import Sweep
from llava_lab.report.matching import lacking, nearest, row_of
from llava_lab.report.published import Published, Row, every, published

GOLDEN = REPOSITORY / "tests" / "golden" / "configurations"
SWEEPS = REPOSITORY / "sweeps"
TABLE = Published("t/1", "T", "results", "s", "retrieved", "primary", (), (), (), ())


def nested(flat: dict[str, Any]) -> Any:
    """A golden configuration as config.yaml has it."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parts, last = key.replace("[", ".[").split(".")
        place = tree
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return _lists(tree)


def _lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree and all(key.startswith("[") for key in tree):
        return [_lists(tree[f"[{number}]"]) for number in range(len(tree))]
    return {key: _lists(value) for key, value in tree.items()}


def golden(name: str) -> Any:
    """A resolved configuration, such as that of llava15.tiny, without resolving it."""
    return nested(json.loads((GOLDEN / f"{name}.json").read_text()))


def rows(config: Any) -> set[str]:
    """Rows of all tables that a configuration is."""
    found = [(table.id, row_of(table, config)) for table in every()]
    return {f"{id}: {row.name}" for id, row in found if row}


HD = {"llava15/table3: LLaVA-1.5-HD-13B", "llava15/table4: LLaVA-1.5-HD-13B"}
LLAVA = {"llava10/table4: Full data", "llava15/table2: 0 LLaVA", "llava15/table4: LLaVA-7B"}
V15 = {
    *(
        "llava15/table2: 8 + ShareGPT",
        "llava15/table3: LLaVA-1.5-7B",
        "llava15/table4: LLaVA-1.5-7B",
    ),
    *("llava15/model_zoo: LLaVA-1.5-7B", "prismatic/appendix_b3: LLaVA v1.5 7B (official)"),
}
NEXT = {
    *("llava_next/vqa: LLaVA-NeXT-Vicuna-7B", "llava_next/main: LLaVA-NeXT-Vicuna-7B"),
    *("llava_next/model_zoo: LLaVA-NeXT-Vicuna-7B", "llava_next_ablations/encoder: CLIP-L at 336"),
    *("llava_next_ablations/alignment_data: 558K", "llava_next_ablations/stage15: 558K"),
    "llava_next_ablations/stage15_chinese: BLIP558K",
    *(
        "llava_next_stronger_llms/main: Vicuna-1.5-7B",
        "llava_next_stronger_llms/mmlu: Vicuna1.5 (7B)",
    ),
    "open_llava_next/readme: llava-next-vicuna-7b (official)",
}
TILES = {
    *(
        "llava_next_ablations/grids: 2x2, (4+1) x 729",
        "llava_next_ablations/quarter: 2x2, (4+1) x 729",
    ),
    "llava_next_ablations/inference_grids: 2x2, (4+1) x 729; used: 2x2, (4+1) x 729",
    "llava_next_ablations/pooling: 2x2, (4+1) x 729",
}
IMAGE = {
    "llava_next_video/main: LLaVA-NeXT-Image (7B), 4096 and 4096",
    *(
        "llava_next_video/representation: 12x12 x 16 frames",
        "slowfast_llava/table1: LLaVA-NeXT-Image 7B",
    ),
}
LLAMA = {
    *("llava_next_stronger_llms/main: LLaMA3-8B", "llava_next_stronger_llms/expanded: LLaMA3-8B"),
    "llava_next_stronger_llms/mmlu: Llama 3 (8B)",
    "llava_next_stronger_llms/wilder: LLaMA3-LLaVA-Next-8B",
    "open_llava_next/readme: llava-next-llama3-8b (official)",
}


def large(size: str) -> set[str]:
    return {
        f"llava_next_ablations/llm_size: {size}",
        *(f"llava_next_stronger_llms/{each}: Qwen1.5-{size}" for each in ("main", "expanded")),
        *(
            f"llava_next_stronger_llms/mmlu: Qwen1.5 ({size})",
            f"llava_next_stronger_llms/wilder: LLaVA-Next-{size}",
        ),
    }


def video(kind: str, length: str) -> set[str]:
    return {
        f"llava_next_interleave/video: LLaVA-NeXT-{kind} (7B)",
        f"llava_next_video/main: LLaVA-NeXT-{kind} (7B), {length}",
        *(f"slowfast_llava/{each}: LLaVA-NeXT-{kind} 7B" for each in ("table1", "table3")),
        f"videollama2/tables10_11: LLaVA-NeXT-{kind} 7B",
    }


SFT = video("Video", "4096 and 8192") | {
    *("vdc/readme: LLaVA-NeXT-Video-7B", "llava_next_video/training_recipe: Mixed, batches mixed")
}
# What all scales have, what the paper's has beside it, and what the others have.
EXPECTED: dict[str, tuple[set[str], set[str], set[str]]] = {
    "llava10": (
        LLAVA,
        set(),
        {"llava10/table8: Best: layer before the last, reasoning first, aligned, 13B"},
    ),
    "llava15": (V15, set(), {"tinyllava/figure6: MLP"}),
    "llava15_hd": (HD, set(), {"llava15/section4.2: Tiles and the whole picture at 224 px"}),
    "llava_next": (NEXT, set(), TILES),
    "llava_next_image_on_video": (IMAGE, set(), {"llava_next_video/training_recipe: Zero-shot"}),
    "llava_next_llama3_8b": (LLAMA, set(), set()),
    "llava_next_qwen15_72b": (set(), large("72B"), set()),
    "llava_next_qwen15_110b": (set(), large("110B"), set()),
    "llava_next_video": (SFT, set(), set()),
    "llava_next_video_dpo": (video("Video-DPO", "4096 and 8192"), set(), set()),
    "tiny_parts": (set(), set(), set()),
}


def test_every_experiment_has_its_rows_here() -> None:
    assert EXPECTED.keys() == {path.stem for path in (REPOSITORY / "experiments").glob("*.yaml")}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_an_experiment_stands_in_exactly_its_rows(path: Path) -> None:
    name, _, scale = path.stem.partition(".")
    both, paper, others = EXPECTED[name]
    assert rows(golden(path.stem)) == both | (paper if scale == "paper" else others)


def points(file: str, chosen: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Names and resolved configurations of a sweep's points, or of those that are chosen."""
    sweep = Sweep.read(SWEEPS / f"{file}.yaml")
    for point in sweep.points():
        label = ", ".join(point.labels.values())
        if point.seed == sweep.seeds[0] and (chosen is None or label in chosen):
            yield label, Experiment.read_layers(sweep.layers(point)).config


PLACES: dict[str, dict[str, dict[str, str]]] = {
    "grid_size": {"llava_next_ablations/grids": {"2x2": "2x2, (4+1) x 729"}},
    "pooling_stride": {
        "llava_next_video/representation": {
            "4 unpooled": "24x24 x 4 frames",
            "16 by 2": "12x12 x 16 frames",
            "8 unpooled, factor 2": "24x24 x 8 frames",
            "32 by 2, factor 2": "12x12 x 32 frames",
            "16 unpooled, factor 4": "24x24 x 16 frames",
            "64 by 2, factor 4": "12x12 x 64 frames",
        }
    },
    "data_kinds": {
        "llava10/table4": {
            "all": "Full data",
            "detail and reasoning": "Detail + complex",
            "conversation, 5 % detail, 10 % reasoning": "Conversation + 5% detail + 10% complex",
            "conversation": "Conversation only",
            "none": "No instruction tuning",
        }
    },
    "base_view": {
        "llava15/section4.2": {
            "tiles alone": "Tiles only",
            "tiles and whole": "Tiles and the whole picture at 224 px",
        }
    },
    "resolution": {
        "llava15/table2": {"224 px": "3 + MLP connector", "336 px": "8 + ShareGPT"},
    },
    "alignment": {"llava15/table2": {"first": "8 + ShareGPT"}},
    "preference": {
        "llava_next_video/main": {
            "before": "LLaVA-NeXT-Video (7B), 4096 and 8192",
            "preferences": "LLaVA-NeXT-Video-DPO (7B), 4096 and 8192",
        }
    },
    "inference_grids": {
        "llava_next_ablations/inference_grids": {
            "2x2, 1x1": "2x2, (4+1) x 729; used: 1x1, (1+1) x 729",
            "2x2, 2x2": "2x2, (4+1) x 729; used: 2x2, (4+1) x 729",
        }
    },
    "video_recipe": {
        "llava_next_video/training_recipe": {
            **{"zero-shot": "Zero-shot", "continued": "Continued on videos"},
            **{"batches split": "Mixed, batches split", "batches mixed": "Mixed, batches mixed"},
        }
    },
    "dpo_beta": {
        "llava_next_video/main": {
            "before": "LLaVA-NeXT-Video (7B), 4096 and 8192",
            "0.1": "LLaVA-NeXT-Video-DPO (7B), 4096 and 8192",
        }
    },
    "connector": {
        "llava15/table2": {"mlp2": "8 + ShareGPT"},
        "tinyllava/figure6": {
            **{"mlp2": "MLP", "resampler, 36": "Resampler", "resampler, 9": "Resampler"}
        },
    },
    "encoder_layer": {"llava15/table2": {"-2": "8 + ShareGPT"}, "llava10/table8": {}},
    "linear_scaling": {"llava_next_video/main": {}},
    "pooling_stride_trained": {
        "llava_next_video/main": {"16 by 2": "LLaVA-NeXT-Video (7B), 4096 and 8192"}
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("file", PLACES)
def test_points_of_a_sweep_stand_in_exactly_their_rows(file: str) -> None:
    assert placed(file) == PLACES[file]


@pytest.mark.parametrize(
    ("file", "point"), [("grid_size", "2x2"), ("pooling_stride", "4 unpooled")]
)
def test_a_point_of_the_ablations_stands_in_the_row_that_it_reproduces(
    file: str, point: str
) -> None:
    expected = {id: {point: of[point]} for id, of in PLACES[file].items()}
    assert placed(file, [point]) == expected


def placed(file: str, chosen: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {id: {} for id in PLACES[file]}
    for label, config in points(file, chosen):
        for table in every():  # which refuses a point in two rows of any table
            if (row := row_of(table, config)) and table.id in found:
                found[table.id][label] = row.name
    return found


def test_every_sweep_is_looked_at() -> None:
    assert PLACES.keys() <= {path.stem for path in SWEEPS.glob("*.yaml")}


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"resolution": 224}, "3 + MLP connector"),
        (
            {"resolution": 224, "model.connector": {"class_path": "my.Linear"}},
            "2 + format prompt",
        ),
        ({"model.connector": {"class_path": "my.Linear"}}, None),
        ({"stages.instruct.data.sources": [{"path": "a/conversation_58k.json"}]}, None),
        ({"stages.instruct.lora": {"rank": 8}}, None),
    ],
)
def test_a_row_is_what_a_run_is_not_its_name(changes: dict[str, Any], row: str | None) -> None:
    config = {**golden("llava15.tiny"), "experiment": "mine"}
    for key, value in changes.items():
        *parts, last = key.split(".")
        place = config
        for part in parts:
            place = place[part]
        place[last] = value
    found = row_of(published("llava15/table2"), config)
    assert (found and found.name) == row


def test_grids_are_compared_as_what_they_hold() -> None:
    row = Row("r", {}, everywhere={"data.views.grids": "(1x1)...(2x2)"})
    for grids, same in (("1x1, 2x1, {1,2}x2", True), ("2x2", False), ([[336, 672]], False)):
        config = {"scale": "tiny", "data": {"views": {"grids": grids}}}
        assert (lacking(row, config) == []) is same


def test_conditions() -> None:
    config = {
        **{"scale": "tiny", "a": {"class_path": "x.y.Z", "depth": 2.0, "on": True}, "none": None},
        "stages": {
            "align": {},
            "instruct": {"data": {"sources": [{"path": "p/b.json"}, {"path": "a1"}]}},
        },
    }
    data = "stages.instruct.data.sources"
    for conditions, held in (
        ({"a": "Z", "a.depth": 2, "a.on": True, "none": None, "lost.key": None}, True),
        ({"a.depth": {"any": [1, 2]}, "a": "*", "stages": ["align", "instruct"]}, True),
        ({data: ["a*", "b.json"]}, True),
        ({data: ["a*"]}, False),
        ({data: ["a*", "a*"]}, False),
        ({"stages": ["align"]}, False),
        ({"a": "z"}, False),
        ({"a.on": 1}, False),
        ({"none": "*"}, False),
        ({"a.depth": None}, False),
    ):
        row = Row("r", {}, everywhere=conditions)
        assert (lacking(row, config) == []) is held, conditions


def test_two_rows_for_one_run_are_a_mistake_of_the_file() -> None:
    two = (Row("a", {}, everywhere={}), Row("b", {}, everywhere={"resolution": 336}))
    table = Published(**{**vars(TABLE), "rows": two})
    with pytest.raises(ValueError, match="t/1: 'a' and 'b' take the same configuration"):
        row_of(table, {"scale": "tiny", "resolution": 336})


def test_published_sizes_are_asked_for_where_nothing_stands_in() -> None:
    table = published("llava15/table2")
    config = golden("llava15.paper")
    config["model"]["llm"]["name"] = "/models/vicuna-13b-v1.5"
    assert (row := row_of(table, config)) and row.name == "9 + larger LM"
    config["model"]["llm"]["name"] = "Qwen/Qwen3-4B"
    assert row_of(table, config) is None
    near = nearest(table, config)
    assert near and near[1] == ["model.llm.name is Qwen/Qwen3-4B, not *vicuna-7b-v1.5"]
    config = golden("llava15.paper")
    config["stages"]["instruct"]["data"]["sources"][0]["sampling"] = "first:320"
    near = nearest(table, config)
    assert near and near[1] == ["stages.instruct reads a part of its data"]
    config = {**golden("llava15.paper"), "resolution": 224}
    assert row_of(table, config) is None  # row 3, but for its data


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image_position", "last", "is last, not first"),
        ("rope_factor", 2.0, "is 2.0, not 1"),
        ("template", "v0", "is v0, not null"),
    ],
)
def test_a_run_that_asks_every_benchmark_otherwise_is_no_published_row(
    key: str, value: Any, said: str
) -> None:
    config = golden("llava15.paper")
    config["data"][key] = value
    assert rows(config) == set()
    near = nearest(published("llava15/table2"), config)
    assert near and near[1] == [f"data.{key} {said}"]


def test_conditions_name_options_that_there_are() -> None:
    """A slip in a key would keep every run out of its row without a word."""
    known = {key for path in GOLDEN.glob("*.json") for key in json.loads(path.read_text())}
    known |= {key.removesuffix(".class_path") for key in known}
    known |= {"stages", *(key.partition("[")[0] for key in known)}
    # Of the sweeps' own stage, and of pools, which no experiment has.
    known |= {"stages.video.data.sources"}
    known |= {
        f"{at}.views.pool.{key}"
        for at in ("data", "stages.instruct.data")
        for key in ("stride", "mode", "position")
    }
    for table in every():
        for row in table.rows:
            assert {*(row.everywhere or {}), *(row.paper or {})} <= known, (table.id, row.name)


def test_a_row_may_say_which_part_of_a_source_is_read() -> None:
    """At the paper scale, where all is read otherwise, as well as at the tiny one."""
    table = published("llava10/table4")
    for scale in ("paper", "tiny"):
        config = golden(f"llava10.{scale}")
        stage = config["stages"]["instruct"]["data"]
        parts = {"conversation_58k": "all", "detail_23k": "random:5%"}
        parts["complex_reasoning_77k"] = "random:10%"
        (first, *_), stage["max_steps"] = stage["sources"], None
        stage["sources"] = [
            {**first, "path": f"a/{name}.json", "sampling": part} for name, part in parts.items()
        ]
        row = row_of(table, config)
        assert row and row.name == "Conversation + 5% detail + 10% complex"
        stage["sources"][1]["sampling"] = "random:50%"
        assert row_of(table, config) is None
