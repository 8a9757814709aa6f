"""Documentation: the site is built without a warning, and what its pages show is run."""

import doctest
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_exchange import make_theirs
from test_official import CASES, lay_out, picture, write

from llava_lab.__main__ import main
from llava_lab.report.claims import read_claims
from llava_lab.report.docs import differing
from llava_lab.report.finding_file import read_findings

DOCS = REPOSITORY / "docs"
README = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
PAGES = {path.name: BLOCK.findall(path.read_text(encoding="utf-8")) for path in DOCS.glob("*.md")}
WITH_PYTHON = [
    name
    for name, blocks in PAGES.items()
    if any(kind == "python" and not title for kind, title, _ in blocks)
]
WITH_FILES = [name for name, blocks in PAGES.items() if any(title for _, title, _ in blocks)]
QUICK = ("own_part.md",)  # the others train and ask more
# LLaVA-Bench in the Wild as it is published, with the file that has its prompt.
WILD = {
    "questions.jsonl": [
        {"question_id": 0, "image": "001.jpg", "text": "Where?", "category": "conv"}
    ],
    "answers_gpt4.jsonl": [{"question_id": 0, "text": "At sea.", "answer_id": "x"}],
    "context.jsonl": [{"id": "001", "image": "001.jpg", "caption": "A boat at sea."}],
    "rule.json": {"llava_bench_conv": {"role": "Assistant", "prompt": "Two scores on one line."}},
}


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_of_a_page_prints_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of Python run one after another, in an empty folder; `>>>` shows what is printed."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner(verbose=False)
    for kind, title, text in PAGES[page]:
        if kind == "python" and not title:
            if ">>>" not in text:
                exec(compile(text, page, "exec"), names)
                continue
            shown = doctest.DocTestParser().get_doctest(text, names, page, page, 0)
            runner.run(shown, clear_globs=False)
            names = shown.globs
    assert runner.summarize().failed == 0


def furnish(page: str, folder: Path) -> None:
    """What a page says that its reader has: published files of benchmarks, and a checkpoint."""
    text = "".join(text for _, _, text in PAGES[page])
    asked = set(re.findall(r"configs/benchmarks/(\w+)\.yaml", text))
    asked = {"textvqa_ocr" if name == "textvqa" else name for name in asked}
    for name in asked & CASES.keys():
        lay_out(name, folder / "data" / "eval")
    if "llava_bench_wild" in asked:
        wild = folder / "data" / "eval" / "llava-bench-in-the-wild"
        for name, content in WILD.items():
            write(wild / name, content)
        (wild / "images").mkdir()
        (wild / "images" / "001.jpg").write_bytes(picture())
    if "checkpoints/mine" in text:
        make_theirs(folder / "checkpoints" / "mine", "clip", "llama")


@pytest.mark.parametrize(
    "page",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WITH_FILES],
)
def test_files_and_commands_of_a_page_work_in_an_empty_folder(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge_server
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does
    monkeypatch.delenv("LLAVA_DATA", raising=False)
    monkeypatch.setenv("JUDGE_URL", judge_server(lambda body: "8 7").url)
    monkeypatch.setenv("JUDGE_MODEL", "judge-1")
    furnish(page, tmp_path)
    for kind, title, text in PAGES[page]:
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif kind == "sh":
            for line in text.replace("\\\n", "").splitlines():
                command = shlex.split(line, comments=True)
                assert command[:3] == ["python", "-m", "llava_lab"]
                main(command[3:])


def test_pages_say_of_results_what_results_say() -> None:
    """Tables, verdicts and plots between markers are written by `report --docs`."""
    claims = read_claims(read_findings(), REPOSITORY / "results")
    assert not differing(DOCS, claims), "run: python -m llava_lab report --docs"


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "model" / "index.html").read_text()
    assert "llava_lab.model.connector.mlp.MLP" in reference


def test_files_that_pages_name_are_there() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*DOCS.glob("*.md"), *README)]
    tree = (
        r"(?:llava_lab|core|data|model|train|evaluate|report|cli|configs|docs|experiments|sweeps)"
    )
    name = re.compile(rf"`({tree}/[\w./]*\.(?:py|yaml|md))`")
    named = {each for text in texts for each in name.findall(text)}
    assert len(named) > 20
    for each in sorted(named):
        places = (REPOSITORY / each, REPOSITORY / "llava_lab" / each)
        assert any(path.is_file() for path in places), each


def test_classes_that_pages_name_are_there() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*DOCS.glob("*.md"), *README)]
    named = {each for text in texts for each in re.findall(r"llava_lab(?:\.\w+)+\.[A-Z]\w*", text)}
    assert named
    for name in sorted(named):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
