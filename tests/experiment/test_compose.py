"""Layers become one tree before any class is looked at; references are resolved in it last."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.experiment.compose import (
    differences,
    expand_keys,
    long,
    merge,
    override,
    read_layer,
    read_options,
    read_value,
    short,
    write_value,
)
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.layers import read_layers
from llava_lab.experiment.references import resolve

MLP, LINEAR = "pkg.MLP", "pkg.Linear"


def written(folder: Path, **texts: str) -> dict[str, Path]:
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(text)
    return paths


def test_both_forms_are_one_tree() -> None:
    in_full = {"a": [{"class_path": MLP, "init_args": {"depth": 2, "in": {"class_path": LINEAR}}}]}
    brief = {"a": [{"class_path": MLP, "depth": 2, "in": {"class_path": LINEAR}}]}
    assert short(in_full) == short(brief) == brief
    assert short(long(brief)) == brief
    with pytest.raises(ValueError, match=r"a\[0\]: depth stands inside of init_args and beside it"):
        short({"a": [{"class_path": MLP, "depth": 1, "init_args": {"depth": 2}}]})


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [1, 2]}, {"a+": [3]}, {"a": [1, 2, 3]}),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": {"1": {"b": 3}}}, {"a": [{"b": 1}, {"b": 3}]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        # The same class keeps its arguments, another one takes none of them.
        (
            {"a": {"class_path": MLP, "depth": 2}},
            {"a": {"class_path": MLP, "bias": True}},
            {"a": {"class_path": MLP, "depth": 2, "bias": True}},
        ),
        (
            {"a": {"class_path": MLP, "depth": 2}},
            {"a": {"class_path": LINEAR}},
            {"a": {"class_path": LINEAR}},
        ),
        ({"a": {"class_path": MLP, "depth": 2}}, {"a": LINEAR}, {"a": {"class_path": LINEAR}}),
        ({"a": MLP}, {"a": {"depth": 3}}, {"a": {"class_path": MLP, "depth": 3}}),
        # What names no class keeps what it has where one is named.
        ({"a": {"depth": 2}}, {"a": {"class_path": MLP}}, {"a": {"depth": 2, "class_path": MLP}}),
    ],
)
def test_later_layers_win(base: dict, over: dict, expected: dict) -> None:
    assert resolve(merge(base, over)) == expected


BLOCKS = {
    "flat": {"stages": {"a": {"lr": {"encoder.blocks.0-3": 1e-7}}}},
    "nested": {"stages": {"a": {"lr": {"encoder": {"blocks": {"0-3": 2e-7}}}}}},
    "typed": {"stages.a.lr.encoder.blocks.0-3": 3e-7},
    "part": {"stages.a.lr.encoder": 1e-3},
}


@pytest.mark.parametrize(
    ("names", "rates"),
    [
        (("flat", "typed", "nested"), {"encoder.blocks.0-3": 2e-7}),
        (("nested", "flat", "typed"), {"encoder.blocks.0-3": 3e-7}),
        (("flat", "typed", "flat"), {"encoder.blocks.0-3": 1e-7}),
        # A rate of a part and one of some of its blocks stand beside each other.
        (("part", "nested"), {"encoder": 1e-3, "encoder.blocks.0-3": 2e-7}),
        (("typed", "part"), {"encoder": 1e-3, "encoder.blocks.0-3": 3e-7}),
    ],
)
def test_a_rate_is_one_option_however_it_is_spelled(
    names: tuple[str, ...], rates: dict, tmp_path: Path
) -> None:
    tree: dict = {}
    for name in names:
        (path := tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(BLOCKS[name]))
        tree = merge(tree, read_layer(path))
    assert resolve(tree)["stages"]["a"]["lr"] == rates
    both = {**BLOCKS["flat"]["stages"]["a"]["lr"], **BLOCKS["nested"]["stages"]["a"]["lr"]}
    with pytest.raises(ValueError, match=r"lr: encoder\.blocks\.0-3 stands there twice, in two"):
        read_options({"stages": {"a": {"lr": both}}})


def test_a_class_by_its_name_alone_is_the_one_in_full() -> None:
    full = {"class_path": "llava_lab.model.connector.mlp.MLP", "depth": 3}
    assert merge({"a": full}, {"a": {"class_path": "MLP"}})["a"]["depth"] == 3
    assert "depth" not in merge({"a": full}, {"a": {"class_path": "Linear"}})["a"]
    assert "depth" not in merge({"a": {**full, "class_path": "my.MLP"}}, {"a": "MLP"})["a"]


def test_a_date_is_a_text(tmp_path: Path) -> None:
    (path := tmp_path / "mine.yaml").write_text("experiment: 2026-11-27\n")
    assert read_layer(path) == override("experiment=2026-11-27") == {"experiment": "2026-11-27"}


def test_what_is_appended_waits_for_the_list_of_an_earlier_layer() -> None:
    both = merge({"a+": [2]}, {"a+": [3]})
    assert resolve(merge({"a": [1]}, both)) == {"a": [1, 2, 3]}
    assert resolve(both) == {"a": [2, 3]}
    assert resolve(merge(both, {"a": [4]})) == {"a": [4]}
    with pytest.raises(ValueError, match=r"a\+: \{'b': 1\} is no list; nothing"):
        merge({"a": {"b": 1}}, {"a+": [1]})
    for value in (3, "x", None, {"name": "x"}):
        with pytest.raises(ValueError, match=r"a\+: .* is no list; put brackets around it"):
            merge({"a": [1]}, {"a+": value})


def test_an_entry_of_a_list_is_found_by_its_name_or_number() -> None:
    entries = {"a": [{"name": "x", "b": 1}, {"b": 2}, {"name": "y", "b": 3}]}
    changed = merge(entries, {"a": {"y": {"b": 4}, "0": {"c": 5}}})
    assert changed == {"a": [{"name": "x", "b": 1, "c": 5}, {"b": 2}, {"name": "y", "b": 4}]}
    with pytest.raises(ValueError, match=r"number: 0\.z; or by its name: x, y"):
        merge(entries, {"a": {"z": {"b": 4}}})


def test_an_option_of_a_list_names_its_entry() -> None:
    with pytest.raises(ValueError, match=r"list of 1 entries; name the entry by its number: 0\.b"):
        merge({"a": [{"b": 1}]}, {"a": {"b": 2}})


def test_files_extend_files_and_stand_for_classes(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        base="a: {b: 1, c: 2}\npart: connector.yaml\n",
        connector=f"class_path: {MLP}\ninit_args: {{depth: 2}}\n",
        other=f"class_path: {MLP}\nbias: false\n",
        mine="extends: base.yaml\na.b: 3\n",
        theirs="extends: [base.yaml, mine.yaml]\npart: other.yaml\n",
    )
    assert resolve(read_layer(files["mine"])) == {
        "a": {"b": 3, "c": 2},
        "part": {"class_path": MLP, "depth": 2},
    }
    # A file that stands for a class is all of it, also where the class is the same.
    assert resolve(read_layer(files["theirs"]))["part"] == {"class_path": MLP, "bias": False}
    assert resolve(read_layer(files["theirs"]))["a"] == {"b": 3, "c": 2}


def test_files_are_extended_in_their_order_as_c_files_are(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        first=f"part: {{class_path: {MLP}, depth: 2}}\n",
        second=f"part: {{class_path: {LINEAR}, bias: true}}\n",
        mine=f"extends: [first.yaml, second.yaml]\npart: {{class_path: {MLP}, width: 1}}\n",
        alone=f"part: {{class_path: {MLP}, width: 1}}\n",
        mixed="part: {extends: [part.yaml, '${other}'], width: 1}\n",
    )
    tree: dict = {}
    for name in ("first", "second", "alone"):
        tree = merge(tree, read_layer(files[name]))
    assert read_layer(files["mine"]) == tree == {"part": {"class_path": MLP, "width": 1}}
    files |= written(tmp_path, part=f"class_path: {MLP}\ndepth: 2\n")
    with pytest.raises(ValueError, match=r"'\$\{other\}' is no file; a reference stands alone"):
        read_layer(files["mixed"])


def test_a_file_that_extends_one_of_a_class_stands_for_that_class(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        part=f"class_path: {MLP}\ndepth: 2\n",
        wider="extends: part.yaml\nwidth: 3\n",
        mine="model: {connector: wider.yaml}\n",
    )
    found = resolve(read_layer(files["mine"]))["model"]["connector"]
    assert found == {"class_path": MLP, "depth": 2, "width": 3}


def test_a_name_with_a_hyphen_is_referred_to_as_any_other() -> None:
    tree = {"stages": {"second-one": {"views": {"class_path": MLP, "grid": 1}}}}
    tree = merge(tree, {"views": "${stages.second-one.views}"})
    assert resolve(merge(tree, {"views": {"grid": 2}}))["views"] == {"class_path": MLP, "grid": 2}


def test_extends_null_begins_with_nothing() -> None:
    base = {"config": {"theta": 1e6, "width": 2}}
    over = {"config": {"extends": None, "width": 3}}
    assert resolve(merge(base, over)) == {"config": {"width": 3}}


def test_a_part_may_extend_another_part_wherever_that_is_changed() -> None:
    tree = {
        "train": {"views": {"class_path": MLP, "grid": 1, "base": True}},
        "ask": {"views": "${train.views}"},
    }
    tree = merge(tree, {"ask": {"views": {"grid": 5}}})
    tree = merge(tree, {"train": {"views": {"base": False}}})
    assert resolve(tree) == {
        "train": {"views": {"class_path": MLP, "grid": 1, "base": False}},
        "ask": {"views": {"class_path": MLP, "grid": 5, "base": False}},
    }


@pytest.mark.parametrize(
    ("tree", "key", "found"),
    [
        ({"a": {"k": [1]}, "b": {"extends": "${a}", "k+": [2]}}, "b", {"k": [1, 2]}),
        ({"a": {"k+": [1]}, "b": {"extends": "${a}", "k+": [2]}}, "b", {"k": [1, 2]}),
        (
            {"a": {"d": {"k": [1]}}, "b": {"extends": "${a}", "d": {"k+": [2]}}},
            "b",
            {"d": {"k": [1, 2]}},
        ),
        # What stands in a part that extends another is all of it, on the way as well.
        (
            {
                "a": {"x": {"p": 1, "q": 2}},
                "b": {"extends": "${a}", "x": {"p": 3}},
                "c": {"extends": "${b.x}"},
            },
            "c",
            {"p": 3, "q": 2},
        ),
        (
            {"a": {"d": {"x": 1}}, "b": {"extends": "${a}", "d": {"extends": None, "y": 2}}},
            "b",
            {"d": {"y": 2}},
        ),
        ({"a": [1], "b": {"extends": "${a}"}}, "b", [1]),
    ],
)
def test_what_is_said_beside_extends_is_a_later_layer(tree: dict, key: str, found: object) -> None:
    assert resolve(tree)[key] == found


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"a": "${b.c}", "b": {"cc": 1}},
            r"a: \$\{b\.c\}: there is no option 'b\.c'; did you mean",
        ),
        ({"a": {"extends": "${a}"}}, "extends itself"),
        ({"a": {"extends": "${b}"}, "b": {"extends": "${a}"}}, "extends itself"),
        ({"a": {"extends": "${c}"}}, "there is no option 'c'"),
        ({"a": {"extends": "${b}"}, "b": "${c}", "c": "${b}"}, "extends itself"),
        ({"a": "${b}", "b": "${a}"}, "a"),
    ],
)
def test_a_reference_that_cannot_be_resolved_is_named(tree: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(tree)


def test_a_file_that_extends_itself_is_refused(tmp_path: Path) -> None:
    files = written(tmp_path, a="extends: b.yaml\n", b="extends: a.yaml\n")
    for read in (read_layer, Experiment.read):
        with pytest.raises(ValueError, match="extends itself"):
            read(files["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("world: {root: x}", "world: it is called tiny_world"),
        ("stages: {align: {recipe: {rates: {llm: 1}}}}", r"stages\.align\.recipe: .*beside data"),
        ("stages.align.rate_scale: 3", r"stages\.align\.rate_scale: it is called lr_scale"),
        ("data: {policy: {class_path: x.Y}}", r"data\.policy: it is called views"),
        ("stages: {a: {data: {init_args: {policy: 1}}}}", r"stages\.a\.data\.policy: .* views"),
    ],
)
def test_old_names_are_refused_with_the_new_ones(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"old.yaml: {message}"):
        read_layer(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("5e-4", 5e-4),
        ("null", None),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("{2x2, 1x{2,3}, {2,3}x1}", "{2x2, 1x{2,3}, {2,3}x1}"),
        ("{2x2, 1x2}", "{2x2, 1x2}"),
        ("(1x1)...(3x3)", "(1x1)...(3x3)"),
        ("a: b: c", "a: b: c"),
        # A text is what was typed.
        ("Which # is it?", "Which # is it?"),
        ("# x", "# x"),
        ("5 # dogs", "5 # dogs"),
        ("[1] # dogs", "[1] # dogs"),
        ("&a b", "&a b"),
        ("&a 5", "&a 5"),
        ("\nAnswer with one word.", "\nAnswer with one word."),
        ("a\nb", "a\nb"),
        ("a\n\nb ", "a\n\nb "),
        ("", None),
        ('"a # b\\n"', "a # b\n"),
    ],
)
def test_values_of_the_command_line(text: str, value: object) -> None:
    assert read_value(text) == value
    assert override(f"x.init_args.y={text}") == {"x": {"y": value}}


@pytest.mark.parametrize(
    "value",
    [
        1,
        1e-5,
        "1",
        "null",
        "a b",
        "{2x2, 1x2}",
        [1, "x"],
        None,
        True,
        "a: 😀",
        ["😀", "é"],
        "a # b",
        " a\n",
        "# a",
        "",
    ],
)
def test_a_value_survives_the_command_line(value: object) -> None:
    assert read_value(write_value(value)) == value


def test_own_files_of_a_scale_follow_the_line_of_experiments(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: {REPOSITORY}/experiments/llava_next_video.yaml\nexperiment: mine\n")
    small = REPOSITORY / "configs" / "scale" / "tiny.yaml"
    tree: dict = {}
    for layer in read_layers([mine, small]):
        tree = merge(tree, layer)
    assert tree["experiment"] == "mine" and tree["stages"]["instruct"]["data"]["max_steps"] == 1000


def test_what_a_scale_replaces_of_an_experiment_of_ones_own_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The LM that the file names was another one, and a line said that the scale is tiny."""
    extends = f"extends: {REPOSITORY / 'experiments' / 'llava15.yaml'}"
    own = written(
        tmp_path,
        mine=f"{extends}\nexperiment: mine\nmodel.llm.name: my/llm\nmodel.connector.depth: 3",
    )["mine"]
    said = f"the tiny scale replaces model.llm.name of {own}; what should stand at any scale"
    tree = read_layers([own])
    assert said in capsys.readouterr().err
    read_layers([own])
    read_layers([REPOSITORY / "experiments" / "llava15.yaml"])
    assert "replaces" not in capsys.readouterr().err  # said once; nothing of what ships
    (own.parent / "behind.yaml").write_text("model.llm.name: my/llm")
    assert len(read_layers([own, own.parent / "behind.yaml"])) == len(tree) + 1


def test_a_scale_is_a_file_and_no_name() -> None:
    llava15 = REPOSITORY / "experiments" / "llava15.yaml"
    with pytest.raises(ValueError, match=r"scale=small: .* -c configs/scale/small\.yaml"):
        read_layers([llava15, "scale=small"])


def test_a_file_of_a_class_is_no_layer() -> None:
    path = REPOSITORY / "configs" / "connector" / "mlp.yaml"
    with pytest.raises(ValueError, match=r"describes a .*MLP.*such as --model\.connector="):
        read_layers([path])
    (layer,) = read_layers([f"model.connector={path}"])
    assert layer["model"]["connector"]["class_path"].endswith("MLP")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("data: {metric: {objects: {1: []}}}")
    with pytest.raises(ValueError, match=r"numbers\.yaml: data\.metric\.objects: the name 1 is no"):
        read_layer(path)


@pytest.mark.parametrize("name", ["", ".", "nowhere.yaml", "experiments/nowhere.yaml"])
def test_what_is_no_file_is_named(name: str) -> None:
    with pytest.raises((OSError, ValueError), match=name or r"\."):
        Experiment.read(name)


def test_a_class_file_that_ships_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = Experiment.read("experiments/llava15.yaml")
    found = experiment.changed({"model.connector": "configs/connector/mlp.yaml"}).config
    assert found["model"]["connector"]["class_path"].endswith("mlp.MLP")


def test_dotted_keys_stand_for_nested_ones() -> None:
    assert expand_keys({"a.b": 1, "a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    with pytest.raises(ValueError, match="a name is missing between its dots"):
        expand_keys({"a..b": 1})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a.b": 5, "a": {"b": 7}}, r"^a\.b: stands there twice, .*: 5 under a\.b and 7 under a;"),
        ({"a": {"b": 7}, "a.b": 7}, r"^a\.b: stands there twice"),
        (
            {"a.b.c": 5, "a": {"b": [1]}},
            r"^a\.b\.c: stands there twice, .*: 5 under a\.b\.c and \[1",
        ),
        ({"a": {"b": 5}, "a.b.c": 7}, r"^a\.b\.c: stands there twice"),
        ({"s.lr.part.x": 1, "s": {"lr": {"part": 2}}}, r"^s\.lr\.part\.x: stands there twice"),
    ],
)
def test_a_key_that_stands_there_in_two_spellings_is_refused(
    tree: dict, message: str, tmp_path: Path
) -> None:
    """The later one won, without a word."""
    with pytest.raises(ValueError, match=message):
        expand_keys(tree)
    (path := tmp_path / "twice.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(ValueError, match=message.replace("^", "twice.yaml: ")):
        read_layer(path)


def test_a_class_and_its_options_may_be_said_apart() -> None:
    for tree in ({"a": "Linear", "a.b": 1}, {"a": {"b": 1}, "a.c.d": 1}, {"a": [{}], "a.0.b": 1}):
        assert expand_keys(tree)


def test_differences_are_of_leaves() -> None:
    left, right = {"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"b": 2, "c": [1, 2]}, "e": [{}]}
    assert differences(left, right) == [("a.b", 1, 2), ("d", 1, None), ("e[0]", None, {})]


def test_an_experiment_is_a_value() -> None:
    first = Experiment.read(REPOSITORY / "experiments" / "llava15.yaml")
    second = first.changed({"model.connector.depth": 3})
    assert first.config["model"]["connector"]["depth"] == 2
    assert second.config["model"]["connector"]["depth"] == 3
    assert [key for key, *_ in differences(first.config, second.config)] == [
        "model.connector.depth"
    ]
    assert Experiment(second.config).config == second.config
    assert first.run().folder != second.run().folder
    assert first.changed({"trainer.devices": 2}).run().folder == first.run().folder


def test_an_experiment_holds_plain_data_and_classes() -> None:
    from llava_lab.model.connector.linear import Linear

    first = Experiment.read(REPOSITORY / "experiments" / "llava15.yaml")
    assert first.changed({"model.connector": Linear}).config["model"]["connector"] == {
        "class_path": "llava_lab.model.connector.linear.Linear"
    }
    with pytest.raises(ValueError, match="is no plain data; give a class and its arguments"):
        first.changed({"model.connector": Linear(2, 3)})


def test_an_experiments_text_is_the_experiment(tmp_path: Path) -> None:
    first = Experiment.read(REPOSITORY / "experiments" / "llava_next_video_dpo.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(first.text())
    again = Experiment.read(path)
    assert again.config == first.config and again.run().folder == first.run().folder
