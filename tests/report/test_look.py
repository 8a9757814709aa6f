"""A page shows rows as the model gets them, what flipped between runs, and where answers look."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import LLAMA, REPOSITORY
from PIL import Image
from test_official import benchmark_of, lay_out
from transformers import PreTrainedTokenizerBase

from llava_lab.__main__ import main
from llava_lab.data.forest import Forest
from llava_lab.data.geometry import Layout, Pool, ViewSpec
from llava_lab.data.packing import EncodedSample, Segment
from llava_lab.data.questions import Question
from llava_lab.data.tokens import IGNORE, VISUAL
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.connector.resampler import Resampler
from llava_lab.model.llm import CausalLM
from llava_lab.report.look import asked as look_asked
from llava_lab.report.look.asked import Answered, questions_of
from llava_lab.report.look.attention import recorded
from llava_lab.report.look.pictures import maps_of, unnormalised
from llava_lab.report.look.rows import _parts, row_of, token_text
from llava_lab.report.page.configurations import Configuration
from llava_lab.report.page.samples import Asked
from llava_lab.report.runs import NAME, read

SPEC = ViewSpec(28, (4, 4), False, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.mark.parametrize("heads", [4, 2])
def test_weights_are_those_of_transformers_own_attention(heads: int) -> None:
    torch.manual_seed(0)
    config = {**LLAMA, "num_key_value_heads": heads, "initializer_range": 0.2}
    llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer").eval()
    row, queries = torch.randn(9, llm.width), torch.tensor([4, 8])
    forest = Forest((9,), (None,))
    with torch.no_grad():
        before = llm(row, forest)
        with recorded(llm, queries) as found:
            during = llm(row, forest)
        assert torch.equal(before, during) and torch.equal(before, llm(row, forest))
        llm.model.set_attn_implementation("eager")
        wanted = llm.model.get_decoder()(inputs_embeds=row[None], output_attentions=True).attentions
    assert sorted(found) == [0, 1]
    for layer, weights in found.items():
        torch.testing.assert_close(weights, wanted[layer][0][:, queries])


def test_an_answer_is_drawn_as_long_as_its_benchmark_lets_it_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest: list[int] = []
    monkeypatch.setattr(
        look_asked, "question_loader", lambda *_, **given: longest.append(given["max_new_tokens"])
    )
    own, usual = (SimpleNamespace(prompt=None, max_new_tokens=most) for most in (4, None))
    question = Question("1", (Path("a.png"),), "What?", "", (), "file")
    data = SimpleNamespace(image_position="first", template=None, max_new_tokens=64)
    asked: Any = SimpleNamespace(built=(data, SPEC), benchmark={"own": own, "usual": usual}.get)
    for name in ("own", "usual"):
        look_asked._prompt(None, None, asked, name, question)
    assert longest == [4, 64]


def test_where_answers_look_is_drawn_of_published_benchmarks_or_said_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out("scienceqa", tmp_path)
    benchmark = benchmark_of("scienceqa", tmp_path)
    of = Asked(Configuration("run", "", [read(asked(tmp_path / "run", {"4": True}) / NAME)]))
    data = SimpleNamespace(
        benchmarks=[benchmark], image_position="first", template=None, max_new_tokens=8
    )
    of._made[""] = data, SPEC
    prompts = list[Any]()
    monkeypatch.setattr(
        look_asked, "question_loader", lambda *_, **given: prompts.append(given["prompt"]) or [None]
    )
    monkeypatch.setattr(
        look_asked, "load_model", lambda *_, **__: (SimpleNamespace(view_spec=0), 0)
    )
    monkeypatch.setattr(look_asked, "attention_of", lambda *_: SimpleNamespace(text="A"))
    monkeypatch.setattr(look_asked, "_maps", lambda *_: [])
    texts = [("4", benchmark.questions[0].prompt), ("5", benchmark.questions[1].prompt), ("5", "?")]
    shown = [
        Answered("scienceqa", place, line, "right", [("run", line)], [])
        for place, (id, question) in enumerate(texts)
        for line in [{"id": id, "question": question, "prediction": "A"}]
    ]
    look_asked._attend(of, shown, 0, None)
    assert [len(each.looked) for each in shown] == [0, 1, 0]
    assert prompts == [benchmark.prompt]
    without, changed = of.notes
    assert without == "run: scienceqa/4: where its answer looks is not drawn: it has no picture"
    assert "llava_test_CQM-A.json: 0 questions have the id '5' and the text that was" in changed


VIEWS = [
    (Square(), (50, 40)),
    (AnyRes("2x2, 1x2, 2x1"), (90, 40)),
    (AnyRes("(1x1)...(3x3)", "spatial", max_tiles=2), (80, 80)),
    (AnyRes("2x2", merge="flat"), (40, 40)),
    (Frames(5, stride=2, newline="grid"), (40, 30, 5)),
]


@pytest.mark.parametrize(("views", "size"), VIEWS, ids=lambda each: type(each).__name__)
def test_maps_have_the_tokens_of_the_layout(views: Any, size: tuple[int, ...]) -> None:
    layout = views.layout(size, SPEC)
    pictures = [Image.new("RGB", (28, 28)) for _ in range(layout.views)]
    maps = maps_of(layout, pictures, SPEC)
    assert sum(each.tokens for each in maps) == layout.tokens
    firsts = [each.first for each in maps]
    assert firsts == [sum(each.tokens for each in maps[:n]) for n in range(len(maps))]
    for each, block in zip(maps, layout.blocks, strict=True):
        assert each.drawn and (each.rows, each.columns) == block.seen


def test_a_cropped_map_shows_the_part_of_its_tiles_that_has_tokens() -> None:
    views = AnyRes("2x2", base=False)
    image = Image.new("RGB", (80, 40), "red")  # padded above and below, in black
    layout, pixels = views.layout(image.size, SPEC), views.pixels(image, SPEC)
    (map,) = maps_of(layout, unnormalised(pixels, SPEC), SPEC)
    assert (map.rows, map.columns, map.newline) == (4, 8, "row")
    assert (map.width, map.height) == (56, 28)
    assert map.said == "4 x 8 + 4 newlines = 36"


def test_tokens_of_a_resampler_and_of_a_cls_feature_are_not_drawn_in_a_wrong_place() -> None:
    picture = [Image.new("RGB", (28, 28))]
    spec = ViewSpec(28, (4, 4), False, SPEC.mean, SPEC.std, Resampler(8, 8, latents=6, heads=2))
    (map,) = maps_of(Layout((spec.block(),)), picture, spec)
    assert not map.drawn and map.tokens == 6
    cls = ViewSpec(28, (4, 4), True, SPEC.mean, SPEC.std)
    (map,) = maps_of(Layout((cls.block(),)), picture, cls)
    assert map.drawn and (map.skipped, map.rows, map.columns, map.tokens) == (1, 4, 4, 17)


def test_unnormalised_pixels_are_those_of_the_file() -> None:
    image = Image.effect_noise((28, 28), 90).convert("RGB")
    (shown,) = unnormalised(Square().pixels(image, SPEC), SPEC)
    assert list(shown.getdata()) == list(image.getdata())


def test_both_answers_of_a_pair_follow_the_prompt(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    layout = Layout((SPEC.block(Pool(2)),))
    words = byte_tokenizer("a red car", add_special_tokens=False).input_ids
    prompt = [words[0], *[VISUAL] * 4, words[1]]
    segments = [
        Segment(prompt, [IGNORE] * 6),
        Segment(words[:2], words[:2], 0),
        Segment(words[2:3], words[2:3], 0),
    ]
    row = EncodedSample(segments, torch.zeros(1, 3, 28, 28), [layout], "pairs, row 1")
    (maps,) = [maps_of(layout, [Image.new("RGB", (28, 28))], SPEC)]
    parts, targets = _parts(row, byte_tokenizer, [maps])
    assert [part.name for part in parts] == ["prompt", "chosen", "rejected"] and targets == 3
    assert [(t.position, t.visual, t.target) for t in parts[0].tokens] == [
        (0, False, False),
        (1, True, False),
        (5, False, False),
    ]
    assert "2 x 2 = 4 visual tokens" in parts[0].tokens[1].text
    answers = [[(t.position, t.target) for t in part.tokens] for part in parts[1:]]
    assert answers == [[(6, True), (7, True)], [(6, True)]]


def test_frames_that_are_alike_are_one_placeholder() -> None:
    views = Frames(3, stride=2, newline="one_token")
    layout = views.layout((40, 30, 3), SPEC)
    row = EncodedSample(
        [Segment([VISUAL] * 13, [IGNORE] * 13)], torch.zeros(3, 3, 28, 28), [layout], "row 1"
    )
    maps = maps_of(layout, [Image.new("RGB", (28, 28))] * 3, SPEC, "frame")
    ((part,), _) = _parts(row, None, [maps])
    assert [(token.text, token.position) for token in part.tokens] == [
        ("image 1, frame 1 to frame 2: 2 times 2 x 2 = 4 visual tokens", 0),
        ("image 1, frame 3: 2 x 2 + 1 newline = 5 visual tokens", 8),
    ]


def test_the_first_token_of_a_row_is_no_target_whatever_its_label_is() -> None:
    row = EncodedSample([Segment([5, 6], [5, 6])], None, [], "text, row 1")
    tokenizer: Any = CausalLM(
        None, "v1", pretrained=False, config=LLAMA, tokenizer="asset:tokenizer"
    ).tokenizer
    parts, targets = _parts(row, tokenizer, [])
    assert [token.target for token in parts[0].tokens] == [False, True] and targets == 1


def test_a_space_and_a_line_break_are_seen(
    byte_tokenizer: PreTrainedTokenizerBase, llama_tokenizer: PreTrainedTokenizerBase
) -> None:
    for tokenizer in (byte_tokenizer, llama_tokenizer):
        ids = tokenizer(" red\ncar", add_special_tokens=False).input_ids
        text = "".join(token_text(each, tokenizer) for each in ids)
        assert text.replace("<0x0A>", "↵").lstrip("·") == "red↵car"
    assert token_text(byte_tokenizer(" red").input_ids[0], byte_tokenizer).startswith("·")


def asked(folder: Path, right: dict[str, bool]) -> Path:
    """A run's results and predictions, without configuration and weights."""
    value = sum(right.values()) / len(right)
    score = {"value": value, "ci95": [0.0, 1.0], "n": len(right)}
    results = {
        **{"experiment": "llava15", "scale": "tiny", "seed": 0, "stages": []},
        "benchmarks": {"questions": {"accuracy": score}},
        "cost": {"visual_tokens_mean": 36},
    }
    lines = [
        {
            **{"id": name, "question": f"What is {name}?", "category": name[0], "answer": "red"},
            "prediction": "red" if correct else "<b>blue",
            "correct": float(correct),
        }
        for name, correct in right.items()
    ]
    (folder / "predictions").mkdir(parents=True)
    path = folder / "predictions" / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    first = {"a1": True, "a2": True, "b1": False, "b2": False}
    second = {"a1": True, "a2": False, "b1": True, "b2": False}
    return [asked(tmp_path / "one", first), asked(tmp_path / "two", second)]


@pytest.mark.parametrize(
    ("flipped", "ids"),
    [("flipped", ["a2", "b1"]), ("gained", ["b1"]), ("lost", ["a2"]), ("all", None)],
)
def test_questions_are_chosen_by_what_flipped(
    runs: list[Path], flipped: str, ids: list[str] | None
) -> None:
    found = questions_of([read(run / "results.json") for run in runs], flipped=flipped)
    shown = [each.line["id"] for each in found.shown]
    assert shown == (ids or ["a1", "b1", "a2", "b2"])  # in turn of each category
    assert dict(found.counts["questions"]) == {
        **{"both right": 1, "lost": 1, "gained": 1, "both wrong": 1}
    }


def test_the_page_has_both_answers_and_asks_for_nothing(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "look.html"
    main(["look", f"--run={runs[0]}", f"--run={runs[1]}", "--out", str(out)])
    text = out.read_text()
    assert "&lt;b&gt;blue" in text and "<b>blue" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert not re.findall(r"https?://", text)
    main(["look", f"--run={runs[0]}", "--question=b1", "--out", str(out)])
    assert "where its answers look is not drawn" in out.read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "what to look at"),
        (["--run=one", "--run=two", "--run=one"], "3 runs; name one, or two"),
        (["--run=one", "--question=z9"], "--question z9: no run was asked it; there are quest"),
        (["-c", "x.yaml", "--question=a1"], "--question changes nothing here: it is about answers"),
        (["--run=one", "--layer=2"], "--layer changes nothing here: it is of attention"),
        (["--run=none"], "none does not exist"),
    ],
)
def test_what_cannot_be_looked_at_is_one_message(
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["look", *given])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "look.html").exists()


def test_a_row_of_a_stage_is_shown_with_its_picture(small_world: Path, tmp_path: Path) -> None:
    experiment = REPOSITORY / "experiments" / "llava_next.yaml"
    options = ["--tiny_world=null", f"--paths.root={small_world}", f"--out={tmp_path / 'l.html'}"]
    main(["look", "-c", str(experiment), "--stage=instruct", "--row=2", *options])
    text = (tmp_path / "l.html").read_text()
    assert "Stage instruct, row 2 of" in text and "newlines = " in text
    assert text.count("data:image/") == 3  # the file, the whole picture, the tiles


def test_a_row_that_is_not_there_and_rows_without_tokens_are_named() -> None:
    data = SimpleNamespace(read=lambda: None, encoded=None, samples=[1, 2])
    with pytest.raises(ValueError, match=r"--row 3: stages\.align has 2 rows to train on"):
        row_of(SimpleNamespace(name="align", data=data), None, 3)
    with pytest.raises(ValueError, match=r"no rows of tokens for the LM; name another --stage"):
        row_of(SimpleNamespace(name="encoder", data=SimpleNamespace()), None, 1)
