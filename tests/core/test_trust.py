"""A MODEL folder, which may be someone else's, names classes of this package; a YAML, any class."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.__main__ import main
from llava_lab.cli import fit as cli
from llava_lab.convert import templates
from llava_lab.convert.load import load_model
from llava_lab.core.trust import check_name, check_tree, only_trusted

LM = {"model_type": "llama", "vocab_size": 832, "hidden_size": 32, "intermediate_size": 48}
LM |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
MODEL = {
    "model": {
        "encoder": {
            "class_path": "llava_lab.model.encoder.clip.ClipEncoder",
            **{"name": None, "pretrained": False, "config": TOWER},
        },
        "connector": {"class_path": "llava_lab.model.connector.linear.Linear"},
        "llm": {
            "class_path": "llava_lab.model.llm.CausalLM",
            "name": None,
            "template": "v1",
            "pretrained": False,
            "config": LM,
            "tokenizer": "asset:tokenizer",
        },
    },
    "data": {"views": {"class_path": "llava_lab.data.views.pad.Pad"}},
}
OWN = """
import pathlib
pathlib.Path({mark!r}).touch()
from llava_lab.model.connector.linear import Linear
class Mine(Linear):
    pass
def make(in_width: int, out_width: int) -> Linear:
    pathlib.Path({mark!r}).touch()
    return Linear(in_width, out_width)
"""


def folder_with(path: Path, changes: dict) -> Path:
    """A MODEL folder; keys are dotted places, values what stands there."""
    config = yaml.safe_load(yaml.safe_dump(MODEL))
    for place, value in changes.items():
        *above, last = place.split(".")
        section = config
        for key in above:
            section = section.setdefault(key, {})
        section[last] = value
    path.mkdir()
    (path / "model.yaml").write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def mark(tmp_path: Path, monkeypatch) -> Path:
    """What code that is not ours touches when it runs; it can be imported from here."""
    mark = tmp_path / "was_run"
    for name in ("llava_lab_evil", "mine"):
        (tmp_path / f"{name}.py").write_text(OWN.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    for name in ("llava_lab_evil", "mine"):
        sys.modules.pop(name, None)


def test_the_folder_loads_and_its_template_can_be_changed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {})
    assert load_model(folder)[0].llm.template == "v1"
    assert load_model(folder, "qwen_1_5")[0].llm.template == "qwen_1_5"
    with pytest.raises(ValueError, match="no template 'v9'"):
        load_model(folder, "v9")


NAMES = (
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "mine.Mine",
    "llava_lab_evil.Mine",
    "llava_lab.model.weights.hashlib.sha256",
    "llava_lab.model.llm.nn.Linear",
    "llava_lab.model.llm.json",
    "llava_lab.model.llm.AutoTokenizer",
    "llava_lab.convert.load.load_model",
    "llava_lab..MLP",
    "transformers.AutoModel",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["class_path", "text"])
def test_a_folder_names_no_class_of_another_package(
    name: str, form: str, mark: Path, tmp_path: Path, capsys
) -> None:
    command = {"class_path": name, "init_args": {"command": f"touch {mark}"}}
    folder = folder_with(
        tmp_path / "model", {"model.connector": command if form == "class_path" else name}
    )
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question_id": 1, "text": "What?"}\n')
    with pytest.raises(SystemExit) as ended:
        main(["answer", str(folder), str(questions), "--out", str(tmp_path / "a.jsonl")])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and "model.yaml" in said
    assert "connector" in said and "Traceback" not in said
    assert not mark.exists() and not {"mine", "llava_lab_evil"} & sys.modules.keys()


@pytest.mark.parametrize(
    "place",
    [
        "model.encoder.config.deep.deeper",
        "model.llm.config.x",
        "data.views",
        "stages.align.loss",
        "trainer.callbacks",
        "model.encoder",
    ],
)
def test_no_depth_and_no_section_hides_a_name(place: str, mark: Path, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {place: [[{"class_path": "mine.Mine"}]]})
    with pytest.raises(ValueError, match=rf"model\.yaml: {place}.*--trust-code mine"):
        load_model(folder)
    folder = folder_with(tmp_path / "run", {place: {"class_path": "mine.Mine"}})
    shutil.move(folder / "model.yaml", folder / "config.yaml")
    with pytest.raises(ValueError, match=rf"config\.yaml: {place}.*--trust-code mine"):
        load_model(folder)
    assert not mark.exists()


def test_a_chat_template_that_costs_too_much_is_refused(
    tmp_path: Path, monkeypatch, llama_tokenizer
) -> None:
    quicker = templates.PROGRAM.replace("(5, 5)", "(2, 2)")
    monkeypatch.setattr(templates, "PROGRAM", quicker)
    llama_tokenizer.save_pretrained(tmp_path / "tokenizer")
    text = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(text)
    at = "model.llm."
    changes = {f"{at}template": "tokenizer", f"{at}tokenizer": str(tmp_path / "tokenizer")}
    changes[f"{at}config.vocab_size"] = 2000
    with pytest.raises(ValueError, match="it does more than write"):
        load_model(folder_with(tmp_path / "model", changes))


def test_a_class_of_ours_is_one_that_the_key_takes(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path / "model",
        {"model.connector.class_path": "llava_lab.tiny_world.generate.TinyWorld"},
    )
    with pytest.raises(ValueError, match="to be a subclass of"):
        load_model(folder)


def test_a_module_that_is_trusted_may_be_named(mark: Path, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", {"model.connector.class_path": "mine.Mine"})
    with pytest.raises(ValueError, match="--trust-code mine"):
        load_model(folder, trusted=["mine.other", "min"])
    model, _ = load_model(folder, trusted=["mine"])
    assert type(model.connector).__name__ == "Mine"
    # A function is none that a configuration may name, whoever is trusted.
    folder = folder_with(tmp_path / "other", {"model.connector": "mine.make"})
    mark.unlink()
    with pytest.raises(ValueError, match=r"mine\.make is no class"):
        load_model(folder, trusted=["mine"])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.system [touch {mark}]\n", "not YAML"),
        ("model: {{}}\n", "has no data"),
        ("model: 3\ndata: {{views: 4}}\n", "model.yaml: "),
        ("- 1\n", "holds no options, but list"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: &a [1, 1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n" + "c: &c [" + "*b, " * 100
         + "*b]\nd: &d [" + "*c, " * 100 + "*c]\n", "more than 100000 values"),
        ("model: {{connector: {{class_path: [os.system]}}}}\n", "is no class of llava_lab"),
        ("model: {{connector: {{class_path: 5}}}}\n", "is no class of llava_lab"),
    ],
)  # fmt: skip
def test_no_yaml_of_a_folder_runs_or_ends_in_a_traceback(
    text: str, message: str, mark: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.yaml").write_text(text.format(mark=mark))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.llm.config.hidden_size", [1]),
        ("model.llm.config.rope_parameters", "wide"),
        ("model.llm.config", "llama"),
        ("model.encoder.config.image_size", "big"),
        ("model.encoder.layer", "last"),
        ("model.newline", [1]),
        ("seed_everything", "x"),
        ("stages", 5),
        ("data.views", 5),
    ],
)
def test_a_value_of_another_type_is_one_message(place: str, value, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError)):
        load_model(folder_with(tmp_path / "model", {place: value}))


def fit(capsys, tmp_path: Path, text: str) -> str:
    """What `fit --dry-run` says of a YAML of the user's own."""
    path = tmp_path / "own.yaml"
    path.write_text(text)
    files = ["-c", f"{REPOSITORY}/experiments/llava15.yaml", "-c", str(path)]
    try:
        cli.main(["fit", *files, "--dry-run", "--print_config", f"--runs={tmp_path / 'runs'}"])
    except SystemExit as ended:
        _, error, message = capsys.readouterr().err.partition("error: ")
        return f"{ended.code}{error}{message}"
    return "0"


@pytest.mark.parametrize(
    "name", ["os.system", "mine.make", "subprocess.Popen", "mine.pathlib.Path.home"]
)
@pytest.mark.parametrize("form", ["{{class_path: {0}, init_args: {{command: touch {1}}}}}", "{0}"])
def test_a_users_yaml_names_no_plain_function(
    name: str, form: str, mark: Path, tmp_path: Path, capsys
) -> None:
    said = fit(capsys, tmp_path, f"model:\n  connector: {form.format(name, mark)}\n")
    assert said.startswith("2error: ") and "connector" in said and "Traceback" not in said
    if name == "mine.make":
        assert "is no class; a configuration names classes" in said
    if name.startswith("mine"):  # the module itself is imported: the file is the user's own
        mark.unlink()
    assert not mark.exists()


def test_a_users_yaml_names_any_subclass(mark: Path, tmp_path: Path, capsys) -> None:
    assert fit(capsys, tmp_path, "model:\n  connector: {class_path: mine.Mine}\n").startswith("0")
    said = fit(capsys, tmp_path, "model:\n  connector: {class_path: collections.OrderedDict}\n")
    assert "to be a subclass of" in said


def test_outside_of_a_folder_nothing_is_refused_by_name() -> None:
    check_name("os.system")
    with only_trusted():
        with pytest.raises(ImportError, match="nothing else is imported for a MODEL folder"):
            check_name("os.system")
        with pytest.raises(ValueError, match=r"a\[0\]\.b: "):
            check_tree({"a": [{"b": {"class_path": "os.system"}}]})
    check_name("os.system")


@pytest.mark.parametrize("verb", ["answer", "caption", "chat", "export", "prefer", "import"])
def test_every_verbs_help_shows_the_options(verb: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert "--template NAME" in said and ("--trust-code MODULE" in said) == (verb != "import")
