"""The page: whole, safe and small; what it draws is what plotly takes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from test_official import benchmark_of, given, lay_out, made
from test_running import rule
from test_table import results, score, write

from llava_lab.data.geometry import ViewSpec
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.evaluate.official import Columns, Labels
from llava_lab.experiment.experiment import Experiment
from llava_lab.report.claim_text import effects
from llava_lab.report.claims import Claims, read_claims
from llava_lab.report.finding_file import read_findings
from llava_lab.report.page.configurations import configurations
from llava_lab.report.page.curves import _thinned, curves, ways
from llava_lab.report.page.plots import forest, losses, on_the_way, tradeoffs
from llava_lab.report.page.samples import Asked, _moved, samples
from llava_lab.report.page.tables import all_scores, overview
from llava_lab.report.page.tiles import tiles_of
from llava_lab.report.page.write import page, write_page
from llava_lab.report.runs import RunResults, read, tokens

CONFIG = """experiment: llava15
scale: tiny
seed_everything: {seed}
model:
  connector: {{class_path: llava_lab.model.connector.{kind}, depth: {depth}}}
"""
VIEW = ViewSpec(28, (4, 4), False, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
VOID = {"meta", "br", "link", "input", "img", "rect", "image"}


class Reader(HTMLParser):
    """What a page has: elements that are closed in order, ids, and what it points to."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.ids += [value for key, value in attrs if key == "id" and value]
        links = ("href", "src", "action", "xlink:href", "data", "poster")
        self.links += [value for key, value in attrs if key in links and value]
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def run(folder: Path, seed: int, kind: str = "mlp.MLP", depth: int = 2, **more: Any) -> RunResults:
    made = results(seed, **more)
    config = CONFIG.format(seed=seed, kind=kind, depth=depth)
    return read(write(folder / f"{kind}-{depth}-{seed}", made, config))


def predicted(of: RunResults, benchmark: str, lines: list[dict[str, Any]]) -> None:
    path = of.path.parent / "predictions" / f"{benchmark}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(id: str, category: str, correct: float, **more: Any) -> dict[str, Any]:
    given = {"id": id, "question": f"{id}?", "category": category, "answer": "yes"}
    return {**given, "prediction": "yes" if correct else "no", "correct": correct, **more}


def specs(text: str) -> Iterator[dict[str, Any]]:
    for _, script in (each for each in Reader(text).texts if each[0] == "script"):
        if script.startswith('{"views"'):
            yield json.loads(script)


def test_a_page_is_whole_and_asks_for_nothing_outside(tmp_path: Path) -> None:
    runs = [run(tmp_path, seed, depth=depth) for depth in (1, 2) for seed in (0, 1)]
    write_page(runs, None, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    found = Reader(text)
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert "@import" not in text and "url(" not in text.split("</style>")[0]
    assert len(set(found.ids)) == len(found.ids)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert found.elements["h1"] == found.elements["main"] == 1
    assert {"scores", "differences", "costs"} <= set(found.ids)
    assert found.elements["select"] >= 2 and found.elements["label"] >= found.elements["select"]


def test_a_run_that_was_killed_before_its_results_and_then_asked_has_a_page(tmp_path: Path) -> None:
    """Its results have neither stages nor a cost: it was a fault of llava_lab."""
    asked = {"stages": [], "cost": {}, "visual_tokens": {"scenes": 64.0}}
    one, other = (run(tmp_path, 0, depth=n, **more) for n, more in ((1, {}), (2, asked)))
    write_page([other], None, tmp_path / "alone.html")
    write_page([one, other], None, tmp_path / "page.html")
    assert other.visual_tokens("scenes") == 64 and other.visual_tokens("pope") is None
    found = [tokens(each.runs, "pope") for each in configurations([one, other])]
    assert found == [64, None]


def test_a_page_is_the_same_whenever_it_is_written(tmp_path: Path) -> None:
    runs = [run(tmp_path, seed) for seed in (0, 1)]
    assert page(runs) == page(runs)


def test_texts_of_models_stay_texts(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    one = run(tmp_path, 0, depth=1)
    predicted(one, "scenes", [line("a", "count", 0.0) | {"question": evil, "prediction": evil}])
    found = Reader(page([one, run(tmp_path, 0, experiment=evil)]))
    assert found.elements["img"] == 0
    assert not [text for tag, text in found.texts if tag == "script" and text.startswith("alert")]
    assert ("h3", evil) in found.texts


def test_three_hundred_runs_make_a_page_of_less_than_three_megabytes(tmp_path: Path) -> None:
    scores = {f"accuracy/{name}": score(0.5) for name in "abcdefghijklmnopqrst"}
    runs = [
        run(tmp_path, seed, depth=depth, benchmarks={"scenes": scores}, cost=cost)
        for depth in range(60)
        for cost in [{**results()["cost"], "train_flops": 1e15 * (1 + depth)}]
        for seed in range(5)
    ]
    text = page(runs)
    assert len(text) < 3_000_000
    assert Reader(text).elements["tr"] > 3 * 60
    assert all(not spec["layout"]["showlegend"] for spec in specs(text))


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to report"):
        write_page([], None, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_what_is_drawn_is_what_plotly_takes(tmp_path: Path) -> None:
    from plotly.graph_objects import Figure

    other = {**results()["cost"], "train_flops": 9e16, "visual_tokens_mean": 640.0}
    runs = [run(tmp_path, 0, depth=1), run(tmp_path, 0, cost=other)]
    plots = tradeoffs(configurations(runs))
    assert [plot.title.rpartition(" ")[2] for plot in plots] == ["mean", "FLOPs"]
    for plot in plots:
        for traces in plot.views.values():
            Figure(traces, plot.layout)  # refuses what plotly does not know
    first = plots[1].views["scenes/accuracy"]
    assert [trace["x"] for trace in first] == [[1.5e15], [9e16]]
    assert first[0]["y"] == [60.0] and first[0]["error_y"]["array"] == [5.0]
    assert plots[1].layout["xaxis"]["type"] == "log"


def test_effects_are_drawn_with_what_the_rule_asks(
    tmp_path: Path, run_findings: Callable[[], Claims]
) -> None:
    from plotly.graph_objects import Figure

    rule(tmp_path, {"must_not": [{"score": "questions/accuracy/color", "within": 3}]})
    verdict = run_findings().verdicts["T1"]
    found = list(effects(verdict))
    plot = forest("effects-T1", "T1", found)
    assert plot is not None
    (trace,) = plot.views[""]
    Figure([trace], plot.layout)
    assert trace["x"] == pytest.approx([50, 15, 32.5])
    for each, x, more in zip(found, trace["x"], trace["error_x"]["array"], strict=True):
        assert x + more == pytest.approx(100 * each.difference.interval(each.level)[1], abs=0.01)
    margins = [shape["x0"] for shape in plot.layout["shapes"] if "line" in shape]
    assert margins == [-5, 5, -3, 3]
    unmeasured = [replace(each, difference=None) for each in found]
    assert forest("effects-T1", "T1", unmeasured) is None


def test_a_page_of_findings_has_verdicts_rules_and_history(
    tmp_path: Path, run_findings: Callable[[], Claims]
) -> None:
    rule(tmp_path)
    found = Reader(page([], run_findings()))
    texts = [text.strip() for _, text in found.texts]
    assert "T1. More depth helps." in texts and "reproduced" in texts and "inconclusive" in texts
    assert {"findings", "scores", "costs"} <= set(found.ids)
    assert "some: 2" in texts  # a configuration: sweep and point, whatever the seed's world
    assert "T1: history" in texts and "written down, before its first run" in texts


def test_findings_without_runs_are_told_without_effects(tmp_path: Path) -> None:
    rule(tmp_path)
    claims = read_claims(read_findings(tmp_path / "findings"), tmp_path / "results")
    text = page([], claims)
    assert "No verdict yet" in text and not list(specs(text))


def test_configurations_are_called_by_what_differs(tmp_path: Path) -> None:
    runs = [run(tmp_path, 0, depth=1), run(tmp_path, 1, depth=1), run(tmp_path, 0, "linear.Linear")]
    found = configurations(runs)
    assert [each.label for each in found] == ["connector MLP", "connector Linear"]
    assert [len(each.runs) for each in found] == [2, 1]
    alone = configurations([run(tmp_path / "alone", 0)])
    assert [each.label for each in alone] == ["llava15, tiny"]


def test_runs_without_a_configuration_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, results()) for name in ("a", "b")]
    found = configurations([read(path) for path in paths])
    assert [each.label for each in found] == ["llava15, tiny (a)", "llava15, tiny (b)"]


def test_one_configuration_in_two_folders_is_two_rows_with_their_folders(tmp_path: Path) -> None:
    """As two machines may have it: folders of runs are called alike."""
    runs = [run(tmp_path / machine, 0) for machine in ("a", "b")]
    found = configurations(runs)
    labels = [f"llava15, tiny ({tmp_path / machine / 'mlp.MLP-2-0'})" for machine in ("a", "b")]
    assert [each.label for each in found] == labels
    assert [line[0] for line in overview(found).texts] == labels
    for grid in all_scores(found):
        assert [line[0] for line in grid.texts] == labels


def test_options_that_change_together_are_named_once(tmp_path: Path) -> None:
    configs = [f"stages: {{a: {{grids: {g}}}}}\ndata: {{grids: {g}}}\n" for g in ("1x1", "2x2")]
    paths = [write(tmp_path / str(n), results(), text) for n, text in enumerate(configs)]
    found = configurations([read(path) for path in paths])
    assert [each.label for each in found] == ["grids 1x1", "grids 2x2"]


def test_questions_that_are_answered_differently_come_first(tmp_path: Path) -> None:
    runs = [run(tmp_path, 0, depth=depth) for depth in (1, 2)]
    said = [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]]
    for each, right in zip(runs, said, strict=True):
        lines = [line(f"{n}", "count" if n < 2 else "color", r) for n, r in enumerate(right)]
        predicted(each, "scenes", lines)
    found, _ = samples(configurations(runs))
    assert [sample.line["id"] for sample in found] == ["2", "1", "3", "0"]
    assert [said["prediction"] for _, said in found[1].answers] == ["yes", "no"]


def test_another_question_at_the_same_place_is_not_compared(tmp_path: Path) -> None:
    runs = [run(tmp_path, 0, depth=depth) for depth in (1, 2)]
    predicted(runs[0], "scenes", [line("a", "count", 1.0)])
    predicted(runs[1], "scenes", [line("b", "count", 1.0)])
    found, _ = samples(configurations(runs))
    assert [label for label, _ in found[0].answers] == ["depth 1"]


def test_questions_of_a_benchmark_that_only_later_configurations_were_asked_are_shown(
    tmp_path: Path,
) -> None:
    both = {name: {"accuracy": score(0.5)} for name in ("scenes", "more")}
    runs = [run(tmp_path, 0, depth=1), run(tmp_path, 0, depth=2, benchmarks=both)]
    for each in runs:
        predicted(each, "scenes", [line("a", "count", 1.0)])
    predicted(runs[1], "more", [line("b", "count", 0.0)])
    found, _ = samples(configurations(runs))
    shown = {each.benchmark: [label for label, _ in each.answers] for each in found}
    assert shown == {"scenes": ["depth 1", "depth 2"], "more": ["depth 2"]}


def test_an_answer_with_a_separator_of_lines_is_one_line(tmp_path: Path) -> None:
    """Predictions are written with U+2028 as it is, at which str.splitlines parts them."""
    one = run(tmp_path, 0)
    said = line("a", "count", 1.0) | {"prediction": "one\u2028two\x85three"}
    predicted(one, "scenes", [said])
    path = one.path.parent / "predictions" / "scenes.jsonl"
    path.write_text(json.dumps(said, ensure_ascii=False) + "\n", encoding="utf-8")
    assert samples(configurations([one]))[0]


def test_a_damaged_line_of_predictions_is_named(tmp_path: Path) -> None:
    one = run(tmp_path, 0)
    predicted(one, "scenes", [line("a", "count", 1.0), {"id": "b"}])
    with pytest.raises(ValueError, match=r"scenes\.jsonl, line 2: no prediction"):
        samples(configurations([one]))


def test_a_sample_has_its_picture_tiles_and_tokens(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are found from the folder that runs lie in, too."""
    options = {"paths.root": small_world.name, "tiny_world": None, "tiny_videos": None}
    folder = small_world.parent / "runs" / "llava_next"
    text = Experiment.read("experiments/llava_next.yaml").changed(options).text()
    made = results(benchmarks={"questions": {"accuracy": score(0.5)}})
    of = read(write(folder / "0", made, text))
    asked = [json.loads(each) for each in (small_world / "questions.jsonl").open()]
    lines = [
        line(
            str(each["question_id"]), "count", 1.0, question=each["text"], blind_prediction="black"
        )
        for each in asked[:3]
    ]
    predicted(of, "questions", lines)
    monkeypatch.chdir(tmp_path)
    found, notes = samples(configurations([of]))
    assert notes == []
    (look,) = found[0].looks
    ((picture, tiles),) = look.pictures
    assert picture.size == Image.open(small_world / "images" / asked[0]["image"]).size
    # LLaVA-NeXT at the tiny scale: 2x2 tiles of 6x6 features beside a base view of as many.
    assert tiles.base and len(tiles.boxes) == 4
    assert 2 * 36 < look.tokens <= 5 * 36 + 12
    text = page([of])
    assert f"{look.tokens} visual tokens: the whole and 4 tiles" in text
    assert ("td", "black") in Reader(text).texts


def test_questions_of_published_benchmarks_are_shown_with_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists, a list under a key, tables with pictures inside, and patterns of files."""
    names = ("scienceqa", "textvqa_no_ocr", "pope", "mmbench", "docvqa")
    of = run(tmp_path / "runs", 0, benchmarks={name: {"accuracy": score(0.5)} for name in names})
    for name in names:
        lay_out(name, tmp_path / "data" / "eval")
        questions = benchmark_of(name, tmp_path / "data" / "eval").questions
        said = [line(each.id, "count", 1.0, question=each.prompt) for each in questions]
        predicted(of, name, said)

    def build(self: Asked) -> Any:
        found = []
        for name in names:
            options = _moved(json.loads(given()[name].replace("/ROOT", "data/eval")), self.run)
            labels = options["labels"] and Labels(**options["labels"])
            found.append(
                made(options | {"columns": Columns(**options["columns"]), "labels": labels})
            )
        return SimpleNamespace(benchmarks=found, views=Square()), VIEW

    monkeypatch.setattr(Asked, "_build", build)
    monkeypatch.chdir(tmp_path / "runs")
    found, notes = samples(configurations([of]))
    assert notes == []
    shown = [(each.benchmark, each.line["id"], len(each.looks)) for each in found]
    assert shown == [
        *[("scienceqa", "4", 0), ("scienceqa", "5", 1), ("textvqa_no_ocr", "34602", 1)],
        *[("pope", str(number), 1) for number in (1, 2, 3)],
        *[("mmbench", id, 1) for id in ("241", "1000241", "242")],
        ("docvqa", "49153", 1),
    ]
    assert len(list((tmp_path / "runs").iterdir())) == 1  # nothing is unpacked here


def test_a_question_is_found_among_more_and_one_that_is_not_as_it_was_asked_is_named(
    tmp_path: Path,
) -> None:
    """Where batches were limited, lines are fewer than questions."""
    lay_out("mmbench", tmp_path)
    asked, benchmark = (
        Asked(configurations([run(tmp_path, 0)])[0]),
        benchmark_of("mmbench", tmp_path),
    )
    asked._made[""] = SimpleNamespace(benchmarks=[benchmark], views=Square()), VIEW
    first, _, third = benchmark.questions
    looks = [
        asked.look("mmbench", place, line(id, "count", 1.0, question=question))
        for place, id, question in [(0, "242", third.prompt), (1, "241", first.prompt)]
    ]
    assert all(looks) and asked.notes == []
    assert asked.look("mmbench", 0, line("241", "count", 1.0, question="What was it?")) is None
    (note,) = asked.notes
    assert "pictures of mmbench are not shown" in note and "mmbench_dev_20230712.tsv: 0 " in note
    assert "questions have the id '241' and the text that was asked" in note


def test_code_of_a_run_is_not_imported_unless_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text("raise ValueError('their code runs')")
    monkeypatch.syspath_prepend(tmp_path)
    text = "model: {connector: {class_path: theirs.Connector}}\nstages: {}\n"
    made = results(benchmarks={"questions": {"accuracy": score(0.5)}})
    of = read(write(tmp_path / "0", made, text))
    predicted(of, "questions", [line("a", "count", 1.0)])
    for trusted, said in ([], "add --trust-code theirs"), (["theirs"], "their code runs"):
        _, (note,) = samples(configurations([of]), trusted)
        assert "pictures of questions are not shown" in note and said in note


def test_pictures_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    text = Experiment.read("experiments/llava15.yaml").changed({"paths.root": "gone"}).text()
    made = results(benchmarks={"questions": {"accuracy": score(0.5)}})
    of = read(write(tmp_path / "0", made, text))
    predicted(of, "questions", [line("a", "count", 1.0)])
    found, notes = samples(configurations([of]))
    assert found[0].looks == []
    assert len(notes) == 1 and "pictures of questions are not shown: gone/images" in notes[0]


def test_tiles_lie_where_the_views_look() -> None:
    # 200x100 on a canvas of 2x2 tiles of 100: scaled by 1, 50 rows of padding above and below.
    grid = tiles_of(AnyRes("2x2"), (200, 100), 100)
    assert grid.canvas == (0, -50, 200, 200) and grid.base
    assert grid.boxes[0] == (0, -50, 100, 100) and grid.boxes[3] == (100, 50, 100, 100)
    wide = tiles_of(AnyRes("2x1", base=False), (100, 100), 50)
    assert wide.canvas == (-50, 0, 200, 100) and not wide.base
    assert tiles_of(Pad(), (200, 100), 336).boxes == ((0, -50, 200, 200),)
    assert tiles_of(Square(), (200, 100), 336).boxes == ((50, 0, 100, 100),)
    assert tiles_of(Square("squash"), (200, 100), 336).boxes == ((0, 0, 200, 100),)
    assert tiles_of(Frames(), (200, 100), 336) == tiles_of(Square(), (200, 100), 336)


def test_losses_come_from_the_events_beside_runs(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    runs = [run(tmp_path, seed) for seed in (0, 1)]
    for each, start in ((runs[0], 4.0), (runs[1], 3.0)):
        folder = each.path.parent / "stages" / "align"
        for losses_, first in (([start, 2.0], 9), ([1.5, 1.0], 19)):  # the second after a kill
            writer = SummaryWriter(str(folder), filename_suffix=f".{first}")
            for number, loss in enumerate(losses_):
                writer.add_scalar("loss", loss, first + 10 * number)
                writer.add_scalar("rate/connector", 1.0, first + 10 * number)
            writer.close()
    found = curves(configurations(runs))  # both name the stage of one fingerprint: shown once
    assert [(each.stage, each.label) for each in found] == [("align", "llava15, tiny, seed 0")]
    assert found[0].steps == [10, 20, 30] and found[0].losses == [4.0, 1.5, 1.0]
    plot = losses(found)
    assert plot is not None and list(plot.views) == ["align"]
    assert losses([]) is None


def test_a_long_curve_is_thinned_to_means() -> None:
    assert _thinned({1: 4.0, 2: 2.0, 3: 1.0, 4: 3.0, 5: 7.0}, 3) == ([2, 4, 5], [3.0, 2.0, 7.0])


def test_scores_on_the_way_stand_at_all_that_was_spent_until_then(tmp_path: Path) -> None:
    points = [
        {
            **dict(step=n, samples=8.0 * n, tokens=9, flops=1e9 * n),
            "benchmarks": {"scenes": {"accuracy": score(0.1 * n)}},
        }
        for n in (1, 2)
    ]
    way = {"asked": {}, "points": points}
    stages = [
        {**results()["stages"][0], "name": "align", "samples": 100, "flops": 5e9},
        {**results()["stages"][0], "samples": 40, "flops": 10e9, "trajectory": way},
    ]
    found = configurations(
        [run(tmp_path, 0, stages=stages, benchmarks={"scenes": {"accuracy": score(0.3)}})]
    )
    plots = [on_the_way(ways(found, at), at) for at in ("samples", "flops")]
    traces = [plot.views["scenes/accuracy"][0] for plot in plots if plot]
    assert [trace["x"] for trace in traces] == [[108, 116, 140], [6e9, 7e9, 15e9]]
    assert [trace["y"] for trace in traces] == [[10, 20, 30]] * 2
    assert on_the_way([], "samples") is None
