"""Phrases: captions -> the noun phrases of each, by spaCy."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from llava_lab.core.journal import Journal
from llava_lab.core.progress import progress

CHUNK = 1000  # captions between two entries of the journal
INSTALL = "pip install 'llava-lab[make]'"


class PhraseFinder(Protocol):
    """Finds the noun phrases of texts."""

    @property
    def name(self) -> str:
        """What finds them, with its version: other phrases have another name."""
        ...

    def __call__(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """The noun phrases of each text, one after another."""
        ...


class NounPhrases:
    """Noun chunks of spaCy, in lower case and with single spaces, each once a text.

    Args:
        model: A pipeline that is installed, or its folder.
        processes: Processes that read side by side.

    Raises:
        ValueError: If spaCy or the pipeline is not installed, or the pipeline parses no sentences.
    """

    def __init__(self, model: str = "en_core_web_sm", processes: int = 1):
        try:
            import spacy  # pyrefly: ignore[missing-import]
        except ImportError:
            raise ValueError(f"noun phrases need spaCy: {INSTALL}") from None
        try:
            self.pipeline: Any = spacy.load(model, exclude=["ner", "lemmatizer"])
        except OSError:
            raise ValueError(
                f"spaCy has no pipeline {model!r}; its own is installed by "
                "`python -m spacy download en_core_web_sm`"
            ) from None
        if "parser" not in self.pipeline.pipe_names:
            raise ValueError(f"spaCy's pipeline {model!r} has no parser, which finds noun phrases")
        meta = self.pipeline.meta
        self.name = f"spacy {spacy.__version__}, {meta['lang']}_{meta['name']} {meta['version']}"
        self.processes = processes

    def __call__(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """The noun phrases of each text, one after another."""
        for each in self.pipeline.pipe(texts, batch_size=128, n_process=self.processes):
            found = (" ".join(chunk.text.lower().split()) for chunk in each.noun_chunks)
            yield list(dict.fromkeys(found))


def find_phrases(texts: Sequence[str], find: PhraseFinder, out: Path) -> list[list[str]]:
    """The noun phrases of each text; what was found before a kill is kept beside the output.

    Args:
        texts: All texts.
        find: Finds phrases.
        out: The output, beside which the journal is; it stays until `forget_phrases`.
    """
    total = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    found: list[list[str]] = []
    with (
        Journal(_beside(out), f"{find.name} {total}") as journal,
        progress("captions read", len(texts)) as bar,
    ):
        for chunk in journal.read().values():
            found += chunk
        bar.update(len(found))
        waiting: list[list[str]] = []
        for number, phrases in enumerate(find(texts[len(found) :]), len(found) + 1):
            waiting.append(phrases)
            bar.update()
            if len(waiting) == CHUNK or number == len(texts):
                journal.add(str(number), waiting)
                found += waiting
                waiting = []
    return found


def forget_phrases(out: Path) -> None:
    """Remove the journal, when the output is written."""
    Journal(_beside(out), "").remove()


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.phrases")
